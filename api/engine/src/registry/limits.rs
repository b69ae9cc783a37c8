//! What one owner and all together may have: looked at before anything is begun.

use crate::error::EngineError;
use crate::owner::OwnerId;
use crate::quota::{LimitKind, LimitReached};
use crate::registry::counted::CountedTable;
use crate::registry::entry::TableEntry;
use crate::registry::sandboxes::SandboxRegistry;

/// Whether there is a place for one more, below the owner's limit and that of all.
fn below(
    kind: LimitKind,
    (own, own_max): (u64, Option<u64>),
    (all, all_max): (u64, u64),
    owner: Option<&OwnerId>,
) -> Result<(), LimitReached> {
    let reached = |has, max, owner: Option<&OwnerId>| LimitReached {
        kind,
        has,
        max,
        owner: owner.cloned(),
        again: None,
    };
    match own_max {
        Some(max) if own >= max => Err(reached(own, max, owner)),
        _ if all >= all_max => Err(reached(all, all_max, None)),
        _ => Ok(()),
    }
}

impl SandboxRegistry {
    /// How many more sandboxes this owner may have now, and what is said where that is too few. For
    /// whoever holds the table.
    pub(super) fn free_places(
        &self,
        table: &CountedTable<TableEntry>,
        owner: Option<&OwnerId>,
    ) -> (usize, EngineError) {
        let free = self.max.saturating_sub(table.all().alive);
        let own = owner.and_then(|owner| {
            let max = self.accounts.limits(owner).max_running?;
            let has = table.of(owner).alive;
            Some((max, has, owner))
        });
        match own {
            Some((max, has, owner)) if max.saturating_sub(has) < free => {
                let reached = LimitReached {
                    kind: LimitKind::Running,
                    has: has as u64,
                    max: max as u64,
                    owner: Some(owner.clone()),
                    again: None,
                };
                (max.saturating_sub(has), reached.into())
            }
            _ => (free, EngineError::TooManySandboxes { max: self.max }),
        }
    }

    /// What is said to whoever gets fewer sandboxes than it asked for.
    pub fn full(&self, owner: &OwnerId) -> EngineError {
        self.free_places(&self.table(), Some(owner)).1
    }

    /// Whether one more sandbox could be made for this owner.
    ///
    /// # Errors
    /// [`EngineError::TooManySandboxes`], [`EngineError::LimitReached`].
    pub(super) fn admit_machine(&self, owner: &OwnerId) -> Result<(), EngineError> {
        match self.free_places(&self.table(), Some(owner)) {
            (0, full) => Err(full),
            _ => Ok(()),
        }
    }

    /// Whether one more sandbox of this owner may be paused. For whoever holds the table.
    ///
    /// # Errors
    /// [`EngineError::LimitReached`].
    pub(super) fn admit_pause(
        &self,
        table: &CountedTable<TableEntry>,
        owner: Option<&OwnerId>,
    ) -> Result<(), EngineError> {
        let own = owner.map_or(0, |owner| table.of(owner).stored as u64);
        let own_max = owner.and_then(|owner| self.accounts.limits(owner).max_paused);
        below(
            LimitKind::Paused,
            (own, own_max.map(|max| max as u64)),
            (
                table.all().stored as u64,
                self.store_limits.max_paused as u64,
            ),
            owner,
        )?;
        self.admit_bytes(owner)
    }

    /// Whether one more sandbox of this owner may be resumed. What all may have is looked at when
    /// its slot is. For whoever holds the table.
    ///
    /// # Errors
    /// [`EngineError::LimitReached`].
    pub(super) fn admit_resume(
        &self,
        table: &CountedTable<TableEntry>,
        owner: Option<&OwnerId>,
    ) -> Result<(), EngineError> {
        let Some(owner) = owner else { return Ok(()) };
        let max = self.accounts.limits(owner).max_running;
        let max = max.map(|max| max as u64);
        let own = (table.of(owner).alive as u64, max);
        Ok(below(LimitKind::Running, own, (0, 1), Some(owner))?)
    }

    /// Whether more may be stored for this owner. What is begun below the limit is finished.
    ///
    /// # Errors
    /// [`EngineError::LimitReached`], [`EngineError::NoDisk`].
    pub(super) fn admit_bytes(&self, owner: Option<&OwnerId>) -> Result<(), EngineError> {
        self.admission.check_disk()?;
        let (all, own) = self.vault.used(owner);
        let own_max = owner.and_then(|owner| self.accounts.limits(owner).max_stored_bytes);
        below(
            LimitKind::StoredBytes,
            (own, own_max),
            (all, self.store_limits.max_stored_bytes),
            owner,
        )?;
        Ok(())
    }

    /// What is said where there are so many snapshots, of an owner and of all.
    pub(super) fn admit_snapshot(
        &self,
        owner: &OwnerId,
        (own, all): (usize, usize),
    ) -> Result<(), LimitReached> {
        let own_max = self.accounts.limits(owner).max_snapshots;
        below(
            LimitKind::Snapshots,
            (own as u64, own_max.map(|max| max as u64)),
            (all as u64, self.store_limits.max_snapshots as u64),
            Some(owner),
        )
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_owners_limit_is_told_before_that_of_all() {
        let owner = OwnerId::named("a");
        let refused = |own, all| below(LimitKind::Paused, own, all, owner.as_ref());
        assert_eq!(refused((1, Some(2)), (3, 4)), Ok(()));
        assert_eq!(refused((9, None), (3, 4)), Ok(()));
        let own = refused((2, Some(2)), (4, 4)).unwrap_err();
        assert_eq!((own.owner, own.has, own.max), (owner.clone(), 2, 2));
        let all = refused((1, Some(2)), (4, 4)).unwrap_err();
        assert_eq!((all.owner, all.has, all.max), (None, 4, 4));
        let none = refused((0, Some(0)), (0, 4)).unwrap_err();
        assert_eq!(none.max, 0, "who may have none has none");
    }
}
