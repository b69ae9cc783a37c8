//! The control group of one VM process: what it may take of its host, and whether it asked for
//! more memory than that.

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs, io};

/// Most processes and threads of a VM process: a vCPU each, the event loop, and the kernel's
/// workers for its ring.
const MAX_TASKS: u32 = 512;
/// The time in which processor time is handed out, microseconds.
const PERIOD_US: u64 = 100_000;
/// The weight of one vCPU; the kernel's default for a group.
pub(super) const WEIGHT: u64 = 100;
/// The most that a group may weigh.
pub(super) const MOST_WEIGHT: u64 = 10_000;
/// How long the kernel may take to let go of a process that has been reaped.
const REMOVALS: u32 = 50;

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

/// The files of a group, and what is written to them. All processors of the guest and a half for
/// what the guest has done for it: what it asks of its devices is paid out of its own time.
fn limits(size: MachineSize, rules: GroupRules) -> [(&'static str, String); 6] {
    let vcpus = u64::from(size.vcpus);
    let quota = vcpus * PERIOD_US + PERIOD_US / 2;
    [
        ("memory.max", rules.memory_max(size).to_string()),
        // What a guest has in its memory is written to no disk of the host.
        ("memory.swap.max", "0".into()),
        // A machine is whole or gone.
        ("memory.oom.group", "1".into()),
        (
            "cpu.weight",
            (vcpus * WEIGHT).clamp(1, MOST_WEIGHT).to_string(),
        ),
        ("cpu.max", format!("{quota} {PERIOD_US}")),
        ("pids.max", MAX_TASKS.to_string()),
    ]
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

/// A group; removed when dropped, which has to come after its process is reaped and may take
/// milliseconds.
#[derive(Debug)]
pub struct VmGroup {
    path: PathBuf,
    folder: OwnedFd,
    size: MachineSize,
    rules: GroupRules,
    memory_max: u64,
}

impl VmGroup {
    /// Makes the group `path` with a machine's limits.
    ///
    /// # Errors
    /// The kernel's, with the file; nothing is left.
    pub fn new(path: PathBuf, size: MachineSize, rules: GroupRules) -> Result<Self, GroupError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| GroupError { path, source }
        };
        fs::create_dir(&path).map_err(failed(&path))?;
        let access = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let folder = match rustix::fs::open(&path, access, Mode::empty()) {
            Ok(folder) => folder,
            Err(error) => {
                remove(&path);
                return Err(failed(&path)(error.into()));
            }
        };
        let memory_max = rules.memory_max(size);
        let group = Self {
            path,
            folder,
            size,
            rules,
            memory_max,
        };
        for (file, value) in limits(size, rules) {
            match group.write(file, &value) {
                // A kernel without swap has no limit of it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && file.contains("swap") => {}
                written => written.map_err(failed(&group.path.join(file)))?,
            }
        }
        Ok(group)
    }

    /// Its folder, for a process to be born in.
    #[must_use]
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Moves a process into it, which cannot be born there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self, pid: Pid) -> io::Result<()> {
        self.write("cgroup.procs", &pid.as_raw_nonzero().to_string())
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
            let path = self.path.display();
            tracing::warn!(%path, %error, max, "the memory limit was not raised for a save");
        }
    }

    /// Whether its process was ended for want of memory, and of whose.
    #[must_use]
    pub fn shortage(&self) -> Option<MemoryShortage> {
        let text = fs::read_to_string(self.path.join("memory.events")).ok()?;
        shortage(&text, self.memory_max >> 20)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let file = rustix::fs::openat(
            &self.folder,
            file,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
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

impl Drop for VmGroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes an empty group; what cannot be removed is said, and gone at the next start.
pub(super) fn remove(path: &Path) {
    for tried in 0..=REMOVALS {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tried < REMOVALS => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let path = path.display();
                return tracing::warn!(%path, %error, "a control group is left behind");
            }
            _ => return,
        }
    }
}

/// A group that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("Cannot make or limit the control group {path}: {source}")]
pub struct GroupError {
    /// The folder or file.
    path: PathBuf,
    /// Why.
    source: io::Error,
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
        let find = |rules, file| {
            let mut all = limits(SIZE, rules).into_iter();
            all.find(|(name, _)| *name == file).unwrap().1
        };
        assert_eq!(find(on_disk, "memory.max"), (640_u64 << 20).to_string());
        assert_eq!(find(on_disk, "cpu.max"), "250000 100000");
        assert_eq!(find(on_disk, "cpu.weight"), "200");
        let in_memory = GroupRules {
            files_are_memory: true,
            ..on_disk
        };
        assert_eq!(find(in_memory, "memory.max"), (1664_u64 << 20).to_string());
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
