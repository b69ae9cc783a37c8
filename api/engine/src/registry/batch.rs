//! Room for many sandboxes, reserved at once before the first of them is made.

use crate::error::EngineError;
use crate::ids;
use crate::registry::create::no_entropy;
use crate::registry::new_sandbox::{CreationSource, NewSandbox};
use crate::registry::reserve::{Preallocated, SandboxReservation};
use crate::registry::sandboxes::SandboxRegistry;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long all the slots may take that ended sandboxes are about to give back.
const RESERVE_WAIT: Duration = Duration::from_secs(10);

impl SandboxRegistry {
    /// Reserves room for `count` sandboxes like this one: places under `max_sandboxes`, and for
    /// each a warm VM or a slot. With `partial` for as many as there is room for, at least one.
    /// Whoever creates in them is not refused for want of room.
    ///
    /// # Errors
    /// [`EngineError::TooManySandboxes`], [`EngineError::LimitReached`], [`EngineError::NoMemory`],
    /// [`EngineError::ShuttingDown`]: nothing is reserved.
    pub async fn reserve_batch(
        self: &Arc<Self>,
        like: &NewSandbox,
        count: usize,
        partial: bool,
    ) -> Result<Vec<SandboxReservation>, EngineError> {
        if *self.closing.borrow() {
            return Err(EngineError::ShuttingDown);
        }
        self.admission.check()?;
        let ids = (0..count).map(|_| ids::sandbox_id());
        let ids = ids.collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|error| no_entropy(&error))?;
        let entries = self.reserve_all(&like.owner, ids, partial)?;
        // Only what there is a place for.
        self.accounts.ask(&like.owner, entries.len())?;
        let pool = match &like.source {
            CreationSource::Template(template) => self.pools.of(template),
            CreationSource::Snapshot(..) | CreationSource::Loaded(..) => None,
        };
        let mut reserved = Vec::with_capacity(entries.len());
        let full = || EngineError::TooManySandboxes { max: self.max };
        let fill = async {
            for entry in entries {
                let preallocated = match pool.as_ref().and_then(|pool| pool.take()) {
                    Some(warm_vm) => Preallocated::WarmVm(Box::new(warm_vm)),
                    None => Preallocated::Slot(self.slot().await?),
                };
                reserved.push(SandboxReservation {
                    entry,
                    preallocated: Some(preallocated),
                });
            }
            Ok(())
        };
        let filled = timeout(RESERVE_WAIT, fill)
            .await
            .map_err(|_| full())
            .flatten();
        match filled {
            Err(error) if !partial || reserved.is_empty() => Err(error),
            _ => Ok(reserved),
        }
    }

    /// The same sandbox with the snapshot loaded that it goes on at: once for all of a batch, when
    /// there is room for them.
    ///
    /// # Errors
    /// [`EngineError::NoMemory`]; [`EngineError::StartFailed`] for one that cannot be loaded.
    pub async fn load_source(&self, new: NewSandbox) -> Result<NewSandbox, EngineError> {
        let CreationSource::Snapshot(template, snapshot) = &new.source else {
            return Ok(new);
        };
        let point = self.snapshot_point(snapshot).await?;
        Ok(NewSandbox {
            source: CreationSource::Loaded(Arc::clone(template), point),
            ..new
        })
    }
}
