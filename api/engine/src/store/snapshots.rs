//! Snapshots: restore points of sandboxes that outlive them, with the record of each. Each owner
//! has names of its own.

use crate::error::chain;
use crate::facts::{KeptState, SandboxOrigin};
use crate::owner::{Caller, OwnerId};
use crate::process::{ProcessRecord, ProcessRecordV1};
use crate::restore_point::RestorePoint;
use crate::store::record::{LAST_WITHOUT_OWNER, bad_env, record_owner, record_version};
use crate::store::restore_points::RestorePointCache;
use crate::store::vault::{ImageVault, StoredHeader};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use snapshot_store::{SnapshotId, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names of snapshots in the store begin with it.
const PREFIX: &str = "snapshot-";
/// [`SnapshotRecord::version`].
const VERSION: u32 = 3;
/// Most characters of a name or tag.
pub const MAX_NAME: usize = 64;
/// Most processes that are read back.
const MAX_PROCESSES: usize = 4096;

/// A stored restore point that outlives its sandbox.
#[derive(Clone, Debug)]
pub struct SandboxSnapshot {
    /// `name:tag`.
    pub id: String,
    /// Whose it is; `None`: everybody's, as an older version stored it.
    pub owner: Option<OwnerId>,
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
    /// From version 3 on.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    owner: Option<String>,
}

/// A field that may be missing, but not null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
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
        if record.owner.is_some() != (version >= 3) {
            return Err(format!(
                "version {version} of a record has an owner, or none, where another one has"
            ));
        }
        Ok(record)
    }
}

/// A snapshot's place in the index.
type OwnedName = (Option<OwnerId>, String);

#[derive(Debug, Default)]
struct IndexState {
    all: BTreeMap<OwnedName, Arc<SandboxSnapshot>>,
    /// About to be taken; a name that is there twice is taken twice.
    coming: Vec<OwnedName>,
}

/// A snapshot that is about to be taken. Dropped, its place is free again, or the snapshot's.
#[derive(Debug)]
pub struct SnapshotReservation {
    state: Arc<Mutex<IndexState>>,
    owner: OwnerId,
    id: String,
}

impl SnapshotReservation {
    /// Whose it will be, and its id.
    #[must_use]
    pub fn name(&self) -> (OwnerId, String) {
        (self.owner.clone(), self.id.clone())
    }
}

impl Drop for SnapshotReservation {
    fn drop(&mut self) {
        let place = (Some(self.owner.clone()), self.id.clone());
        let mut state = lock(&self.state);
        if let Some(at) = state.coming.iter().position(|own| *own == place) {
            state.coming.swap_remove(at);
        }
    }
}

impl IndexState {
    /// One that is found in the store. Where two have one place, since their owner has another name
    /// than it had, the newer one has it.
    fn insert(&mut self, found: Arc<SandboxSnapshot>) {
        let there = self.all.get(&found.place());
        if there.is_none_or(|there| there.taken_at < found.taken_at) {
            self.all.insert(found.place(), found);
        }
    }

    /// How many there are or will be, of this owner and of all.
    fn counts(&self, owner: &OwnerId) -> (usize, usize) {
        let there = |place: &&OwnedName| self.all.contains_key(*place);
        let coming: BTreeSet<_> = self.coming.iter().filter(|place| !there(place)).collect();
        let names = || self.all.keys().chain(coming.iter().copied());
        let own = names().filter(|(whose, _)| whose.as_ref() == Some(owner));
        (own.count(), names().count())
    }
}

/// All snapshots by owner and id, and the last ones that sandboxes began at.
#[derive(Debug)]
pub struct SnapshotIndex {
    state: Arc<Mutex<IndexState>>,
    recent: Mutex<RestorePointCache<Arc<SandboxSnapshot>>>,
}

impl SnapshotIndex {
    /// Those that a vault has, of whom `now` says that they are; what cannot be read is logged and
    /// left alone.
    #[must_use]
    pub fn new(vault: &ImageVault, now: impl Fn(OwnerId) -> OwnerId) -> Self {
        let headers = vault.list(PREFIX).unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::error!(error, "snapshots are not there: the store cannot be listed");
            Vec::new()
        });
        let mut state = IndexState::default();
        for header in headers {
            match SandboxSnapshot::decode(&header) {
                Ok(found) => {
                    let owner = found.owner.clone().map(&now);
                    state.insert(Arc::new(SandboxSnapshot { owner, ..found }));
                }
                Err(why) => {
                    tracing::error!(snapshot = %header.id, error = why, "a snapshot is not there");
                }
            }
        }
        Self {
            state: Arc::new(Mutex::new(state)),
            recent: Mutex::default(),
        }
    }

    /// Those of all owners, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<SandboxSnapshot>> {
        let mut all: Vec<_> = lock(&self.state).all.values().cloned().collect();
        all.sort_by(|a, b| b.taken_at.cmp(&a.taken_at).then_with(|| a.id.cmp(&b.id)));
        all
    }

    /// A place for a snapshot that is about to be taken, if `admit` says so of how many there are
    /// or will be, of its owner and of all; always, in the place of one that is there.
    ///
    /// # Errors
    /// What `admit` says.
    pub fn reserve<E>(
        &self,
        owner: &OwnerId,
        id: String,
        admit: impl FnOnce((usize, usize)) -> Result<(), E>,
    ) -> Result<SnapshotReservation, E> {
        let place = (Some(owner.clone()), id.clone());
        let mut state = lock(&self.state);
        let everybodys = (None, id.clone());
        let there = [&place, &everybodys].map(|place| state.all.contains_key(place));
        if there == [false; 2] && !state.coming.contains(&place) {
            admit(state.counts(owner))?;
        }
        state.coming.push(place);
        Ok(SnapshotReservation {
            state: Arc::clone(&self.state),
            owner: owner.clone(),
            id,
        })
    }

    /// The one of this id and owner, or else of this id and everybody's.
    #[must_use]
    pub fn find(&self, owner: Option<&OwnerId>, id: &str) -> Option<Arc<SandboxSnapshot>> {
        let state = lock(&self.state);
        let own = state.all.get(&(owner.cloned(), id.to_owned()));
        let found = own.or_else(|| state.all.get(&(None, id.to_owned())));
        found.cloned()
    }

    /// The one of this id that the caller means: its own, everybody's, or for an admin another's.
    ///
    /// # Errors
    /// How many others have one, if that is more than one.
    pub fn find_for(&self, who: &Caller, id: &str) -> Result<Option<Arc<SandboxSnapshot>>, usize> {
        if let Some(own) = self.find(Some(&who.owner), id) {
            return Ok(Some(own));
        }
        let mut others = self.list();
        others.retain(|other| other.id == id && who.sees(other.owner.as_ref()));
        match others.len() {
            0 | 1 => Ok(others.pop()),
            many => Err(many),
        }
    }

    /// Adds one that is stored, in the place of those of this id that are its owner's or
    /// everybody's, which it gives back.
    pub fn insert(&self, snapshot: Arc<SandboxSnapshot>) -> Vec<Arc<SandboxSnapshot>> {
        let mut state = lock(&self.state);
        let everybodys = state.all.remove(&(None, snapshot.id.clone()));
        let own = state.all.insert(snapshot.place(), snapshot);
        everybodys.into_iter().chain(own).collect()
    }

    /// Takes the one of its owner and id out.
    pub fn remove(&self, snapshot: &SandboxSnapshot) {
        let place = snapshot.place();
        lock(&self.state).all.remove(&place);
        lock(&self.recent).forget(|own| own.place() == place);
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
    fn place(&self) -> OwnedName {
        (self.owner.clone(), self.id.clone())
    }

    /// The record to store.
    ///
    /// # Errors
    /// When it does not encode.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&SnapshotRecord {
            version: match self.owner {
                Some(_) => VERSION,
                None => LAST_WITHOUT_OWNER,
            },
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
            owner: self.owner.as_ref().map(|owner| owner.as_str().to_owned()),
        })
    }

    /// Reads a record; what passes is a snapshot that this server could have taken.
    fn decode(header: &StoredHeader) -> Result<Self, String> {
        let record = SnapshotRecord::read(&header.record)?;
        let owner = record_owner(&header.record).ok_or("it does not say whose it is")?;
        let own = stored_name(owner.as_ref(), &record.id).is_ok_and(|own| own == header.id);
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
            owner,
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

/// The store's names have fewer characters than a snapshot's. Before there were owners, names had
/// none.
///
/// # Errors
/// [`StoreError::Name`], which no id of [`snapshot_id`] gives.
pub fn stored_name(owner: Option<&OwnerId>, id: &str) -> Result<SnapshotId, StoreError> {
    // No owner's text has a zero byte.
    let whole = owner.map_or_else(|| id.to_owned(), |owner| format!("{owner}\0{id}"));
    let hash = hex::encode(&Sha256::digest(whole)[..16]);
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
