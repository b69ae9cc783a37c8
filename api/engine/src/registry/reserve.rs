//! A sandbox's place, before it is made: its entry in the table, and what its machine counts for.

use crate::error::EngineError;
use crate::owner::OwnerId;
use crate::pool::warm_pool::WarmVm;
use crate::registry::entry::TableEntry;
use crate::registry::sandboxes::SandboxRegistry;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// What was set aside for a machine before it is made.
#[derive(Debug)]
pub(super) enum Preallocated {
    /// A clone that was made ahead.
    WarmVm(Box<WarmVm>),
    /// A slot for one.
    Slot(OwnedSemaphorePermit),
}

/// Takes a `Creating` entry back when a creation fails or is dropped.
#[derive(Debug)]
pub(super) struct TableReservation {
    registry: Arc<SandboxRegistry>,
    pub(super) id: String,
}

impl Drop for TableReservation {
    fn drop(&mut self) {
        let mut table = self.registry.table();
        if matches!(table.get(&self.id), Some(TableEntry::Creating(_))) {
            table.remove(&self.id);
        }
    }
}

/// A sandbox's place: its entry in the table and, in a batch, what its machine counts for. Dropped,
/// it is free again.
#[derive(Debug)]
pub struct SandboxReservation {
    pub(super) entry: TableReservation,
    /// `None`: a slot is found when the machine is made.
    pub(super) preallocated: Option<Preallocated>,
}

impl SandboxRegistry {
    /// A place in the table, if there is one.
    pub(super) fn reserve(
        self: &Arc<Self>,
        owner: &OwnerId,
        id: String,
    ) -> Result<TableReservation, EngineError> {
        let mut reserved = self.reserve_all(owner, vec![id], false)?;
        // One was asked for, and it is one or an error.
        let full = EngineError::TooManySandboxes { max: self.max };
        reserved.pop().ok_or(full)
    }

    /// Places for these, or for as many of them as there are places, under one look.
    pub(super) fn reserve_all(
        self: &Arc<Self>,
        owner: &OwnerId,
        ids: Vec<String>,
        partial: bool,
    ) -> Result<Vec<TableReservation>, EngineError> {
        let mut table = self.table();
        let (free, full) = self.free_places(&table, Some(owner));
        if free == 0 || !partial && free < ids.len() {
            return Err(full);
        }
        let place = |id: String| {
            table.insert(id.clone(), TableEntry::Creating(owner.clone()));
            let registry = Arc::clone(self);
            TableReservation { registry, id }
        };
        Ok(ids.into_iter().take(free).map(place).collect())
    }
}
