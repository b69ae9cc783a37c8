//! Snapshots: restore points of sandboxes that outlive them, with the record of each.

use crate::error::chain;
use crate::facts::{KeptState, SandboxOrigin};
use crate::process::{ProcessRecord, ProcessRecordV1};
use crate::restore_point::RestorePoint;
use crate::store::record::{bad_env, record_version};
use crate::store::restore_points::RestorePointCache;
use crate::store::vault::{ImageVault, StoredHeader};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use snapshot_store::{SnapshotId, StoreError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names of snapshots in the store begin with it.
const PREFIX: &str = "snapshot-";
/// [`SnapshotRecord::version`].
const VERSION: u32 = 2;
/// Most snapshots.
pub const MAX_SNAPSHOTS: usize = 1000;
/// Most characters of a name or tag.
pub const MAX_NAME: usize = 64;
/// Most processes that are read back.
const MAX_PROCESSES: usize = 4096;

/// A stored restore point that outlives its sandbox.
#[derive(Clone, Debug)]
pub struct SandboxSnapshot {
    /// `name:tag`.
    pub id: String,
    /// The sandbox it was taken of.
    pub sandbox_id: String,
    /// When.
    pub taken_at: Timestamp,
    /// What sandboxes that begin at it are said to be made from.
    pub origin: SandboxOrigin,
    /// What is kept.
    pub kept: KeptState,
    /// The variables that its sandbox was created with, which sandboxes that begin at it have too.
    pub env: BTreeMap<String, String>,
    /// The processes that clients had started.
    pub processes: Vec<ProcessRecord>,
    /// Its name in the store.
    pub stored: SnapshotId,
    /// Held by whoever loads it, so that it is not loaded twice at the same time.
    pub(crate) loading: Arc<tokio::sync::Mutex<()>>,
}

/// The record as it lies on the disk, JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotRecord {
    version: u32,
    id: String,
    sandbox_id: String,
    base: String,
    cpu_count: u8,
    memory_mb: u32,
    disk_size_mb: u64,
    files_only: bool,
    taken_at_us: i64,
    /// From version 2 on.
    #[serde(default, deserialize_with = "present")]
    env: Option<BTreeMap<String, String>>,
    processes: Vec<ProcessRecordV1>,
}

/// A field that may be missing, but not null.
fn present<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

impl SnapshotRecord {
    /// Of any version that this program knows.
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let text = |error: serde_json::Error| error.to_string();
        let version = record_version(bytes).map_err(text)?;
        if !(1..=VERSION).contains(&version) {
            return Err(format!(
                "its version is {version}, this program reads up to {VERSION}"
            ));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(text)?;
        if record.env.is_some() == (version == 1) {
            return Err(format!(
                "version {version} of a record has variables, or none, where another one has"
            ));
        }
        Ok(record)
    }
}

/// All snapshots by id, and the last ones that sandboxes began at.
#[derive(Debug)]
pub struct SnapshotIndex {
    all: Mutex<BTreeMap<String, Arc<SandboxSnapshot>>>,
    recent: Mutex<RestorePointCache<Arc<SandboxSnapshot>>>,
}

impl SnapshotIndex {
    /// Those that a vault has; what cannot be read is logged and left alone.
    #[must_use]
    pub fn new(vault: &ImageVault) -> Self {
        let headers = vault.list(PREFIX).unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::error!(error, "snapshots are not there: the store cannot be listed");
            Vec::new()
        });
        let mut all = BTreeMap::new();
        for header in headers {
            match SandboxSnapshot::decode(&header) {
                Ok(found) => drop(all.insert(found.id.clone(), Arc::new(found))),
                Err(why) => {
                    tracing::error!(snapshot = %header.id, error = why, "a snapshot is not there");
                }
            }
        }
        Self {
            all: Mutex::new(all),
            recent: Mutex::default(),
        }
    }

    /// The newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<SandboxSnapshot>> {
        let mut all: Vec<_> = lock(&self.all).values().cloned().collect();
        all.sort_by(|a, b| b.taken_at.cmp(&a.taken_at).then_with(|| a.id.cmp(&b.id)));
        all
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.all).len()
    }

    /// The one of this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Arc<SandboxSnapshot>> {
        lock(&self.all).get(id).cloned()
    }

    /// Adds one that is stored, in the place of one of this id.
    pub fn insert(&self, snapshot: Arc<SandboxSnapshot>) {
        lock(&self.all).insert(snapshot.id.clone(), snapshot);
    }

    /// Takes one out.
    pub fn remove(&self, id: &str) {
        lock(&self.all).remove(id);
        lock(&self.recent).forget(|own| own.id == id);
    }

    /// What sandboxes of this very snapshot begin at, if one did lately.
    #[must_use]
    pub fn ready(&self, snapshot: &Arc<SandboxSnapshot>) -> Option<Arc<RestorePoint>> {
        lock(&self.recent).get(|own| Arc::ptr_eq(own, snapshot))
    }

    /// Keeps what sandboxes of this snapshot begin at.
    pub fn keep_ready(&self, snapshot: &Arc<SandboxSnapshot>, point: &Arc<RestorePoint>) {
        lock(&self.recent).put(Arc::clone(snapshot), point);
    }
}

impl SandboxSnapshot {
    /// The record to store.
    ///
    /// # Errors
    /// When it does not encode.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&SnapshotRecord {
            version: VERSION,
            id: self.id.clone(),
            sandbox_id: self.sandbox_id.clone(),
            base: self.origin.base.clone(),
            cpu_count: self.origin.cpu_count,
            memory_mb: self.origin.memory_mb,
            disk_size_mb: self.origin.disk_size_mb,
            files_only: self.kept == KeptState::Files,
            taken_at_us: self.taken_at.as_microsecond(),
            env: Some(self.env.clone()),
            processes: self.processes.iter().map(Into::into).collect(),
        })
    }

    /// Reads a record; what passes is a snapshot that this server could have taken.
    fn decode(header: &StoredHeader) -> Result<Self, String> {
        let record = SnapshotRecord::read(&header.record)?;
        let own = stored_name(&record.id).is_ok_and(|own| own == header.id);
        if !own || snapshot_id(&record.id).as_ref() != Some(&record.id) {
            return Err("its id is not of its name".into());
        }
        let (size, shape) = (
            (record.cpu_count, record.memory_mb, record.disk_size_mb),
            header.shape,
        );
        if size != (shape.vcpus, shape.memory_mib, shape.disk_size >> 20) {
            return Err(format!("it says {size:?} of a machine of {shape:?}"));
        }
        if record.processes.len() > MAX_PROCESSES {
            return Err(format!("it has {} processes", record.processes.len()));
        }
        let env = record.env.unwrap_or_default();
        if let Some(why) = bad_env(&env) {
            return Err(why);
        }
        let taken_at = Timestamp::from_microsecond(record.taken_at_us);
        Ok(Self {
            origin: SandboxOrigin {
                template_id: record.id.clone(),
                base: record.base,
                alias: None,
                cpu_count: record.cpu_count,
                memory_mb: record.memory_mb,
                disk_size_mb: record.disk_size_mb,
                forked: false,
            },
            id: record.id,
            sandbox_id: record.sandbox_id,
            taken_at: taken_at.map_err(|error| error.to_string())?,
            kept: match record.files_only {
                true => KeptState::Files,
                false => KeptState::Memory,
            },
            env,
            processes: record.processes.into_iter().map(Into::into).collect(),
            stored: header.id.clone(),
            loading: Arc::default(),
        })
    }
}

/// What is wrong with the record of a snapshot.
///
/// # Errors
/// That, in words.
pub fn readable(header: &StoredHeader) -> Result<(), String> {
    SandboxSnapshot::decode(header).map(drop)
}

/// `name:tag` out of what clients write: `name`, `name:tag`, `namespace/name:tag`.
#[must_use]
pub fn snapshot_id(text: &str) -> Option<String> {
    let good = |part: &str| {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
        !part.is_empty() && part.len() <= MAX_NAME && part.bytes().all(good)
    };
    let name = match text.split_once('/') {
        Some((namespace, name)) if good(namespace) => name,
        Some(_) => return None,
        None => text,
    };
    let (name, tag) = match name.split_once(':') {
        None | Some((_, "latest")) => (name.trim_end_matches(":latest"), "default"),
        Some(both) => both,
    };
    (good(name) && good(tag)).then(|| format!("{name}:{tag}"))
}

/// The store's names have fewer characters than a snapshot's.
///
/// # Errors
/// [`StoreError::Name`], which no id of [`snapshot_id`] gives.
pub fn stored_name(id: &str) -> Result<SnapshotId, StoreError> {
    let hash = hex::encode(&Sha256::digest(id)[..16]);
    SnapshotId::new(&format!("{PREFIX}{hash}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod test {
    use super::snapshot_id;

    #[test]
    fn names_are_read_in_all_their_forms() {
        for (text, id) in [
            ("a", Some("a:default")),
            ("a:latest", Some("a:default")),
            ("a:b", Some("a:b")),
            ("team/a:b", Some("a:b")),
            ("", None),
            ("a:", None),
            (":b", None),
            ("a:b:c", None),
            ("/a", None),
            ("A", None),
            ("a/b/c", None),
            ("../a", None),
        ] {
            assert_eq!(snapshot_id(text).as_deref(), id, "{text:?}");
        }
    }
}
