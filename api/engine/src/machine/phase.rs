//! How far a machine is.

use crate::machine::end::MachineEnd;
use control::Configured;
use std::sync::Arc;

/// How far a machine is.
#[derive(Clone, Debug)]
pub enum MachinePhase {
    /// The process runs and has its configuration.
    Spawned,
    /// Built, not running.
    Configured(Configured),
    /// The vCPUs run, or are about to.
    Started,
    /// The process is gone and reaped.
    Ended(Arc<MachineEnd>),
}
