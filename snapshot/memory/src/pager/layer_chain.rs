//! What a chain of layers says about each page, read and checked.

use super::error::PagerError;
use super::uffd::PAGE;
use crate::base_memory::visible;
use crate::error::MemoryError;
use crate::layer_file::LayerFile;
use snapshot_format::{LayerIndex, LayerSums, UNIT};
use std::fs::File;
use std::ops::Range;

/// Most regions; between them the kernel's zeros are right.
const MAX_REGIONS: usize = 128;
/// Gaps of fewer pages do not make two regions of one.
const MIN_GAP: u64 = 64;

/// A run of pages with data in one layer.
#[derive(Debug, Clone, Copy)]
struct DataRun {
    first: u64,
    end: u64,
    layer: usize,
}

/// A machine's whole memory as layer files, newest first. What no layer has is zero.
#[derive(Debug)]
pub(crate) struct LayerChain {
    layers: Vec<CheckedLayer>,
    runs: Vec<DataRun>,
    pages: u64,
}

#[derive(Debug)]
struct CheckedLayer {
    layer: LayerFile,
    sums: LayerSums,
}

impl LayerChain {
    /// Opens layers of a memory of `pages` pages.
    pub(crate) fn open(pages: u64, files: Vec<File>) -> Result<Self, PagerError> {
        let count = files.len();
        let mut layers = Vec::with_capacity(count);
        let mut opened = Vec::with_capacity(count);
        for (number, file) in files.into_iter().enumerate() {
            let refused = |source| PagerError::Layer {
                number,
                count,
                source,
            };
            let layer = LayerFile::open(file).map_err(refused)?;
            let found = layer.index().units();
            if found != pages {
                let wanted = pages;
                return Err(refused(MemoryError::Size { found, wanted }));
            }
            let sums = layer.sums().map_err(refused)?;
            opened.push(sums);
            layers.push(layer);
        }
        let runs = visible(pages, &layers).into_iter();
        let runs = runs.map(|(first, units, layer)| DataRun {
            first,
            end: first + units,
            layer,
        });
        let runs = runs.collect();
        let both = layers.into_iter().zip(opened);
        let layers = both.map(|(layer, sums)| CheckedLayer { layer, sums });
        Ok(Self {
            layers: layers.collect(),
            runs,
            pages,
        })
    }

    /// Pages of the whole.
    pub(crate) const fn pages(&self) -> u64 {
        self.pages
    }

    /// The pages from `page` on, before `end`, that come from the same place; `Some`: of a layer.
    pub(crate) fn run(&self, page: u64, end: u64) -> (u64, Option<usize>) {
        let after = self.runs.partition_point(|run| run.end <= page);
        match self.runs.get(after) {
            Some(run) if run.first <= page => (run.end.min(end), Some(run.layer)),
            Some(run) => (run.first.min(end), None),
            None => (end, None),
        }
    }

    /// Whole regions that have all data, few and with zeros between them.
    pub(crate) fn regions(&self) -> Vec<Range<u64>> {
        let mut gap = MIN_GAP;
        loop {
            let mut regions: Vec<Range<u64>> = Vec::new();
            for run in &self.runs {
                match regions.last_mut() {
                    Some(last) if run.first < last.end + gap => last.end = run.end,
                    _ => regions.push(run.first..run.end),
                }
            }
            if regions.len() <= MAX_REGIONS {
                return regions;
            }
            gap *= 2;
        }
    }

    /// Reads pages that all come from `layer`, checked.
    pub(crate) fn read(
        &self,
        layer: usize,
        first: u64,
        bytes: &mut [u8],
    ) -> Result<(), PagerError> {
        let read = || -> Result<(), MemoryError> {
            let CheckedLayer { layer, sums } = &self.layers[layer];
            let (mut page, mut rest) = (first, bytes);
            while !rest.is_empty() {
                let found = layer.index().find(page);
                let Some((extent, slot)) = found.and_then(|e| Some((e, e.slot_of(page)?))) else {
                    return Err(snapshot_format::FormatError::Invalid {
                        what: "page of a layer",
                        value: page.to_string(),
                    }
                    .into());
                };
                let have = usize::try_from((extent.end() - page) * UNIT).unwrap_or(usize::MAX);
                let (now, later) = rest.split_at_mut(have.min(rest.len()));
                layer.read_at(now, LayerIndex::data_at(slot))?;
                let slot = usize::try_from(slot).unwrap_or(usize::MAX);
                for (slot, page) in (slot..).zip(now.chunks(PAGE)) {
                    sums.check(slot, page)?;
                }
                page += (now.len() / PAGE) as u64;
                rest = later;
            }
            Ok(())
        };
        read().map_err(|source| PagerError::Layer {
            number: layer,
            count: self.layers.len(),
            source,
        })
    }
}
