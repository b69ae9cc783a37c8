//! The control group of one VM process: what it may take of its host, and whether it asked for
//! more memory than that.

use crate::machine::control_group::{ControlGroup, GroupError, GroupLimits, PERIOD_US, WEIGHT};
use std::path::PathBuf;
use std::{fmt, fs, ops};

/// Most processes and threads of a VM process: a vCPU each, the event loop, and the kernel's
/// workers for its ring.
const MAX_TASKS: u32 = 512;

/// What a machine is to its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineSize {
    /// Its processors.
    pub vcpus: u8,
    /// Its memory, MiB.
    pub memory_mib: u32,
    /// Its root disk, bytes.
    pub disk: u64,
}

impl MachineSize {
    /// What a saved machine is at most, bytes.
    const fn saved(self) -> u64 {
        self.memory().saturating_add(self.disk)
    }

    const fn memory(self) -> u64 {
        (self.memory_mib as u64) << 20
    }
}

/// What machines may take beside what their guests have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupRules {
    /// Memory for the process itself, page tables, and cached pages of its files, bytes.
    pub overhead: u64,
    /// Whether files that it writes are memory, because its folder is.
    pub files_are_memory: bool,
}

impl GroupRules {
    /// `memory.max` of a machine that has not been saved.
    const fn memory_max(self, size: MachineSize) -> u64 {
        let files = if self.files_are_memory { size.disk } else { 0 };
        let own = size.memory().saturating_add(self.overhead);
        own.saturating_add(files)
    }
}

/// All processors of the guest and a half for what the guest has done for it: what it asks of its
/// devices is paid out of its own time.
fn limits(size: MachineSize, rules: GroupRules) -> GroupLimits {
    let vcpus = u64::from(size.vcpus);
    GroupLimits {
        memory: rules.memory_max(size),
        quota_us: vcpus * PERIOD_US + PERIOD_US / 2,
        weight: vcpus * WEIGHT,
        tasks: MAX_TASKS,
    }
}

/// Memory that was not there, in the end of a VM process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryShortage {
    /// Its own group's, MiB.
    OwnLimit(u64),
    /// That of the host, or of a group above its own.
    Host,
}

impl fmt::Display for MemoryShortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnLimit(mib) => write!(
                f,
                "the host memory limit of this sandbox ({mib} MiB: its guest's memory, its \
                 files where those are memory, and resources.memory_overhead_mb) was reached, and \
                 the kernel ended it"
            ),
            Self::Host => f.write_str(
                "the host had no memory left, and the kernel ended this sandbox \
                 (limits.min_memory_mb and limits.max_sandboxes keep some free)",
            ),
        }
    }
}

/// Its group.
#[derive(Debug)]
pub struct VmGroup {
    group: ControlGroup,
    size: MachineSize,
    rules: GroupRules,
    memory_max: u64,
}

impl ops::Deref for VmGroup {
    type Target = ControlGroup;

    fn deref(&self) -> &ControlGroup {
        &self.group
    }
}

impl VmGroup {
    /// Makes the group `path` with a machine's limits.
    ///
    /// # Errors
    /// The kernel's, with the file; nothing is left.
    pub fn new(path: PathBuf, size: MachineSize, rules: GroupRules) -> Result<Self, GroupError> {
        Ok(Self {
            group: ControlGroup::new(path, limits(size, rules))?,
            size,
            rules,
            memory_max: rules.memory_max(size),
        })
    }

    /// The machine is about to be saved. Where files are memory, what is written then is the
    /// group's for as long as it is kept, and is no growth of the guest.
    pub fn make_room_for_save(&mut self) {
        if !self.rules.files_are_memory {
            return;
        }
        let saved = self.size.saved().saturating_add(self.rules.overhead);
        self.memory_max = self.memory_max.saturating_add(saved);
        let max = self.memory_max;
        if let Err(error) = self.write("memory.max", &max.to_string()) {
            let path = self.path().display();
            tracing::warn!(%path, %error, max, "the memory limit was not raised for a save");
        }
    }

    /// Whether its process was ended for want of memory, and of whose.
    #[must_use]
    pub fn shortage(&self) -> Option<MemoryShortage> {
        let text = fs::read_to_string(self.path().join("memory.events")).ok()?;
        shortage(&text, self.memory_max >> 20)
    }
}

/// What `memory.events` says of a group that may have `max` MiB: `oom` counts how often that was
/// not enough, `oom_kill` the processes that were ended for whatever want of memory.
fn shortage(events: &str, max: u64) -> Option<MemoryShortage> {
    let count = |key| crate::admission::number(events, key).unwrap_or(0);
    match (count("oom_kill"), count("oom")) {
        (0, _) => None,
        (_, 0) => Some(MemoryShortage::Host),
        _ => Some(MemoryShortage::OwnLimit(max)),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const SIZE: MachineSize = MachineSize {
        vcpus: 2,
        memory_mib: 512,
        disk: 1 << 30,
    };

    #[test]
    fn a_group_s_limits_follow_the_machine_s_size() {
        let on_disk = GroupRules {
            overhead: 128 << 20,
            files_are_memory: false,
        };
        let of_disk = limits(SIZE, on_disk);
        assert_eq!(of_disk.memory, 640 << 20);
        assert_eq!((of_disk.quota_us, of_disk.weight), (250_000, 200));
        let in_memory = GroupRules {
            files_are_memory: true,
            ..on_disk
        };
        assert_eq!(limits(SIZE, in_memory).memory, 1664 << 20);
    }

    #[test]
    fn whose_memory_was_short_is_told_apart() {
        let events = |oom, kill| format!("low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {kill}\n");
        assert_eq!(shortage(&events(7, 0), 640), None);
        assert_eq!(shortage(&events(0, 3), 640), Some(MemoryShortage::Host));
        let own = shortage(&events(1, 3), 640).unwrap();
        assert_eq!(own, MemoryShortage::OwnLimit(640));
        assert!(
            own.to_string()
                .contains("host memory limit of this sandbox (640 MiB")
        );
    }

    #[test]
    fn a_group_that_is_not_to_be_had_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let rules = GroupRules {
            overhead: 0,
            files_are_memory: false,
        };
        // An ordinary folder has none of a group's files.
        let error = VmGroup::new(dir.path().join("vm-1"), SIZE, rules).unwrap_err();
        assert!(error.to_string().contains("vm-1/memory.max"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
