//! Images on the disk: what outlives this server, also when it crashes.
//!
//! Each image is a manifest in the store, with a record that says whose it is. The layers of a base
//! memory are stored once, however many images are over it. Everything here blocks: call it away
//! from the runtime.

use crate::error::EngineError;
use crate::facts::KeptState;
use crate::files;
use crate::image::base_memory::BaseMemory;
use crate::image::machine_image::{AgentLink, MachineImage, MachineShape};
use crate::image::pager::LONGEST;
use crate::owner::OwnerId;
use crate::store::ledger::StoredBytes;
use crate::store::load_weight::LoadWeight;
use snapshot_format::{BaseImage, BlobRef, Digest, GuestShape, MANIFEST_VERSION, Manifest};
use snapshot_memory::MemoryError;
use snapshot_store::{BlobLease, SnapshotId, SnapshotStore, StoreError};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Most bytes of a record.
const MAX_RECORD: u64 = 4 << 20;
/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// Why an image could not be kept, or had back.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The store, or a blob in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file that is to be kept, or to be made.
    #[error("{what}")]
    File {
        /// What was tried, a gerund and its object.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Its memory could not be put together.
    #[error("Its memory could not be put together")]
    Memory(#[from] MemoryError),
    /// The manifest or record is well-formed and wrong.
    #[error("What is stored of it is not valid: {0}")]
    Invalid(String),
    /// The image under its disk is another one.
    #[error(
        "The image {name:?} under its disk has changed since: it had {wanted_size} bytes and was \
         last changed at {wanted_ns} ns since 1970, now {found_size} bytes and {found_ns} ns"
    )]
    Base {
        /// The template's name.
        name: String,
        /// Bytes then.
        wanted_size: u64,
        /// Last change then.
        wanted_ns: u64,
        /// Bytes now.
        found_size: u64,
        /// Last change now.
        found_ns: u64,
    },
    /// There is no memory for what has to be loaded.
    #[error(transparent)]
    NotAdmitted(EngineError),
    /// The task that does it broke.
    #[error("The work was given up")]
    GivenUp,
}

/// Images on a disk.
#[derive(Debug)]
pub struct ImageVault {
    store: SnapshotStore,
    /// Where private files are made.
    layers: PathBuf,
    /// Whether memory that is not resident may stay so.
    lazy: bool,
    /// Memories that are in use, by their layers.
    base_memories: Mutex<HashMap<Vec<Digest>, Weak<BaseMemory>>>,
    /// Held while a memory is put together or stored, so that none is twice.
    making: Mutex<()>,
    sweeping: Mutex<()>,
    swept: AtomicBool,
    stored: StoredBytes,
}

/// What is stored under a name, without the machine itself.
#[derive(Debug)]
pub struct StoredHeader {
    /// Its name.
    pub id: SnapshotId,
    /// Its owner's words.
    pub record: Vec<u8>,
    /// The machine's size.
    pub shape: MachineShape,
    /// What is stored for it and not for its base memory.
    pub blobs: Vec<BlobRef>,
}

impl ImageVault {
    /// Opens the store in `folder`, made if need be; files of its machines are made in `layers`.
    /// With `lazy` it leaves memory that nobody uses where it is: a pager can bring it.
    ///
    /// # Errors
    /// As [`SnapshotStore::open`].
    pub fn open(folder: &Path, layers: &Path, lazy: bool) -> Result<Self, VaultError> {
        Ok(Self {
            store: SnapshotStore::open(folder)?,
            layers: layers.to_owned(),
            lazy,
            base_memories: Mutex::default(),
            making: Mutex::default(),
            sweeping: Mutex::default(),
            swept: AtomicBool::new(false),
            stored: StoredBytes::default(),
        })
    }

    /// Keeps an image under a name, or of its memory nothing, with its record, for an owner. It is
    /// on the disk when this returns. What was there under this name is replaced. What is stored
    /// for it and not for its base memory.
    ///
    /// # Errors
    /// When the disk refuses; then what was there before is kept.
    pub fn put(
        &self,
        (id, owner): (&SnapshotId, Option<&OwnerId>),
        (image, kept): (&MachineImage, KeptState),
        base: &BaseImage,
        record: &[u8],
    ) -> Result<Vec<BlobRef>, VaultError> {
        if record.len() as u64 > MAX_RECORD {
            let text = format!("a record of {} bytes is over {MAX_RECORD}", record.len());
            return Err(VaultError::Invalid(text));
        }
        let base_memory = match kept {
            KeptState::Memory => Some(self.put_base_memory(&image.base_memory)?),
            KeptState::Files => None,
        };
        let mut leases = Vec::new();
        let mut whole = |file: &File| -> Result<BlobRef, VaultError> {
            let (blob, lease) = self.copy_in(file)?;
            leases.push(lease);
            Ok(blob)
        };
        let delta = image.delta.as_deref().filter(|_| base_memory.is_some());
        let delta = delta.map(&mut whole).transpose()?;
        let machine = whole(&image.state)?;
        let mut disk = self.store.write_blob()?;
        snapshot_store::pack(&image.disk, image.shape.disk_size, &mut disk)?;
        let (disk, _disk) = disk.finish()?;
        let mut words = self.store.write_blob()?;
        words.write_all(record).map_err(file("Writing a record"))?;
        let (record, _record) = words.finish()?;
        let layers = base_memory.iter().flat_map(|(blobs, _)| blobs).cloned();
        let manifest = Manifest {
            manifest_version: MANIFEST_VERSION,
            wire_version: wire::PROTOCOL_VERSION,
            guest: GuestShape {
                vcpus: image.shape.vcpus,
                memory_mib: image.shape.memory_mib,
                disk_size: image.shape.disk_size,
            },
            machine,
            memory: delta.into_iter().chain(layers).collect(),
            disk: vec![disk],
            base: base.clone(),
            record: Some(record),
        };
        self.store.replace(id, &manifest)?;
        self.stored.note(id.as_str(), owner, all_blobs(&manifest));
        Ok(own_blobs(&manifest))
    }

    /// The layers of a base memory in the store, written there if they are not yet.
    fn put_base_memory(
        &self,
        base_memory: &Arc<BaseMemory>,
    ) -> Result<(Vec<BlobRef>, BlobLease), VaultError> {
        let _one = lock(&self.making);
        if let Some(stored) = base_memory.stored() {
            return Ok(stored);
        }
        let mut blobs = Vec::new();
        // These keep them until all are there.
        let mut leases = Vec::new();
        for layer in base_memory.layers() {
            let (blob, lease) = self.copy_in(layer)?;
            blobs.push(blob);
            leases.push(lease);
        }
        let lease = self.store.lease(&blobs);
        base_memory.note_stored(blobs.clone(), lease.clone());
        self.remember(&blobs, base_memory);
        Ok((blobs, lease))
    }

    fn remember(&self, blobs: &[BlobRef], base_memory: &Arc<BaseMemory>) {
        let mut known = lock(&self.base_memories);
        known.retain(|_, base_memory| base_memory.strong_count() > 0);
        known.insert(digests(blobs), Arc::downgrade(base_memory));
    }

    /// The whole of a file as a blob.
    fn copy_in(&self, from: &File) -> Result<(BlobRef, BlobLease), VaultError> {
        let mut blob = self.store.write_blob()?;
        let (mut buffer, mut at) = (vec![0; CHUNK], 0);
        loop {
            let n = from
                .read_at(&mut buffer, at)
                .map_err(file("Reading what was saved"))?;
            if n == 0 {
                return Ok(blob.finish()?);
            }
            at += n as u64;
            blob.write_all(&buffer[..n])
                .map_err(file("Writing to the store"))?;
        }
    }

    /// Has an image back, everything in it checked against its digest; without its memory if only
    /// files are asked for. `base` is the image under its disk as it is now; `own` says what is
    /// wrong with the record, which may be another's; `admit` whether there is memory for what has
    /// to be loaded, before it is.
    ///
    /// # Errors
    /// What is missing, damaged or changed, or why it is not admitted.
    pub fn get(
        &self,
        id: &SnapshotId,
        (kept, base): (KeptState, &BaseImage),
        own: impl FnOnce(&StoredHeader) -> Result<(), String>,
        admit: impl FnOnce(LoadWeight) -> Result<(), EngineError>,
    ) -> Result<MachineImage, VaultError> {
        let (manifest, _lease) = self.store.load(id)?;
        own(&self.header_of(id, &manifest)?).map_err(VaultError::Invalid)?;
        check_base(&manifest.base, base)?;
        if manifest.wire_version != wire::PROTOCOL_VERSION {
            return Err(VaultError::Invalid(format!(
                "its agent speaks wire version {}, this server {}",
                manifest.wire_version,
                wire::PROTOCOL_VERSION
            )));
        }
        let shape = shape(&manifest);
        let (delta, layers) = match manifest.memory.as_slice() {
            _ if kept == KeptState::Files => (None, &[][..]),
            [] => return Err(VaultError::Invalid("its memory was not kept".into())),
            [delta, layers @ ..] if !layers.is_empty() => (Some(delta), layers),
            all => (None, all),
        };
        let in_use = self.in_use(layers).is_some();
        let cold = self.lazy && manifest.memory.len() <= LONGEST && !in_use;
        let weight = match kept {
            KeptState::Memory => LoadWeight::of(&manifest.memory, in_use, cold),
            KeptState::Files => LoadWeight::default(),
        };
        admit(weight).map_err(VaultError::NotAdmitted)?;
        let checked = |blob: &BlobRef| -> Result<Arc<File>, VaultError> {
            Ok(Arc::new(self.store.open_blob(blob)?))
        };
        let [disk] = manifest.disk.as_slice() else {
            let count = manifest.disk.len();
            return Err(VaultError::Invalid(format!("{count} disk layers, not 1")));
        };
        let flat = files::unnamed(&self.layers).map_err(file("Making a disk layer"))?;
        let flat = File::from(flat);
        snapshot_store::unpack(&*checked(disk)?, shape.disk_size, &flat)?;
        // All layers are one memory then, over which the machine is saved next.
        let (delta, layers) = match delta {
            Some(_) if cold => (None, manifest.memory.as_slice()),
            delta => (delta, layers),
        };
        Ok(MachineImage {
            delta: delta.map(checked).transpose()?,
            state: checked(&manifest.machine)?,
            base_memory: self.base_memory(shape, layers, checked)?,
            disk: Arc::new(flat),
            shape,
            link: AgentLink::Broken,
        })
    }

    fn in_use(&self, layers: &[BlobRef]) -> Option<Arc<BaseMemory>> {
        lock(&self.base_memories).get(&digests(layers))?.upgrade()
    }

    /// The memory that these layers make: one that is in use, or a new one. Of none, one of zeros.
    fn base_memory(
        &self,
        shape: MachineShape,
        layers: &[BlobRef],
        checked: impl Fn(&BlobRef) -> Result<Arc<File>, VaultError>,
    ) -> Result<Arc<BaseMemory>, VaultError> {
        if layers.is_empty() {
            return Ok(Arc::new(BaseMemory::merge(shape.pages(), Vec::new())?));
        }
        let _one = lock(&self.making);
        if let Some(base_memory) = self.in_use(layers) {
            return Ok(base_memory);
        }
        let files = layers.iter().map(checked).collect::<Result<Vec<_>, _>>()?;
        let base_memory = match self.lazy {
            true => Arc::new(BaseMemory::cold(shape.pages(), files)),
            false => Arc::new(BaseMemory::merge(shape.pages(), files)?),
        };
        base_memory.note_stored(layers.to_vec(), self.store.lease(layers));
        self.remember(layers, &base_memory);
        Ok(base_memory)
    }

    /// What is stored under names that begin with `prefix`; what cannot be read is logged and left
    /// alone.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn list(&self, prefix: &str) -> Result<Vec<StoredHeader>, VaultError> {
        let mut all = Vec::new();
        for id in self.names(prefix)? {
            match self.header(&id) {
                Ok(header) => all.push(header),
                Err(error) => {
                    let error = crate::error::chain(&error);
                    tracing::error!(snapshot = %id, error, "a stored machine cannot be read");
                }
            }
        }
        Ok(all)
    }

    /// What is stored under one name.
    ///
    /// # Errors
    /// There is nothing, or it cannot be read.
    pub fn header(&self, id: &SnapshotId) -> Result<StoredHeader, VaultError> {
        let (manifest, _lease) = self.store.load(id)?;
        self.header_of(id, &manifest)
    }

    fn header_of(&self, id: &SnapshotId, manifest: &Manifest) -> Result<StoredHeader, VaultError> {
        let none = || VaultError::Invalid("it has no record".into());
        let blob = manifest.record.as_ref().ok_or_else(none)?;
        if blob.size > MAX_RECORD {
            let text = format!("a record of {} bytes is over {MAX_RECORD}", blob.size);
            return Err(VaultError::Invalid(text));
        }
        let mut record = Vec::new();
        let mut from = self.store.open_blob(blob)?.take(MAX_RECORD);
        from.read_to_end(&mut record)
            .map_err(file("Reading a record"))?;
        Ok(StoredHeader {
            id: id.clone(),
            record,
            shape: shape(manifest),
            blobs: own_blobs(manifest),
        })
    }

    /// The names that begin with `prefix`, also of what cannot be read.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn names(&self, prefix: &str) -> Result<Vec<SnapshotId>, VaultError> {
        let mut names = self.store.list()?;
        names.retain(|id| id.as_str().starts_with(prefix));
        Ok(names)
    }

    /// Forgets what is under this name, if there is anything.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, id: &SnapshotId) -> Result<(), VaultError> {
        match self.store.remove(id) {
            Err(StoreError::NoSnapshot(_)) | Ok(()) => {
                self.stored.forget(id.as_str());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Bytes of all that is stored, and of what is this owner's.
    #[must_use]
    pub fn used(&self, owner: Option<&OwnerId>) -> (u64, u64) {
        self.stored.used(owner)
    }

    /// Counts what an earlier server stored, for those that `owner` names. The bytes of all.
    pub fn count_all(&self, owner: impl Fn(&SnapshotId) -> Option<OwnerId>) -> u64 {
        for id in self.store.list().unwrap_or_default() {
            // What cannot be read was logged when it was looked for.
            if let Ok((manifest, _lease)) = self.store.load(&id) {
                let blobs = all_blobs(&manifest);
                self.stored.note(id.as_str(), owner(&id).as_ref(), blobs);
            }
        }
        self.used(None).0
    }

    /// Removes the blobs that nobody needs any more. Calls that come while one runs are served by
    /// it, or by one more run.
    pub fn collect_garbage(&self) {
        self.swept.store(false, SeqCst);
        let _one = lock(&self.sweeping);
        if self.swept.swap(true, SeqCst) {
            return;
        }
        match self.store.collect_garbage() {
            Ok(collected) => tracing::debug!(?collected, "store swept"),
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::error!(error, "the store was not swept: it grows");
            }
        }
    }
}

/// How an image file looks now.
///
/// # Errors
/// When it cannot be looked at.
pub fn look(name: &str, path: &Path) -> Result<BaseImage, VaultError> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).map_err(file("Looking at the image under its disk"))?;
    let seconds = u64::try_from(meta.mtime()).unwrap_or(0);
    let rest = u64::try_from(meta.mtime_nsec()).unwrap_or(0);
    Ok(BaseImage {
        name: name.to_owned(),
        size: meta.len(),
        modified_ns: seconds.saturating_mul(1_000_000_000).saturating_add(rest),
    })
}

fn check_base(wanted: &BaseImage, found: &BaseImage) -> Result<(), VaultError> {
    if wanted == found {
        return Ok(());
    }
    Err(VaultError::Base {
        name: wanted.name.clone(),
        wanted_size: wanted.size,
        wanted_ns: wanted.modified_ns,
        found_size: found.size,
        found_ns: found.modified_ns,
    })
}

/// All that a manifest names.
fn all_blobs(manifest: &Manifest) -> impl Iterator<Item = &BlobRef> {
    let memory = manifest.memory.iter().chain(&manifest.disk);
    memory.chain([&manifest.machine]).chain(&manifest.record)
}

/// What a manifest names beside the layers of a base memory.
fn own_blobs(manifest: &Manifest) -> Vec<BlobRef> {
    let memory = match manifest.memory.as_slice() {
        [delta, _, ..] => std::slice::from_ref(delta),
        all => all,
    };
    let rest = manifest.disk.iter().chain(&manifest.record);
    let all = memory.iter().chain([&manifest.machine]).chain(rest);
    all.cloned().collect()
}

fn shape(manifest: &Manifest) -> MachineShape {
    MachineShape {
        vcpus: manifest.guest.vcpus,
        memory_mib: manifest.guest.memory_mib,
        disk_size: manifest.guest.disk_size,
    }
}

fn digests(blobs: &[BlobRef]) -> Vec<Digest> {
    blobs.iter().map(|blob| blob.digest).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is behind these locks is left half-done by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file(what: &'static str) -> impl FnOnce(std::io::Error) -> VaultError {
    move |source| VaultError::File { what, source }
}

#[cfg(test)]
mod test {
    use super::*;

    fn layers(sizes: &[u64]) -> Vec<BlobRef> {
        let layer = |size: &u64| BlobRef {
            digest: Digest([0; 32]),
            size: *size,
        };
        sizes.iter().map(layer).collect()
    }

    #[test]
    fn what_is_in_memory_already_is_not_weighed() {
        let weighed = |sizes: &[u64], in_use, cold| {
            let weight = LoadWeight::of(&layers(sizes), in_use, cold);
            [weight.machine(), weight.base_memory(), weight.merged()]
        };
        // A machine over a base memory of two layers, nobody else there: merged it is there twice.
        assert_eq!(weighed(&[1, 20, 300], false, false), [321, 320, 641]);
        assert_eq!(weighed(&[1, 20, 300], true, false), [1, 0, 321]);
        // All of its memory is one layer: there is nothing to merge.
        assert_eq!(weighed(&[300], false, false), [300, 300, 300]);
        assert_eq!(weighed(&[300], true, false), [0, 0, 0]);
        // A pager brings it: all layers are the base memory, whatever is over it.
        assert_eq!(weighed(&[1, 20, 300], false, true), [321, 321, 321]);
    }
}
