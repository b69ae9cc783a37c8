//! The store itself.

use crate::blob::{BlobWriter, digest};
use crate::error::{StoreError, io};
use crate::folder::{entries, fresh, sync};
use crate::id::SnapshotId;
use crate::known::KnownDigests;
use crate::lease::{BlobLease, LeaseTable};
use rustix::fs::{FlockOperation, flock};
use snapshot_format::{BlobRef, Digest, MAX_MANIFEST, Manifest};
use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// An open store.
#[derive(Debug)]
pub struct SnapshotStore {
    blobs: PathBuf,
    manifests: PathBuf,
    tmp: PathBuf,
    leases: LeaseTable,
    known: KnownDigests,
    _lock: File,
}

/// What a garbage collection removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CollectedBlobs {
    /// Blobs.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl SnapshotStore {
    /// Opens the store at `root`, made if need be. Removes what a crash left half-written.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another process has it open, or the file system's error.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let folder = |name| {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(io("Creating", &path))?;
            Ok(path)
        };
        let (blobs, manifests, tmp) = (folder("blobs")?, folder("manifests")?, folder("tmp")?);
        let path = root.join("lock");
        let lock = File::create(&path).map_err(io("Creating", &path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::InUse(root.to_owned()))?;
        let store = Self {
            blobs,
            manifests,
            tmp,
            leases: LeaseTable::default(),
            known: KnownDigests::default(),
            _lock: lock,
        };
        // What is in there is the memory and the disks of others' machines.
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))
            .map_err(io("Closing to others", root))?;
        for entry in entries(&store.tmp)? {
            fs::remove_file(&entry).map_err(io("Removing", &entry))?;
        }
        Ok(store)
    }

    /// Begins a blob.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_blob(&self) -> Result<BlobWriter, StoreError> {
        let (leases, known) = (self.leases.clone(), self.known.clone());
        BlobWriter::create(&self.tmp, &self.blobs, leases, known)
    }

    /// Makes `manifest` a snapshot, with everything it names. The caller holds leases on its blobs
    /// until this returns.
    ///
    /// # Errors
    /// [`StoreError::Exists`], a missing blob, an invalid manifest, or the disk's refusal; then
    /// there is no such snapshot.
    pub fn publish(&self, id: &SnapshotId, manifest: &Manifest) -> Result<(), StoreError> {
        let place = self.manifests.join(id.as_str());
        if place.exists() {
            return Err(StoreError::Exists(id.to_string()));
        }
        self.replace(id, manifest)
    }

    /// The same, in the place of what has this name, if anything has. There is never none under it,
    /// nor a mixture, whenever the machine stops.
    ///
    /// # Errors
    /// A missing blob, an invalid manifest, or the disk's refusal; then all is as it was.
    pub fn replace(&self, id: &SnapshotId, manifest: &Manifest) -> Result<(), StoreError> {
        let format = |source| StoreError::Format {
            id: id.to_string(),
            source,
        };
        let bytes = manifest.encode().map_err(format)?;
        let _keep = self.leases.take(digests(manifest));
        for blob in blobs(manifest) {
            self.find(blob)?;
        }
        let place = self.manifests.join(id.as_str());
        let path = fresh(&self.tmp)?;
        let written = File::create_new(&path)
            .and_then(|mut f| f.write_all(&bytes).and_then(|()| f.sync_all()))
            .map_err(io("Writing", &path))
            .and_then(|()| fs::rename(&path, &place).map_err(io("Putting in place", &place)));
        if written.is_err() {
            let _ = fs::remove_file(&path);
        }
        written?;
        sync(&self.manifests)
    }

    /// The manifest of a snapshot, and a lease on everything it names.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`] or [`StoreError::Format`].
    pub fn load(&self, id: &SnapshotId) -> Result<(Manifest, BlobLease), StoreError> {
        let manifest = self.read(id)?;
        let lease = self.leases.take(digests(&manifest));
        // Removed or replaced before the lease began? Then its blobs may be collected already.
        if self.read(id)? != manifest {
            return self.load(id);
        }
        Ok((manifest, lease))
    }

    /// A lease on blobs that another lease or a manifest keeps while this is called.
    #[must_use]
    pub fn lease(&self, blobs: &[BlobRef]) -> BlobLease {
        self.leases.take(blobs.iter().map(|blob| blob.digest))
    }

    fn read(&self, id: &SnapshotId) -> Result<Manifest, StoreError> {
        let path = self.manifests.join(id.as_str());
        let file = match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(StoreError::NoSnapshot(id.to_string()));
            }
            other => other.map_err(io("Opening", &path))?,
        };
        let mut bytes = Vec::new();
        let limit = MAX_MANIFEST as u64 + 1;
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(io("Reading", &path))?;
        Manifest::parse(&bytes).map_err(|source| StoreError::Format {
            id: id.to_string(),
            source,
        })
    }

    /// Opens a blob that is what its name says: its bytes were hashed, now or at most five minutes
    /// ago by this store, and not changed since.
    ///
    /// # Errors
    /// [`StoreError::Digest`] or [`StoreError::Blob`].
    pub fn open_blob(&self, blob: &BlobRef) -> Result<File, StoreError> {
        let (file, before) = self.find(blob)?;
        if self.known.has(blob.digest, &before) {
            return Ok(file);
        }
        let path = self.path(blob);
        let found = digest(&file).map_err(io("Reading", &path))?;
        if found != blob.digest {
            return Err(StoreError::Digest {
                wanted: blob.digest,
                found,
            });
        }
        // Whoever has changed it meanwhile has moved its time.
        let after = file.metadata().map_err(io("Reading the size of", &path))?;
        self.known.note(blob.digest, &after);
        Ok(file)
    }

    /// The file of a blob, whose bytes may be others; only its size is checked.
    fn find(&self, blob: &BlobRef) -> Result<(File, Metadata), StoreError> {
        let damaged = |found: String| StoreError::Blob {
            digest: blob.digest,
            found,
            wanted: blob.size,
        };
        let path = self.path(blob);
        let file = match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(damaged("missing".to_owned())),
            other => other.map_err(io("Opening", &path))?,
        };
        let meta = file.metadata().map_err(io("Reading the size of", &path))?;
        if meta.len() != blob.size {
            return Err(damaged(format!("{} bytes long", meta.len())));
        }
        Ok((file, meta))
    }

    fn path(&self, blob: &BlobRef) -> PathBuf {
        self.blobs.join(blob.digest.to_string())
    }

    /// The names of all snapshots, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<SnapshotId>, StoreError> {
        let mut ids: Vec<_> = entries(&self.manifests)?
            .iter()
            .filter_map(|path| SnapshotId::new(path.file_name()?.to_str()?).ok())
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// Removes a snapshot. Its blobs stay until a collection finds them unused.
    ///
    /// # Errors
    /// [`StoreError::NoSnapshot`].
    pub fn remove(&self, id: &SnapshotId) -> Result<(), StoreError> {
        let path = self.manifests.join(id.as_str());
        match fs::remove_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(StoreError::NoSnapshot(id.to_string()))
            }
            other => other.map_err(io("Removing", &path)),
        }?;
        sync(&self.manifests)
    }

    /// Removes every blob that no manifest names and nobody leases.
    ///
    /// # Errors
    /// When a manifest cannot be read: then nothing is removed, since it might name anything.
    pub fn collect_garbage(&self) -> Result<CollectedBlobs, StoreError> {
        let leased = self.leases.lock();
        let mut named = HashSet::new();
        for id in self.list()? {
            match self.read(&id) {
                Ok(manifest) => named.extend(digests(&manifest)),
                Err(StoreError::NoSnapshot(_)) => {} // removed since it was listed
                Err(error) => return Err(error),
            }
        }
        let mut collected = CollectedBlobs::default();
        for path in entries(&self.blobs)? {
            let digest = path.file_name().and_then(|n| n.to_str()).map(str::to_owned);
            let digest = digest.and_then(|name| Digest::try_from(name).ok());
            if digest.is_some_and(|d| named.contains(&d) || leased.contains_key(&d)) {
                continue;
            }
            let size = fs::metadata(&path).map_or(0, |m| m.len());
            fs::remove_file(&path).map_err(io("Removing", &path))?;
            collected.blobs += 1;
            collected.bytes += size;
        }
        Ok(collected)
    }
}

fn blobs(manifest: &Manifest) -> impl Iterator<Item = &BlobRef> {
    let Manifest {
        machine,
        memory,
        disk,
        record,
        ..
    } = manifest;
    [machine]
        .into_iter()
        .chain(memory)
        .chain(disk)
        .chain(record)
}

fn digests(manifest: &Manifest) -> Vec<Digest> {
    blobs(manifest).map(|b| b.digest).collect()
}
