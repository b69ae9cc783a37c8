//! Layer files: reading their pages.

use crate::error::{MemoryError, io};
use snapshot_format::{FormatError, LayerIndex, LayerSums, UNIT};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A checked layer file.
#[derive(Debug)]
pub struct LayerFile {
    index: LayerIndex,
    file: File,
}

impl LayerFile {
    /// Reads and checks the index of a layer file.
    ///
    /// # Errors
    /// [`MemoryError::Format`] when it is not one or is cut off, or the system's error.
    pub fn open(file: File) -> Result<Self, MemoryError> {
        let part = |bytes: &mut [u8], at| read(&file, bytes, at);
        let index = LayerIndex::read(length(&file)?, part, MemoryError::Format)?;
        Ok(Self { index, file })
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
        let found = length(&self.file)?.saturating_sub(self.index.file_len());
        let mut bytes = vec![0; usize::try_from(len.min(found)).unwrap_or(0)];
        read(&self.file, &mut bytes, self.index.file_len())?;
        Ok(LayerSums::parse(&bytes, &self.index)?)
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
            if extent.slot.is_some() {
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
            let data = extent.data_of(unit).ok_or_else(missing)?;
            let run = (end.min(extent.end()) - unit).min(buffer.len() as u64 / UNIT);
            let bytes = usize::try_from(run * UNIT).unwrap_or(0);
            read(&self.file, &mut buffer[..bytes], data)?;
            put(unit * UNIT, &buffer[..bytes])
                .map_err(io("Writing pages", format!("{run} from page {unit}")))?;
            unit += run;
        }
        Ok(())
    }
}

fn length(file: &File) -> Result<u64, MemoryError> {
    let meta = file.metadata();
    Ok(meta.map_err(io("Asking a layer file", "its size"))?.len())
}

fn read(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), MemoryError> {
    file.read_exact_at(bytes, offset).map_err(io(
        "Reading a layer file",
        format!("{} bytes at {offset}", bytes.len()),
    ))
}
