//! Writing a blob: its name is known only when its last byte is.

use crate::error::{StoreError, io};
use crate::folder::{fresh, sync};
use crate::known::{self, KnownDigests};
use crate::lease::{BlobLease, LeaseTable};
use snapshot_format::{BlobRef, Digest};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes hashed at a time: enough for a hash that works on many kilobytes at once, few enough for a
/// cache.
const CHUNK: usize = 256 << 10;

/// A blob that is being written. Dropped before [`BlobWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    file: File,
    path: PathBuf,
    blobs: PathBuf,
    leases: LeaseTable,
    known: KnownDigests,
    hash: blake3::Hasher,
    size: u64,
}

impl BlobWriter {
    pub(crate) fn create(
        tmp: &Path,
        blobs: &Path,
        leases: LeaseTable,
        known: KnownDigests,
    ) -> Result<Self, StoreError> {
        let path = fresh(tmp)?;
        let file = File::create_new(&path).map_err(io("Creating", &path))?;
        let blobs = blobs.to_owned();
        Ok(Self {
            file,
            path,
            blobs,
            leases,
            known,
            hash: blake3::Hasher::new(),
            size: 0,
        })
    }

    /// Makes the blob durable under its name, and keeps it from being collected while the lease
    /// lives. A blob that the store has already is not written twice.
    ///
    /// # Errors
    /// When the disk refuses; then nothing is left of it.
    pub fn finish(self) -> Result<(BlobRef, BlobLease), StoreError> {
        let done = known::finish(&self.file).and_then(|()| self.file.sync_all());
        let meta = done.and_then(|()| self.file.metadata());
        let meta = meta.map_err(io("Making durable", &self.path))?;
        let digest = Digest(self.hash.finalize().into());
        // The lease comes first: from here on no collection removes what is in place.
        let lease = self.leases.take([digest]);
        let place = self.blobs.join(digest.to_string());
        std::fs::rename(&self.path, &place).map_err(io("Putting in place", &place))?;
        sync(&self.blobs)?;
        self.known.note(digest, &meta);
        Ok((
            BlobRef {
                digest,
                size: self.size,
            },
            lease,
        ))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // gone already if it was put in place
    }
}

/// The digest of a whole file, wherever its position is.
pub(crate) fn digest(file: &File) -> io::Result<Digest> {
    let mut hash = blake3::Hasher::new();
    let (mut buffer, mut at) = (vec![0; CHUNK], 0);
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(Digest(hash.finalize().into())),
            Ok(n) => {
                hash.update(&buffer[..n]);
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
