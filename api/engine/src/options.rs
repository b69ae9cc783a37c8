//! What an operator decides about the engine.

use crate::environment::IdentityVariables;
use crate::network::NetworkSettings;
use crate::quota::{OwnerOptions, StoreLimits};
use crate::template::Template;
use std::time::Duration;

/// Bounds and choices, with every default filled in.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Most sandboxes at one time.
    pub max_sandboxes: usize,
    /// Most checkpoints of one sandbox.
    pub max_checkpoints: usize,
    /// The most in the store.
    pub store: StoreLimits,
    /// Who has keys.
    pub owners: Vec<OwnerOptions>,
    /// Memory that has to be left for something to begin, MiB; 0: nobody looks.
    pub min_memory_mb: u64,
    /// Room that has to be left on the volume of the data folder for something to begin or be
    /// stored, MiB; 0: nobody looks.
    pub disk_reserve_mb: u64,
    /// Longest wait for a new sandbox's agent.
    pub boot_timeout: Duration,
    /// Warm VMs that are kept ready of each template; `None`: nothing is cloned, every sandbox
    /// boots.
    pub pool_size: Option<usize>,
    /// How processes are told who and where they are.
    pub variables: IdentityVariables,
    /// What sandboxes may have of the network.
    pub network: NetworkSettings,
    /// The templates that there are from the start.
    pub templates: Vec<Template>,
}
