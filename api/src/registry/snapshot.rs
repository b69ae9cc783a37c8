//! Snapshots: moments of sandboxes that outlive them, to begin other sandboxes at.

use super::bring_up::Start;
use super::{Registry, unreadable};
use crate::envd::KeptProcess;
use crate::error::{ApiError, chain};
use crate::ids;
use crate::launcher::Begin;
use crate::sandbox::{Kept, Origin};
use crate::vault::{self, Header, Vault};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use snapshot_store::SnapshotId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names of snapshots in the store begin with it.
const PREFIX: &str = "snapshot-";
/// [`RecordV1::version`].
const VERSION: u32 = 1;
/// Most snapshots.
const MAX: usize = 1000;
/// So many of the last used stay ready in memory.
const RECENT: usize = 4;
/// Most characters of a name or tag.
const MAX_NAME: usize = 64;
/// Most processes that are read back.
const MAX_PROCESSES: usize = 4096;

/// A stored moment of a sandbox.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `name:tag`.
    pub id: String,
    /// The sandbox it was taken of.
    pub sandbox_id: String,
    /// When.
    pub taken_at: Timestamp,
    record: RecordV1,
    stored: SnapshotId,
}

/// The record as it lies on the disk, JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordV1 {
    version: u32,
    id: String,
    sandbox_id: String,
    base: String,
    cpu_count: u8,
    memory_mb: u32,
    disk_size_mb: u64,
    files_only: bool,
    taken_at_us: i64,
    processes: Vec<KeptProcess>,
}

/// All snapshots by id, and the last ones that sandboxes began at.
#[derive(Debug)]
pub(super) struct Snapshots {
    all: Mutex<BTreeMap<String, Arc<Snapshot>>>,
    recent: Mutex<VecDeque<(Arc<Snapshot>, Arc<Start>)>>,
}

impl Snapshots {
    /// Those that a vault has; what cannot be read is logged and left alone.
    pub(super) fn new(vault: &Vault) -> Self {
        let headers = vault.list(PREFIX).unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::error!(error, "snapshots are not there: the store cannot be listed");
            Vec::new()
        });
        let mut all = BTreeMap::new();
        for header in headers {
            match Snapshot::decode(&header) {
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

    fn find(&self, id: &str) -> Option<Arc<Snapshot>> {
        lock(&self.all).get(id).cloned()
    }

    /// What sandboxes of this very snapshot begin at, if one did lately.
    fn ready(&self, snapshot: &Arc<Snapshot>) -> Option<Arc<Start>> {
        let mut recent = lock(&self.recent);
        let at = recent
            .iter()
            .position(|(own, _)| Arc::ptr_eq(own, snapshot))?;
        let found = recent.remove(at)?;
        let start = Arc::clone(&found.1);
        recent.push_front(found);
        Some(start)
    }

    fn keep_ready(&self, snapshot: &Arc<Snapshot>, start: &Arc<Start>) {
        let mut recent = lock(&self.recent);
        recent.push_front((Arc::clone(snapshot), Arc::clone(start)));
        recent.truncate(RECENT);
    }

    fn forget(&self, id: &str) {
        lock(&self.recent).retain(|(own, _)| own.id != id);
    }
}

impl Registry {
    /// Stores a running sandbox under a name, or under one that is made up; it stands still meanwhile
    /// and then runs on. What was there under this name is replaced.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for a bad name; [`ApiError::Conflict`] for a template's, or when there are
    /// too many; else as pausing.
    pub async fn take_snapshot(
        self: &Arc<Self>,
        id: &str,
        name: Option<&str>,
        kept: Kept,
    ) -> Result<Arc<Snapshot>, ApiError> {
        let failed = |error: String| ApiError::PauseFailed(error);
        let snapshot_id = self.name_snapshot(name)?;
        if kept == Kept::Files {
            self.sync(&*self.running_one(id)?).await?;
        }
        let captured = self.capture(id).await?;
        let origin = &captured.busy.sandbox.origin;
        let base = self.base_of(origin)?;
        let taken_at = Timestamp::now();
        let snapshot = Arc::new(Snapshot {
            stored: stored_name(&snapshot_id).map_err(|error| failed(chain(&error)))?,
            record: RecordV1 {
                version: VERSION,
                id: snapshot_id.clone(),
                sandbox_id: id.to_owned(),
                base: origin.base.clone(),
                cpu_count: origin.cpu_count,
                memory_mb: origin.memory_mb,
                disk_size_mb: origin.disk_size_mb,
                files_only: kept == Kept::Files,
                taken_at_us: taken_at.as_microsecond(),
                processes: captured.processes,
            },
            id: snapshot_id,
            sandbox_id: id.to_owned(),
            taken_at,
        });
        let (registry, own) = (Arc::clone(self), Arc::clone(&snapshot));
        let image = captured.image;
        // A task of its own: a client that leaves leaves nothing half-done behind.
        let work = tokio::task::spawn_blocking(move || {
            let record = serde_json::to_vec(&own.record).map_err(|e| e.to_string())?;
            let kept = (&*image, kept);
            let put = registry.vault.put(&own.stored, kept, &base, &record);
            if put.is_ok() {
                lock(&registry.snapshots.all).insert(own.id.clone(), own);
            }
            // Of what it has replaced, or of one that failed half-way.
            registry.vault.sweep();
            put.map(drop).map_err(|error| chain(&error))
        });
        let lost = |_| Err("The work was given up".to_owned());
        work.await.unwrap_or_else(lost).map_err(failed)?;
        let (size_mib, snapshot_id) = (snapshot.record.memory_mb, &snapshot.id);
        tracing::info!(
            sandbox_id = id,
            snapshot_id,
            size_mib,
            ?kept,
            "snapshot taken"
        );
        Ok(snapshot)
    }

    /// The id of a snapshot to be, checked: there is room for it.
    fn name_snapshot(&self, name: Option<&str>) -> Result<String, ApiError> {
        let no_entropy = |e: std::io::Error| ApiError::PauseFailed(format!("No random bytes: {e}"));
        let id = match name {
            Some(name) => snapshot_id(name).ok_or_else(|| {
                let name: String = name.chars().take(MAX_NAME).collect();
                ApiError::Invalid(format!(
                    "The name {name:?} is not name or name:tag with characters of [a-z0-9_-]"
                ))
            })?,
            None => {
                let name = ids::random_name(20).map_err(no_entropy)?;
                format!("{name}:default")
            }
        };
        let (plain, _) = id.split_once(':').unwrap_or((&id, ""));
        if self.templates.contains_key(plain) {
            return Err(ApiError::Conflict(format!(
                "{plain:?} is a template's name"
            )));
        }
        let count = lock(&self.snapshots.all).len();
        if count >= MAX && self.snapshots.find(&id).is_none() {
            return Err(ApiError::Conflict(format!(
                "There are {count} snapshots, the most that are kept: delete some"
            )));
        }
        Ok(id)
    }

    /// All snapshots, the newest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        let mut all: Vec<_> = lock(&self.snapshots.all).values().cloned().collect();
        all.sort_by(|a, b| b.taken_at.cmp(&a.taken_at).then_with(|| a.id.cmp(&b.id)));
        all
    }

    /// Removes a snapshot; sandboxes that began at it go on. False if there is none.
    ///
    /// # Errors
    /// [`ApiError::DeleteFailed`]: it stays.
    pub async fn delete_snapshot(&self, id: &str) -> Result<bool, ApiError> {
        let id = snapshot_id(id).unwrap_or_default();
        let Some(snapshot) = self.snapshots.find(&id) else {
            return match self.unreadable_snapshot(&id).await {
                Some((name, why)) => self.remove_unreadable(name, why).await,
                None => Ok(false),
            };
        };
        let stored = snapshot.stored.clone();
        let removed = self.in_vault(move |vault| vault.remove(&stored)).await;
        removed.map_err(|error| ApiError::DeleteFailed(chain(&error)))?;
        lock(&self.snapshots.all).remove(&id);
        self.snapshots.forget(&id);
        self.sweep();
        tracing::info!(snapshot_id = id, "snapshot deleted");
        Ok(true)
    }

    /// What sandboxes that are made from a snapshot begin at.
    ///
    /// # Errors
    /// [`ApiError::TemplateNotFound`]; [`ApiError::StartFailed`] for one that cannot be had back.
    pub async fn stored_start(&self, id: &str) -> Result<Arc<Start>, ApiError> {
        let missing = || ApiError::TemplateNotFound(id.chars().take(MAX_NAME).collect());
        let own = snapshot_id(id).ok_or_else(missing)?;
        let Some(snapshot) = self.snapshots.find(&own) else {
            let unreadable = self.unreadable_snapshot(&own).await;
            return Err(unreadable.map_or_else(missing, |(_, why)| ApiError::StartFailed(why)));
        };
        if let Some(start) = self.snapshots.ready(&snapshot) {
            return Ok(start);
        }
        let failed = |error: String| ApiError::StartFailed(error);
        let origin = snapshot.origin();
        let template = self.template_of(&origin)?;
        let stored = snapshot.stored.clone();
        let kept = match snapshot.record.files_only {
            true => Kept::Files,
            false => Kept::Memory,
        };
        let image = self.in_vault(move |vault| {
            let base = vault::look(&template.name, &template.image)?;
            vault.get(&stored, kept, &base, unreadable::snapshot)
        });
        let image = Arc::new(image.await.map_err(|error| failed(chain(&error)))?);
        let begin = match kept {
            Kept::Files => Begin::Files(image),
            Kept::Memory => {
                let composed = image.compose().await;
                Begin::Image(composed.map_err(|error| failed(chain(&error)))?)
            }
        };
        let start = Arc::new(Start {
            processes: match begin {
                Begin::Image(_) => snapshot.record.processes.clone(),
                Begin::Boot | Begin::Files(_) => Vec::new(),
            },
            begin,
            origin,
        });
        self.snapshots.keep_ready(&snapshot, &start);
        Ok(start)
    }
}

impl Snapshot {
    /// What sandboxes that begin at it are said to be made from.
    fn origin(&self) -> Origin {
        Origin {
            template_id: self.id.clone(),
            base: self.record.base.clone(),
            alias: None,
            cpu_count: self.record.cpu_count,
            memory_mb: self.record.memory_mb,
            disk_size_mb: self.record.disk_size_mb,
            forked: false,
        }
    }

    /// Reads a record; what passes is a snapshot that this server could have taken.
    pub(super) fn decode(header: &Header) -> Result<Self, String> {
        let record: RecordV1 =
            serde_json::from_slice(&header.record).map_err(|error| error.to_string())?;
        let (version, shape) = (record.version, header.shape);
        if version != VERSION {
            return Err(format!(
                "its version is {version}, this program reads {VERSION}"
            ));
        }
        let own = stored_name(&record.id).is_ok_and(|own| own == header.id);
        if !own || snapshot_id(&record.id).as_ref() != Some(&record.id) {
            return Err("its id is not of its name".into());
        }
        let size = (record.cpu_count, record.memory_mb, record.disk_size_mb);
        if size != (shape.vcpus, shape.memory_mib, shape.disk_size >> 20) {
            return Err(format!("it says {size:?} of a machine of {shape:?}"));
        }
        if record.processes.len() > MAX_PROCESSES {
            return Err(format!("it has {} processes", record.processes.len()));
        }
        let taken_at =
            Timestamp::from_microsecond(record.taken_at_us).map_err(|error| error.to_string())?;
        Ok(Self {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            taken_at,
            record,
            stored: header.id.clone(),
        })
    }
}

/// `name:tag` out of what clients write: `name`, `name:tag`, `namespace/name:tag`.
fn snapshot_id(text: &str) -> Option<String> {
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
pub(super) fn stored_name(id: &str) -> Result<SnapshotId, snapshot_store::StoreError> {
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
