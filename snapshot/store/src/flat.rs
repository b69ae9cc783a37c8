//! Flat layers: sparse files in which each block is at its place, and the blobs they become.
//!
//! A running machine wants the flat form, which needs no index; a store wants one without holes.

use crate::error::{StoreError, io};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use snapshot_format::{FormatError, LayerIndex, UNIT};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// Writes a flat layer of a whole of `size` bytes as a layer file. Holes are left out.
///
/// # Errors
/// When the file is longer than `size`, has more pieces than a layer may have, or from the disk.
pub fn pack(flat: &File, size: u64, out: &mut impl Write) -> Result<LayerIndex, StoreError> {
    let place = Path::new("a flat layer");
    let runs = pieces(flat).map_err(io("Finding the data of", place))?;
    let index = LayerIndex::new(size.div_ceil(UNIT), runs).map_err(refused)?;
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(io("Packing", place));
    let (header, table) = index.encode();
    put(&header)?;
    for extent in index.extents() {
        copy(
            extent.first * UNIT,
            u64::from(extent.units) * UNIT,
            |at, bytes| {
                // The last block may be cut off by the end of the file.
                bytes.fill(0);
                let mut done = 0;
                while done < bytes.len() {
                    match flat.read_at(&mut bytes[done..], at + done as u64) {
                        Ok(0) => break,
                        Ok(n) => done += n,
                        Err(error) => return Err(io("Reading", place)(error)),
                    }
                }
                put(bytes)
            },
        )?;
    }
    put(&table)?;
    Ok(index)
}

/// Writes the blocks of a layer file to their places in `flat`, which is empty, for a whole of
/// `size` bytes.
///
/// # Errors
/// When `layer` is not a layer file of this size, or from the disk.
pub fn unpack(layer: &File, size: u64, flat: &File) -> Result<(), StoreError> {
    let file = Path::new("a layer file");
    let read = |bytes: &mut [u8], at| layer.read_exact_at(bytes, at).map_err(io("Reading", file));
    let there = layer.metadata().map_err(io("Measuring", file))?.len();
    let index = LayerIndex::read(there, read, refused)?;
    if index.units() != size.div_ceil(UNIT) {
        return Err(refused(FormatError::Invalid {
            what: "layer of a disk",
            value: format!("{} blocks for {size} bytes", index.units()),
        }));
    }
    for extent in index.extents() {
        let Some(data) = extent.data_of(extent.first) else {
            continue;
        };
        let first = extent.first * UNIT;
        copy(first, u64::from(extent.units) * UNIT, |at, bytes| {
            read(bytes, data + (at - first))?;
            flat.write_all_at(bytes, at).map_err(io("Unpacking", file))
        })?;
    }
    Ok(())
}

fn refused(source: FormatError) -> StoreError {
    StoreError::Format {
        id: "a layer".to_owned(),
        source,
    }
}

/// Hands out a buffer for each part of the range.
fn copy(
    first: u64,
    len: u64,
    mut part: impl FnMut(u64, &mut [u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut buffer = vec![0; usize::try_from(len.min(CHUNK)).unwrap_or(0)];
    let (mut at, end) = (first, first + len);
    while at < end {
        let bytes = usize::try_from((end - at).min(CHUNK)).unwrap_or(0);
        part(at, &mut buffer[..bytes])?;
        at += bytes as u64;
    }
    Ok(())
}

/// The blocks that hold data, as the file system tells.
fn pieces(flat: &File) -> std::io::Result<Vec<(u64, u32, bool)>> {
    let mut runs: Vec<(u64, u32, bool)> = Vec::new();
    let (mut at, mut block) = (0, 0);
    loop {
        let data = match seek(flat, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(runs),
            Err(error) => return Err(error.into()),
        };
        at = seek(flat, SeekFrom::Hole(data))?;
        // File systems may have smaller blocks than ours.
        let mut first = (data / UNIT).max(block);
        block = at.div_ceil(UNIT);
        while first < block {
            let units = u32::try_from(block - first).unwrap_or(u32::MAX);
            runs.push((first, units, true));
            first += u64::from(units);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_sparse_file_comes_back_with_its_holes() {
        let (flat, mut packed, again) = (file(), Vec::new(), file());
        let size = 64 << 20;
        flat.write_all_at(&[1; 4096], 0).unwrap();
        flat.write_all_at(&[2; 3 << 20], 16 << 20).unwrap();
        flat.write_all_at(b"end", size - 4096).unwrap();
        pack(&flat, size, &mut packed).unwrap();
        assert!(packed.len() < 4 << 20, "{} bytes", packed.len());
        let layer = file();
        layer.write_all_at(&packed, 0).unwrap();
        unpack(&layer, size, &again).unwrap();
        let whole = |mut file: &File| {
            let mut bytes = Vec::new();
            seek(file, SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            bytes.resize(64 << 20, 0);
            bytes
        };
        assert!(whole(&flat) == whole(&again));
        assert!(pieces(&again).unwrap().len() == 3);
        unpack(&layer, size * 2, &again).unwrap_err();
        layer.set_len(packed.len() as u64 - 1).unwrap();
        unpack(&layer, size, &again).unwrap_err();
    }

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }
}
