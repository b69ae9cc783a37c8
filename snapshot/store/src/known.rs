//! Digests of files that were hashed a short time ago, so that they are not read again for it.
//!
//! A snapshot is often used right after it was taken. What it is made of was hashed while it was
//! written; reading it again would compare the same cached bytes with the same name. So a digest is
//! remembered with the file that had it, for a short time: a disk forgets later than that. Every
//! blob's last change is said to be the [`EPOCH`]. Whoever writes to it afterwards moves that,
//! however soon.

use snapshot_format::Digest;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How long a file is trusted to have the bytes that were hashed.
const TRUSTED: Duration = Duration::from_mins(5);
/// When a blob was last changed.
const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

/// The digests of a store's files. Cloning gives another handle to the same table.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownDigests {
    files: Arc<Mutex<HashMap<Digest, HashedFile>>>,
}

#[derive(Clone, Copy, Debug)]
struct HashedFile {
    /// Device, inode, bytes.
    file: (u64, u64, u64),
    at: Instant,
}

impl KnownDigests {
    /// Remembers that this file's bytes have this digest, unless it was changed since it was
    /// finished.
    pub(crate) fn note(&self, digest: Digest, file: &Metadata) {
        if !untouched(file) {
            return;
        }
        let (file, at) = (which(file), Instant::now());
        let mut files = self.lock();
        files.retain(|_, hashed| hashed.at.elapsed() < TRUSTED);
        files.insert(digest, HashedFile { file, at });
    }

    /// Whether this file's bytes were hashed a short time ago and had this digest, and nobody has
    /// changed them.
    pub(crate) fn has(&self, digest: Digest, file: &Metadata) -> bool {
        let found = self.lock().get(&digest).copied();
        found.is_some_and(|h| h.at.elapsed() < TRUSTED && h.file == which(file)) && untouched(file)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, HashedFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says of a file that nobody is going to change it.
pub(crate) fn finish(file: &File) -> io::Result<()> {
    file.set_modified(EPOCH)
}

fn untouched(file: &Metadata) -> bool {
    file.modified().is_ok_and(|time| time == EPOCH)
}

fn which(file: &Metadata) -> (u64, u64, u64) {
    (file.dev(), file.ino(), file.len())
}
