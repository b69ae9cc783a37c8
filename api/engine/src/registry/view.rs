//! A sandbox as clients and their traffic see it.

use crate::facts::{KeptState, SandboxFacts};
use crate::registry::entry::TableEntry;
use crate::registry::transitions::BusyReason;
use crate::sandbox::Sandbox;
use jiff::Timestamp;
use std::sync::Arc;

/// A sandbox in any state that clients can see.
#[derive(Clone, Debug)]
pub struct SandboxView {
    /// What it is.
    pub facts: Arc<SandboxFacts>,
    /// Its deadline, or when it was paused.
    pub end_at: Timestamp,
    /// What is kept of it if it is paused, or about to be.
    pub paused: Option<KeptState>,
}

impl SandboxView {
    pub(super) fn of(entry: &TableEntry) -> Option<Self> {
        Some(match entry {
            TableEntry::Creating(_) => return None,
            TableEntry::Busy(sandbox, BusyReason::Pause) => Self {
                facts: Arc::clone(&sandbox.facts),
                end_at: Timestamp::now(),
                paused: Some(KeptState::Memory),
            },
            TableEntry::Running(sandbox)
            | TableEntry::Busy(sandbox, BusyReason::Save | BusyReason::Reset) => Self {
                facts: Arc::clone(&sandbox.facts),
                end_at: sandbox.end_at(),
                paused: None,
            },
            TableEntry::Paused(paused) | TableEntry::Resuming(paused, _) => Self {
                facts: Arc::clone(&paused.facts),
                end_at: paused.paused_at,
                paused: Some(paused.kept),
            },
        })
    }
}

/// What traffic to a sandbox meets.
#[derive(Debug)]
pub(super) enum RouteState {
    /// It runs.
    Running(Arc<Sandbox>),
    /// It is quiesced for a moment: [`Sandbox::settled`], then look again.
    Quiesced(Arc<Sandbox>),
    /// It is being paused.
    Pausing(Arc<SandboxFacts>),
    /// It is paused, or being resumed.
    Paused(Arc<SandboxFacts>),
    /// There is no such sandbox.
    Missing,
}
