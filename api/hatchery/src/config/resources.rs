//! What machines may take of their host, with every default filled in.

use crate::config::error::ConfigError;
use crate::config::limits::in_range;
use crate::config::typed::ResourcesFile;
use control::CgroupMode;
use engine::machine::group_tree::GroupOptions;
use std::path::PathBuf;

/// What machines may take of their host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceSettings {
    /// Whether each VM process has a control group.
    pub cgroup: CgroupMode,
    /// Under which one; `None`: the server's own.
    pub cgroup_parent: Option<PathBuf>,
    /// Memory of a VM process beside its guest's, MiB.
    pub memory_overhead_mb: u64,
    /// Room that has to be left on the volume of the data folder, MiB.
    pub disk_reserve_mb: u64,
}

impl ResourceSettings {
    pub(super) fn new(file: &ResourcesFile) -> Result<Self, ConfigError> {
        Ok(Self {
            cgroup: file.cgroup.unwrap_or_default(),
            cgroup_parent: file.cgroup_parent.clone(),
            memory_overhead_mb: in_range(
                "resources.memory_overhead_mb",
                file.memory_overhead_mb.unwrap_or(128),
                16..=1 << 20,
            )?,
            disk_reserve_mb: in_range(
                "resources.disk_reserve_mb",
                file.disk_reserve_mb.unwrap_or(512),
                0..=1 << 30,
            )?,
        })
    }

    /// What the engine is told of control groups.
    #[must_use]
    pub fn groups(&self) -> GroupOptions {
        GroupOptions {
            mode: self.cgroup,
            parent: self.cgroup_parent.clone(),
            memory_overhead_mb: self.memory_overhead_mb,
        }
    }
}
