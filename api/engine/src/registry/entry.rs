//! An entry of the table of sandboxes.

use crate::registry::transitions::{BusyReason, SandboxState};
use crate::sandbox::Sandbox;
use crate::store::paused::PausedSandbox;
use std::sync::Arc;
use tokio::sync::watch;

/// A sandbox's state, with what belongs to it.
#[derive(Debug)]
pub(super) enum TableEntry {
    /// Being made; nobody knows its id yet.
    Creating,
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

impl TableEntry {
    /// Whether a machine belongs to it.
    pub(super) const fn is_alive(&self) -> bool {
        !matches!(self, Self::Paused(_))
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
            Some(Self::Creating) => SandboxState::Creating,
            Some(Self::Running(_)) => SandboxState::Running,
            Some(Self::Busy(_, reason)) => SandboxState::Busy(*reason),
            Some(Self::Paused(_)) => SandboxState::Paused,
            Some(Self::Resuming(..)) => SandboxState::Resuming,
        }
    }
}
