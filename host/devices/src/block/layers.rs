//! Copying what a disk has changed into one flat layer.

use super::map::{BlockMap, BlockSource};
use crate::Contents;
use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes moved at a time where the kernel cannot copy between the files.
const CHUNK: usize = 1 << 20;

/// The changed blocks of one disk, when it was saved.
#[derive(Debug)]
pub(super) struct DiskLayers {
    pub(super) layer: Option<Arc<File>>,
    pub(super) parent: Option<Arc<File>>,
    pub(super) map: BlockMap,
    pub(super) size: u64,
}

impl Contents for DiskLayers {
    /// Blocks that differ from the image.
    fn blocks(&self) -> u64 {
        self.map.held().map(|run| run.end - run.start).sum()
    }

    /// `to` becomes the flat layer that the saved state describes: as long as the disk, each
    /// changed block at its place, holes elsewhere and where the guest discarded.
    fn write_to(&self, to: &File) -> io::Result<u64> {
        if seek(to, SeekFrom::End(0))? != 0 {
            let what = "A disk layer can only be written into an empty file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        to.set_len(self.size)?;
        let mut at = 0;
        while at < self.size {
            let run = self.map.run(at, self.size - at);
            let from = match run.source {
                BlockSource::Layer => self.layer.as_deref(),
                BlockSource::Parent => self.parent.as_deref(),
                BlockSource::Base | BlockSource::Zeros => None,
            };
            at += run.len;
            if let Some(from) = from {
                copy_data(from, to, run.offset, at)?;
            }
        }
        Ok(self.blocks())
    }
}

/// Copies the bytes from `start` to `end` except holes.
fn copy_data(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No data behind; a file that is too short is one, too, and must not pass for zeros.
            Err(Errno::NXIO) => return long_enough(from, end),
            Err(error) => return Err(error.into()),
        };
        if data >= end {
            break;
        }
        let hole = seek(from, SeekFrom::Hole(data))?.min(end);
        copy(from, to, data, hole)?;
        at = hole;
    }
    long_enough(from, end)
}

fn long_enough(file: &File, end: u64) -> io::Result<()> {
    if seek(file, SeekFrom::End(0))? < end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn copy(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let (mut from_at, mut to_at) = (at, at);
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), left) {
            // As some file systems do instead of failing.
            Ok(0) => return copy_by_hand(from, to, at, end),
            Ok(copied) => at += u64::try_from(copied).unwrap_or(0),
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_by_hand(from, to, at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn copy_by_hand(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(CHUNK);
        let part = &mut buffer[..left.min(CHUNK)];
        from.read_exact_at(part, at)?;
        to.write_all_at(part, at)?;
        at += u64::try_from(part.len()).unwrap_or(0);
    }
    Ok(())
}
