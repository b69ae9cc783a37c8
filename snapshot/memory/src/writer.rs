//! Writing a layer file.

use crate::dirty::PageRange;
use crate::error::{MemoryError, io};
use snapshot_format::{Extent, LayerIndex, LayerSums, UNIT, unit_sum};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;
/// Bytes that are written by one system call.
const BUFFER: usize = 256 * PAGE;

/// A layer file that is being written. Pages come in any order, and one that comes again takes the
/// place of what it was; pages that are all zeros are named but not stored.
#[derive(Debug)]
pub struct LayerWriter {
    file: File,
    units: u64,
    /// The slot of each page that is named; `None`: it is zero.
    pages: BTreeMap<u64, Option<u32>>,
    /// What is in each slot.
    sums: Vec<u32>,
    buffer: Vec<u8>,
    /// Bytes of it that are to be written, and the slot of the first.
    filled: usize,
    slot: u32,
}

impl LayerWriter {
    /// In an empty file, for a memory of `units` pages.
    #[must_use]
    pub fn new(file: File, units: u64) -> Self {
        Self {
            file,
            units,
            pages: BTreeMap::new(),
            sums: Vec::new(),
            buffer: vec![0; BUFFER],
            filled: 0,
            slot: 0,
        }
    }

    /// Adds pages; `read` fills a buffer of 4096 bytes with one.
    ///
    /// # Errors
    /// From `read`, or when the file cannot be written.
    pub fn write<E: From<MemoryError>>(
        &mut self,
        range: PageRange,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for page in range.first..range.end {
            if self.filled == BUFFER {
                self.flush()?;
            }
            let bytes = &mut self.buffer[self.filled..self.filled + PAGE];
            read(page, bytes)?;
            let zero = is_zero(bytes);
            let place = self.pages.entry(page).or_default();
            // A page that had a slot keeps it, also for zeros.
            let slot = match *place {
                None if zero => continue,
                None => *place.insert(u32::try_from(self.sums.len()).unwrap_or(u32::MAX)),
                Some(slot) => slot,
            };
            self.add(slot)?;
        }
        Ok(())
    }

    /// The page behind what is filled goes to this slot.
    fn add(&mut self, slot: u32) -> Result<(), MemoryError> {
        let follows = u64::from(self.slot) + (self.filled / PAGE) as u64;
        if u64::from(slot) != follows {
            let page = self.filled..self.filled + PAGE;
            self.flush()?;
            self.buffer.copy_within(page, 0);
            self.slot = slot;
        }
        let sum = unit_sum(&self.buffer[self.filled..self.filled + PAGE]);
        match self.sums.get_mut(slot as usize) {
            Some(before) => *before = sum,
            None => self.sums.push(sum),
        }
        self.filled += PAGE;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MemoryError> {
        let bytes = &self.buffer[..self.filled];
        put(&self.file, bytes, LayerIndex::data_at(self.slot.into()))?;
        self.slot += u32::try_from(self.filled / PAGE).unwrap_or(0);
        self.filled = 0;
        Ok(())
    }

    /// Writes what makes it a layer file.
    ///
    /// # Errors
    /// When the pages are more or further than a layer can hold, or the file cannot be written.
    pub fn finish(mut self) -> Result<LayerIndex, MemoryError> {
        self.flush()?;
        let extents = self.pages.iter().map(|(&first, &slot)| Extent {
            first,
            units: 1,
            slot,
        });
        let index = LayerIndex::placed(self.units, self.sums.len() as u64, extents)?;
        let (header, mut rest) = index.encode();
        rest.extend(LayerSums::new(self.sums).encode());
        put(&self.file, &rest, LayerIndex::data_at(index.slots().into()))?;
        put(&self.file, &header, 0)?;
        Ok(index)
    }
}

fn put(file: &File, bytes: &[u8], offset: u64) -> Result<(), MemoryError> {
    let failed = io(
        "Writing a layer file",
        format!("{} bytes at {offset}", bytes.len()),
    );
    file.write_all_at(bytes, offset).map_err(failed)
}

/// Writes a layer with the given pages of a memory that lies in `parts`, one after the other, each
/// of whole pages. Returns the index.
///
/// # Errors
/// As [`LayerWriter`].
pub fn write_layer(
    parts: &[&[u8]],
    ranges: &[PageRange],
    file: &File,
) -> Result<LayerIndex, MemoryError> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let again = file.try_clone();
    let again = again.map_err(io("Writing a layer file", "a descriptor of it"))?;
    let mut writer = LayerWriter::new(again, bytes as u64 / UNIT);
    for range in ranges {
        writer.write(*range, |page, into| {
            let mut from = usize::try_from(page * UNIT).unwrap_or(usize::MAX);
            for part in parts {
                if let Some(bytes) = part.get(from..).and_then(|rest| rest.get(..PAGE)) {
                    into.copy_from_slice(bytes);
                    return Ok(());
                }
                from -= part.len();
            }
            let (found, wanted) = (bytes as u64 / UNIT, page + 1);
            Err(MemoryError::Size { found, wanted })
        })?;
    }
    writer.finish()
}

/// Whether every byte is zero, eight at a time.
fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<8>();
    words.iter().all(|w| *w == [0; 8]) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::layer_file::LayerFile;
    use proptest::prelude::*;

    fn whole(layer: &LayerFile) -> BTreeMap<u64, Vec<u8>> {
        let mut pages = BTreeMap::new();
        let put = |at: u64, bytes: &[u8]| {
            for (page, bytes) in (at / UNIT..).zip(bytes.chunks(PAGE)) {
                pages.insert(page, bytes.to_vec());
            }
            Ok(())
        };
        layer.apply(put).unwrap();
        pages
    }

    proptest! {
        #[test]
        fn the_last_word_on_each_page_counts(
            writes in proptest::collection::vec((0_u64..600, 1_u64..300, 0_u8..3), 0..20),
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut writer = LayerWriter::new(file.try_clone().unwrap(), 1000);
            let mut wanted = BTreeMap::new();
            for (first, count, byte) in writes {
                let range = PageRange { first, end: first + count };
                writer.write(range, |page, into| {
                    into.fill(byte);
                    into[0] = byte * u8::try_from(page % 100).unwrap();
                    wanted.insert(page, into.to_vec());
                    Ok::<_, MemoryError>(())
                }).unwrap();
            }
            prop_assert_eq!(writer.pages.len(), wanted.len());
            let index = writer.finish().unwrap();
            let layer = LayerFile::open(file).unwrap();
            prop_assert_eq!(layer.index(), &index);
            let sums = layer.sums().unwrap();
            let found = whole(&layer);
            for (page, bytes) in &found {
                if let Some(slot) = index.find(*page).unwrap().slot_of(*page) {
                    sums.check(usize::try_from(slot).unwrap(), bytes).unwrap();
                }
            }
            prop_assert!(found == wanted);
        }
    }
}
