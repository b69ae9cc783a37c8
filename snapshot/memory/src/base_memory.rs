//! Base memory: a snapshot's whole memory, resident, immutable, and shared by all its clones.

use crate::error::{MemoryError, io};
use crate::layer_file::LayerFile;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use snapshot_format::UNIT;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// A sealed memory file: nobody, this process included, can change it any more. Pages that are all
/// zeros are holes and take no memory.
#[derive(Debug)]
pub struct BaseMemory {
    file: File,
    pages: u64,
}

impl BaseMemory {
    /// Builds the memory that a chain of layers describes, newest first. What no layer names is
    /// zero.
    ///
    /// # Errors
    /// [`MemoryError::Size`] when the layers are of different machines, or the system's error.
    pub fn merge_layers(pages: u64, layers: &[LayerFile]) -> Result<Self, MemoryError> {
        if let Some(other) = layers.iter().find(|l| l.index().units() != pages) {
            return Err(MemoryError::Size {
                found: other.index().units(),
                wanted: pages,
            });
        }
        let fd = memfd_create(
            "base-memory",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(|e| io("Creating a memory file", "base memory")(e.into()))?;
        let file = File::from(fd);
        ftruncate(&file, pages * UNIT)
            .map_err(|e| io("Sizing a memory file", format!("{pages} pages"))(e.into()))?;
        let mut buffer = vec![0; CHUNK];
        for (first, units, layer) in visible(pages, layers) {
            layers[layer].copy(first, units, &mut buffer, |offset, bytes| {
                file.write_all_at(bytes, offset)
            })?;
        }
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)
            .map_err(|e| io("Sealing a memory file", format!("{seals:?}"))(e.into()))?;
        Ok(Self { file, pages })
    }

    /// Pages of the whole.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes that are resident; the rest are holes.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn resident_bytes(&self) -> Result<u64, MemoryError> {
        use std::os::unix::fs::MetadataExt;
        let meta = self
            .file
            .metadata()
            .map_err(io("Asking a memory file", "its blocks"))?;
        Ok(meta.blocks() * 512)
    }
}

impl AsFd for BaseMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The runs of pages whose bytes come from a layer, with the number of that layer: the newest that
/// names the page, if it names it with data.
pub(crate) fn visible(pages: u64, layers: &[LayerFile]) -> Vec<(u64, u64, usize)> {
    // From oldest to newest, each layer's extents replace what was visible below them.
    let mut runs: Vec<(u64, u64, Option<usize>)> = Vec::new();
    for (number, layer) in layers.iter().enumerate().rev() {
        let extents = layer.index().extents().iter();
        let top = extents.map(|e| (e.first, e.end(), e.slot.is_some().then_some(number)));
        runs = overlay(&runs, &top.collect::<Vec<_>>());
    }
    debug_assert!(runs.iter().all(|r| r.1 <= pages));
    runs.into_iter()
        .filter_map(|(first, end, layer)| Some((first, end - first, layer?)))
        .collect()
}

type LayerRun = (u64, u64, Option<usize>);

/// `top` over `bottom`, both sorted and free of overlap.
fn overlay(bottom: &[LayerRun], top: &[LayerRun]) -> Vec<LayerRun> {
    let mut out = Vec::with_capacity(bottom.len() + top.len());
    let mut above = top.iter().peekable();
    for &(first, end, layer) in bottom {
        let mut at = first;
        while at < end {
            match above.peek() {
                Some(&&run) if run.1 <= at => {
                    out.push(run);
                    above.next();
                }
                Some(&&run) if run.0 <= at => at = end.min(run.1),
                Some(&&run) if run.0 < end => {
                    out.push((at, run.0, layer));
                    at = run.0;
                }
                _ => {
                    out.push((at, end, layer));
                    at = end;
                }
            }
        }
    }
    out.extend(above.copied());
    out.sort_unstable_by_key(|run| run.0);
    out
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    /// Runs over 40 units out of marks: 0 nothing, n + 1 layer n, 9 a zero.
    fn runs(marks: &[u8]) -> Vec<LayerRun> {
        let kind = |m: u8| (m != 9).then(|| usize::from(m) - 1);
        let named = (0..).zip(marks).filter(|(_, m)| **m != 0);
        named.map(|(i, m)| (i, i + 1, kind(*m))).collect()
    }

    proptest! {
        #[test]
        fn overlaying_is_choosing_the_top(
            bottom in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(9)], 40),
            top in proptest::collection::vec(prop_oneof![Just(0u8), Just(2), Just(9)], 40),
        ) {
            let wanted: Vec<u8> =
                bottom.iter().zip(&top).map(|(b, t)| if *t == 0 { *b } else { *t }).collect();
            let mut flat = Vec::new();
            for (first, end, layer) in overlay(&runs(&bottom), &runs(&top)) {
                flat.extend((first..end).map(|u| (u, u + 1, layer)));
            }
            prop_assert_eq!(flat, runs(&wanted));
        }
    }
}
