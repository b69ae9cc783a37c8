//! An entry of the table of sandboxes.

use crate::owner::{Caller, OwnerId};
use crate::registry::counted::{Counted, StateCounts};
use crate::registry::transitions::{BusyReason, SandboxState};
use crate::sandbox::Sandbox;
use crate::store::paused::PausedSandbox;
use std::sync::Arc;
use tokio::sync::watch;

/// A sandbox's state, with what belongs to it.
#[derive(Debug)]
pub(super) enum TableEntry {
    /// Being made; nobody knows its id yet.
    Creating(OwnerId),
    /// With a machine that runs.
    Running(Arc<Sandbox>),
    /// With a machine that somebody works at: it becomes `Paused`, or `Running` again.
    Busy(Arc<Sandbox>, BusyReason),
    /// Without a machine.
    Paused(Arc<PausedSandbox>),
    /// With a machine in the making: it becomes `Running`, or `Paused` again; then the sender of
    /// this receiver goes.
    Resuming(Arc<PausedSandbox>, watch::Receiver<()>),
}

impl Counted for TableEntry {
    fn owner(&self) -> Option<&OwnerId> {
        match self {
            Self::Creating(owner) => Some(owner),
            Self::Running(sandbox) | Self::Busy(sandbox, _) => sandbox.owner.as_ref(),
            Self::Paused(paused) | Self::Resuming(paused, _) => paused.facts.owner.as_ref(),
        }
    }

    fn counts(&self) -> StateCounts {
        let (alive, stored) = match self {
            Self::Creating(_)
            | Self::Running(_)
            | Self::Busy(_, BusyReason::Save | BusyReason::Reset) => (1, 0),
            Self::Busy(_, BusyReason::Pause) | Self::Resuming(..) => (1, 1),
            Self::Paused(_) => (0, 1),
        };
        StateCounts { alive, stored }
    }
}

impl TableEntry {
    /// Whether there is this sandbox for whoever asks.
    pub(super) fn is_seen_by(&self, who: &Caller) -> bool {
        who.sees(self.owner())
    }

    /// Whether this very incarnation of a sandbox has a machine that is its own.
    pub(super) fn is_of(&self, sandbox: &Arc<Sandbox>) -> bool {
        match self {
            Self::Running(own) | Self::Busy(own, _) => Arc::ptr_eq(own, sandbox),
            _ => false,
        }
    }

    /// Its state; of nothing, `Absent`.
    pub(super) const fn state(entry: Option<&Self>) -> SandboxState {
        match entry {
            None => SandboxState::Absent,
            Some(Self::Creating(_)) => SandboxState::Creating,
            Some(Self::Running(_)) => SandboxState::Running,
            Some(Self::Busy(_, reason)) => SandboxState::Busy(*reason),
            Some(Self::Paused(_)) => SandboxState::Paused,
            Some(Self::Resuming(..)) => SandboxState::Resuming,
        }
    }
}
