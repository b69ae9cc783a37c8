//! Whether the host has memory, and room on its disk, for one more machine.
//!
//! Machines take memory as they touch it, so together they may be promised more than there is.
//! Before the last of it is gone creations, batches, warm VMs, forks and resumptions are refused:
//! what runs can go on growing then, and the kernel does not have to end one sandbox for the sake
//! of another. Who loads a stored machine is weighed with what is loaded, a fork with what its
//! children have of their own. Not weighed is the machine that takes another one's place in a
//! reset.

use crate::disk_reserve::DiskReserve;
use crate::error::EngineError;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a look is good for: it costs as much as a small part of a creation, and who begins
/// meanwhile takes a few MiB.
const FRESH: Duration = Duration::from_millis(50);
/// Where so many times of what has to be left are free, nobody asks what else could be had.
const PLENTY: u64 = 4;
/// Where control groups of version 2 are, alone and beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The memory that is left, and the disk.
#[derive(Debug)]
pub struct HostAdmission {
    /// What has to be left for something to begin, MiB; 0: nobody looks.
    least: u64,
    /// The control groups of this process that can have a limit.
    groups: Vec<PathBuf>,
    last: Mutex<Option<(Instant, u64)>>,
    disk: Arc<DiskReserve>,
}

impl HostAdmission {
    /// Where `least` MiB of memory have to be left, and the reserve of `disk`.
    #[must_use]
    pub fn new(least: u64, disk: Arc<DiskReserve>) -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let groups = MOUNTS.iter().flat_map(|m| groups(Path::new(m), &own));
        Self {
            least,
            groups: groups.collect(),
            last: Mutex::default(),
            disk,
        }
    }

    /// Whether something may begin.
    ///
    /// # Errors
    /// [`EngineError::NoMemory`], [`EngineError::NoDisk`].
    pub fn check(&self) -> Result<(), EngineError> {
        self.check_for(0)
    }

    /// Whether something may be stored.
    ///
    /// # Errors
    /// [`EngineError::NoDisk`].
    pub fn check_disk(&self) -> Result<(), EngineError> {
        self.disk.check()
    }

    /// The same for something that takes so many bytes of memory at once.
    ///
    /// # Errors
    /// [`EngineError::NoMemory`], [`EngineError::NoDisk`].
    pub fn check_for(&self, bytes: u64) -> Result<(), EngineError> {
        self.disk.check()?;
        if self.least == 0 {
            return Ok(());
        }
        let (available, needed) = (self.available(), self.least + (bytes >> 20));
        if available < needed {
            return Err(EngineError::NoMemory { available, needed });
        }
        Ok(())
    }

    /// What can be had without anybody's loss, MiB: of the host, and of each group's limit.
    fn available(&self) -> u64 {
        // Nothing panics while it holds the lock.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, available)) = *last
            && when.elapsed() < FRESH
        {
            return available;
        }
        let plenty = free().filter(|free| free / PLENTY >= self.least);
        let host = plenty.or_else(|| {
            let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
            number(&text, "MemAvailable:").map(|kib| kib >> 10)
        });
        let groups = self.groups.iter().filter_map(|group| left(group));
        let available = groups.chain(host).min().unwrap_or(u64::MAX);
        *last = Some((Instant::now(), available));
        available
    }
}

/// What nobody uses, MiB: a lower bound of what can be had, and ten times quicker to ask for.
fn free() -> Option<u64> {
    let info = rustix::system::sysinfo();
    Some(info.freeram.checked_mul(info.mem_unit.into())? >> 20)
}

/// The groups under a mount that `own`, the text of `/proc/self/cgroup`, names, and all above them.
fn groups(mount: &Path, own: &str) -> Vec<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let Some(path) = path else {
        return Vec::new();
    };
    let all = Path::new(path).ancestors().map(|group| mount.join(group));
    all.filter(|group| group.join("memory.max").exists())
        .collect()
}

/// What is left of a group's limit, MiB, with the cached files that it can drop; `None` without a
/// limit.
fn left(group: &Path) -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
    let most: u64 = read("memory.max")?.trim().parse().ok()?;
    let current: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let files = ["inactive_file", "active_file"].map(|key| number(&stat, key).unwrap_or(0));
    let used = current.saturating_sub(files.iter().sum());
    Some(most.saturating_sub(used) >> 20)
}

/// The number behind a key in a list of lines.
pub(crate) fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == key)?;
        words.next()?.parse().ok()
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_asked_for_has_to_be_left() {
        let of = |least| HostAdmission::new(least, Arc::new(DiskReserve::new(Path::new("/"), 0)));
        assert!(of(0).check().is_ok() && of(1).check().is_ok());
        for error in [
            of(1 << 40).check().unwrap_err(),
            of(1).check_for(1 << 60).unwrap_err(),
        ] {
            assert!(matches!(error, EngineError::NoMemory { .. }), "{error}");
        }
    }

    #[test]
    fn a_group_has_left_what_its_limit_says_and_its_files_hold() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("outer/inner");
        std::fs::create_dir_all(&inner).unwrap();
        let own = "3:memory:/other\n0::/outer/inner\n";
        assert!(groups(dir.path(), own).is_empty(), "none has a limit");
        for (file, text) in [
            ("memory.max", "max\n"),
            ("memory.current", "104857600\n"),
            (
                "memory.stat",
                "file 99\ninactive_file 20971520\nactive_file 10485760\n",
            ),
        ] {
            std::fs::write(inner.join(file), text).unwrap();
        }
        assert_eq!(groups(dir.path(), own), [inner.as_path()]);
        assert_eq!(left(&inner), None);
        for (most, expected) in [(200, 130), (100, 30), (50, 0)] {
            let most = (most << 20).to_string();
            std::fs::write(inner.join("memory.max"), most).unwrap();
            assert_eq!(left(&inner), Some(expected));
        }
    }
}
