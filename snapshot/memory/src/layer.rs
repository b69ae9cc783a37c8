//! Layer files: reading their pages, and writing a new one.

use crate::dirty::Range;
use crate::error::{MemoryError, io};
use snapshot_format::{FormatError, LayerIndex, LayerSums, UNIT, unit_sum};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;

/// A checked layer file.
#[derive(Debug)]
pub struct Layer {
    index: LayerIndex,
    file: File,
}

impl Layer {
    /// Reads and checks the index of a layer file.
    ///
    /// # Errors
    /// [`MemoryError::Format`] when it is not one or is cut off, or the system's error.
    pub fn open(file: File) -> Result<Self, MemoryError> {
        let mut bytes = vec![0; 32];
        read(&file, &mut bytes, 0)?;
        let len = LayerIndex::index_len(&bytes)?;
        bytes.resize(len, 0);
        read(&file, &mut bytes, 0)?;
        let index = LayerIndex::parse(&bytes)?;
        let layer = Self { index, file };
        let (found, needed) = (layer.len()?, layer.index.file_len());
        if found < needed {
            return Err(FormatError::Truncated {
                what: "layer file",
                needed,
                found,
            }
            .into());
        }
        Ok(layer)
    }

    /// Its index.
    #[must_use]
    pub const fn index(&self) -> &LayerIndex {
        &self.index
    }

    /// Checksums of its units with data. Layers that were written without have none.
    ///
    /// # Errors
    /// [`MemoryError::Format`] when they are missing or damaged, or the system's error.
    pub fn sums(&self) -> Result<LayerSums, MemoryError> {
        let len = LayerSums::table_len(&self.index);
        let found = self.len()?.saturating_sub(self.index.file_len());
        let mut bytes = vec![0; usize::try_from(len.min(found)).unwrap_or(0)];
        read(&self.file, &mut bytes, self.index.file_len())?;
        Ok(LayerSums::parse(&bytes, &self.index)?)
    }

    fn len(&self) -> Result<u64, MemoryError> {
        let meta = self.file.metadata();
        Ok(meta.map_err(io("Asking a layer file", "its size"))?.len())
    }

    /// Reads bytes of the file itself.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), MemoryError> {
        read(&self.file, bytes, offset)
    }

    /// Hands everything the layer names to `put`, in rising order: the offset in the whole, and
    /// bytes, at most a MiB at a time. What it names as zero comes as zeros.
    ///
    /// # Errors
    /// When the file cannot be read, or from `put`.
    pub fn apply(
        &self,
        mut put: impl FnMut(u64, &[u8]) -> std::io::Result<()>,
    ) -> Result<(), MemoryError> {
        let mut buffer = vec![0; 1 << 20];
        for extent in self.index.extents() {
            let units = extent.end() - extent.first;
            if extent.data.is_some() {
                self.copy(extent.first, units, &mut buffer, &mut put)?;
                continue;
            }
            buffer.fill(0);
            let (mut at, end) = (extent.first * UNIT, extent.end() * UNIT);
            while at < end {
                let len = (end - at).min(buffer.len() as u64);
                let zeros = &buffer[..usize::try_from(len).unwrap_or(0)];
                put(at, zeros).map_err(io("Clearing pages", format!("{len} bytes at {at}")))?;
                at += len;
            }
        }
        Ok(())
    }

    /// Hands the bytes of `units` units from `first`, which all have data here, to `put` with
    /// their offset in the whole.
    pub(crate) fn copy(
        &self,
        first: u64,
        units: u64,
        buffer: &mut [u8],
        mut put: impl FnMut(u64, &[u8]) -> std::io::Result<()>,
    ) -> Result<(), MemoryError> {
        let (mut unit, end) = (first, first + units);
        while unit < end {
            let missing = || FormatError::Invalid {
                what: "unit",
                value: unit.to_string(),
            };
            let extent = self.index.find(unit).ok_or_else(missing)?;
            let data = extent.data.ok_or_else(missing)?;
            let run = (end.min(extent.end()) - unit).min(buffer.len() as u64 / UNIT);
            let bytes = usize::try_from(run * UNIT).unwrap_or(0);
            read(
                &self.file,
                &mut buffer[..bytes],
                data + (unit - extent.first) * UNIT,
            )?;
            put(unit * UNIT, &buffer[..bytes])
                .map_err(io("Writing pages", format!("{run} from page {unit}")))?;
            unit += run;
        }
        Ok(())
    }
}

fn read(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), MemoryError> {
    file.read_exact_at(bytes, offset).map_err(io(
        "Reading a layer file",
        format!("{} bytes at {offset}", bytes.len()),
    ))
}

/// Writes a layer with the given pages of a memory that lies in `parts`, one after the other, each
/// of whole pages; pages that are all zeros are named but not stored. Returns the index.
///
/// # Errors
/// When the pages are more or further than a layer can hold, or from `out`.
pub fn write_layer(
    parts: &[&[u8]],
    ranges: &[Range],
    out: &mut impl Write,
) -> Result<LayerIndex, MemoryError> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let named = ranges.iter().flat_map(|r| r.first..r.end);
    let stored = |n| !is_zero(piece(parts, n * UNIT, UNIT));
    let runs = named.map(|n| (n, 1, stored(n)));
    let index = LayerIndex::new(bytes as u64 / UNIT, runs)?;
    let mut put = |bytes: &[u8]| {
        out.write_all(bytes)
            .map_err(io("Writing a layer file", format!("{} bytes", bytes.len())))
    };
    put(&index.encode())?;
    let mut sums = Vec::new();
    for extent in index.extents().iter().filter(|e| e.data.is_some()) {
        let (mut at, end) = (extent.first * UNIT, extent.end() * UNIT);
        while at < end {
            let run = piece(parts, at, end - at);
            if run.is_empty() {
                break;
            }
            put(run)?;
            sums.extend(run.chunks(PAGE).map(unit_sum));
            at += run.len() as u64;
        }
    }
    put(&LayerSums::new(sums).encode())?;
    Ok(index)
}

/// At most `len` bytes at `offset` of what the parts make together, as far as one part has them.
fn piece<'a>(parts: &[&'a [u8]], offset: u64, len: u64) -> &'a [u8] {
    let mut from = usize::try_from(offset).unwrap_or(usize::MAX);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    for part in parts {
        if let Some(rest) = part.get(from..).filter(|rest| !rest.is_empty()) {
            return &rest[..len.min(rest.len())];
        }
        from -= part.len();
    }
    &[]
}

/// Whether every byte is zero, eight at a time.
fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<8>();
    words.iter().all(|w| *w == [0; 8]) && rest.iter().all(|b| *b == 0)
}
