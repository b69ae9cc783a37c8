//! Snapshot: a restore point of a sandbox that outlives it, to begin other sandboxes at.

use crate::error::{EngineError, chain};
use crate::facts::{KeptState, SandboxOrigin};
use crate::ids;
use crate::owner::{Caller, OwnerId};
use crate::registry::load::{StoredMachine, not_loaded};
use crate::registry::new_sandbox::CreationSource;
use crate::registry::sandboxes::SandboxRegistry;
use crate::restore_point::{BootSource, RestorePoint};
use crate::store::snapshots::{
    MAX_NAME, SandboxSnapshot, SnapshotReservation, readable, snapshot_id, stored_name,
};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Instant;

impl SandboxRegistry {
    /// Stores a running sandbox under a name, or under one that is made up; it is quiesced
    /// meanwhile and then runs on. What was there under this name is replaced.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for a bad name; [`EngineError::Conflict`] for a template's;
    /// [`EngineError::LimitReached`]; else as pausing.
    pub async fn take_snapshot(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        name: Option<&str>,
        kept: KeptState,
    ) -> Result<Arc<SandboxSnapshot>, EngineError> {
        let owner = who.heir(self.own(who, id)?.as_ref());
        let place = self.name_snapshot(&owner, name)?;
        self.admit_bytes(Some(&owner))?;
        // A task of its own: a client that leaves leaves nothing half-done behind.
        let (registry, who, id) = (Arc::clone(self), who.clone(), id.to_owned());
        let work = tokio::spawn(async move {
            let begin = Instant::now();
            let taken = registry.store_snapshot((&who, &id), place, kept).await;
            let (good, time) = (taken.is_ok(), begin.elapsed());
            registry.metrics.done("snapshot", good, time);
            taken
        });
        let lost = |_| EngineError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    async fn store_snapshot(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        place: SnapshotReservation,
        kept: KeptState,
    ) -> Result<Arc<SandboxSnapshot>, EngineError> {
        let failed = |error: String| EngineError::PauseFailed(error);
        let (owner, snapshot_id) = place.name();
        if kept == KeptState::Files {
            self.sync(&*self.running_one(who, id)?).await?;
        }
        let captured = self.capture(id).await?;
        // Others may have stored theirs while this one waited for its turn.
        self.admit_bytes(Some(&owner))?;
        let origin = &captured.busy.sandbox.origin;
        let base = self.base_image_of(&origin.base)?;
        let snapshot = Arc::new(SandboxSnapshot {
            stored: stored_name(Some(&owner), &snapshot_id)
                .map_err(|error| failed(chain(&error)))?,
            owner: Some(owner),
            sandbox_id: id.to_owned(),
            taken_at: Timestamp::now(),
            origin: SandboxOrigin {
                template_id: snapshot_id.clone(),
                alias: None,
                forked: false,
                ..origin.clone()
            },
            id: snapshot_id,
            kept,
            env: self.variables.asked(&captured.busy.sandbox.env),
            processes: captured.processes,
            loading: Arc::default(),
        });
        let (registry, own) = (Arc::clone(self), Arc::clone(&snapshot));
        let image = captured.image;
        let work = tokio::task::spawn_blocking(move || {
            let record = own.encode().map_err(|error| error.to_string())?;
            let name = (&own.stored, own.owner.as_ref());
            let put = registry.vault.put(name, (&image, kept), &base, &record);
            if let Ok(blobs) = &put {
                registry.metrics.stored("snapshot", blobs);
                registry.put_in_place(own);
            }
            // Of what it has replaced, or of one that failed half-way.
            registry.vault.collect_garbage();
            put.map(drop).map_err(|error| chain(&error))
        });
        let lost = |_| Err("The work was given up".to_owned());
        work.await.unwrap_or_else(lost).map_err(failed)?;
        let (size_mib, snapshot_id) = (snapshot.origin.memory_mb, &snapshot.id);
        tracing::info!(
            sandbox_id = id,
            snapshot_id,
            size_mib,
            ?kept,
            "snapshot taken"
        );
        Ok(snapshot)
    }

    /// A snapshot that is stored is there for clients. What was there under its name may have
    /// another one in the store: everybody's, and what its owner stored before it had this name.
    fn put_in_place(&self, snapshot: Arc<SandboxSnapshot>) {
        let stored = snapshot.stored.clone();
        let mut replaced = self.snapshots.insert(snapshot);
        replaced.retain(|old| old.stored != stored);
        for old in replaced {
            if let Err(error) = self.vault.remove(&old.stored) {
                let error = chain(&error);
                tracing::warn!(snapshot = %old.stored, error, "a replaced snapshot stays");
            }
        }
    }

    /// The place of a snapshot to be, checked: there is room for it.
    fn name_snapshot(
        &self,
        owner: &OwnerId,
        name: Option<&str>,
    ) -> Result<SnapshotReservation, EngineError> {
        let no_entropy =
            |e: std::io::Error| EngineError::PauseFailed(format!("No random bytes: {e}"));
        let id = match name {
            Some(name) => snapshot_id(name).ok_or_else(|| {
                let name: String = name.chars().take(MAX_NAME).collect();
                EngineError::Invalid(format!(
                    "The name {name:?} is not name or name:tag with characters of [a-z0-9_-]"
                ))
            })?,
            None => {
                let name = ids::random_name(20).map_err(no_entropy)?;
                format!("{name}:default")
            }
        };
        let (plain, _) = id.split_once(':').unwrap_or((&id, ""));
        if self.templates.get(plain).is_some() {
            return Err(EngineError::Conflict(format!(
                "{plain:?} is a template's name"
            )));
        }
        let admit = |counts| self.admit_snapshot(owner, counts);
        Ok(self.snapshots.reserve(owner, id, admit)?)
    }

    /// All snapshots that the caller can see, the newest first.
    #[must_use]
    pub fn snapshots(&self, who: &Caller) -> Vec<Arc<SandboxSnapshot>> {
        let mut all = self.snapshots.list();
        all.retain(|snapshot| who.sees(snapshot.owner.as_ref()));
        all
    }

    /// The snapshot of this id that the caller means.
    fn snapshot_for(
        &self,
        who: &Caller,
        id: &str,
    ) -> Result<Option<Arc<SandboxSnapshot>>, EngineError> {
        self.snapshots.find_for(who, id).map_err(|many| {
            EngineError::Conflict(format!(
                "{many} owners have a snapshot {id:?}, and the caller has none: use a key of the \
                 one that is meant"
            ))
        })
    }

    /// Removes a snapshot of the caller's; sandboxes that began at it go on. False if there is
    /// none.
    ///
    /// # Errors
    /// [`EngineError::DeleteFailed`]: it stays.
    pub async fn delete_snapshot(&self, who: &Caller, id: &str) -> Result<bool, EngineError> {
        let id = snapshot_id(id).unwrap_or_default();
        let Some(snapshot) = self.snapshot_for(who, &id)? else {
            return match self.unreadable_snapshot(who, &id).await {
                Some((name, why)) => self.remove_unreadable(name, why).await,
                None => Ok(false),
            };
        };
        let stored = snapshot.stored.clone();
        let removed = self.in_vault(move |vault| vault.remove(&stored)).await;
        removed.map_err(|error| EngineError::DeleteFailed(chain(&error)))?;
        self.snapshots.remove(&snapshot);
        self.collect_garbage();
        tracing::info!(snapshot_id = id, "snapshot deleted");
        Ok(true)
    }

    /// What a creation begins with that names a snapshot of the caller's. Nothing of it is loaded.
    ///
    /// # Errors
    /// [`EngineError::TemplateNotFound`]; [`EngineError::StartFailed`] for one that cannot be read,
    /// or whose template is not there any more.
    pub async fn snapshot_source(
        &self,
        who: &Caller,
        name: &str,
    ) -> Result<CreationSource, EngineError> {
        let snapshot = self.find_snapshot(who, name).await?;
        let template = self.template_of(&snapshot.origin);
        let template = template.map_err(|error| EngineError::StartFailed(error.to_string()))?;
        Ok(CreationSource::Snapshot(template, snapshot))
    }

    /// The snapshot of this name that the caller means.
    ///
    /// # Errors
    /// As [`SandboxRegistry::snapshot_source`].
    pub(super) async fn find_snapshot(
        &self,
        who: &Caller,
        name: &str,
    ) -> Result<Arc<SandboxSnapshot>, EngineError> {
        let missing = || EngineError::no_template(name);
        let id = snapshot_id(name).ok_or_else(missing)?;
        if let Some(snapshot) = self.snapshot_for(who, &id)? {
            return Ok(snapshot);
        }
        let unreadable = self.unreadable_snapshot(who, &id).await;
        Err(unreadable.map_or_else(missing, |(_, why)| EngineError::StartFailed(why)))
    }

    /// Where sandboxes begin that are made from a snapshot. Who comes while another one loads it
    /// waits, and has what that one has loaded.
    ///
    /// # Errors
    /// [`EngineError::NoMemory`]; [`EngineError::StartFailed`] for one that cannot be loaded.
    pub(super) async fn snapshot_point(
        &self,
        snapshot: &Arc<SandboxSnapshot>,
    ) -> Result<Arc<RestorePoint>, EngineError> {
        if let Some(point) = self.snapshots.ready(snapshot) {
            return Ok(point);
        }
        let _one = snapshot.loading.lock().await;
        if let Some(point) = self.snapshots.ready(snapshot) {
            return Ok(point);
        }
        let kept = snapshot.kept;
        let machine = StoredMachine {
            stored: snapshot.stored.clone(),
            kept,
            template: self.template_of(&snapshot.origin)?,
            readable,
            weigh: |weight| Some(weight.merged()),
        };
        let image = self.load(machine).await;
        let mut image = image.map_err(|error| not_loaded(error, EngineError::StartFailed))?;
        let mut processes = Vec::new();
        if kept == KeptState::Memory {
            let merged = image.merged().await;
            image = merged.map_err(|error| EngineError::StartFailed(chain(&error)))?;
            processes.clone_from(&snapshot.processes);
        }
        let point = Arc::new(RestorePoint {
            source: BootSource::of(image, kept),
            processes,
            origin: snapshot.origin.clone(),
        });
        self.snapshots.keep_ready(snapshot, &point);
        Ok(point)
    }
}
