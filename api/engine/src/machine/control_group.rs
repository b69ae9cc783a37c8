//! A control group of the kernel's: made with limits, and removed when it is dropped.

use crate::admission;
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

/// The weight of one processor's worth of work; the kernel's default for a group.
pub(super) const WEIGHT: u64 = 100;
/// The most that a group may weigh.
pub(super) const MOST_WEIGHT: u64 = 10_000;
/// The time in which processor time is handed out, microseconds.
pub(super) const PERIOD_US: u64 = 100_000;
/// How long processes that have been ended may take to leave: one whose group has used its
/// processor time up ends when it has some again.
const LEAVING: Duration = Duration::from_millis(400);

/// What the processes of a group may take. They are whole or gone: a want of memory ends all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupLimits {
    /// Bytes of memory; none of it is swapped: what a guest has is written to no disk of the host.
    pub(super) memory: u64,
    /// Processor time in each [`PERIOD_US`], microseconds.
    pub(super) quota_us: u64,
    /// What it weighs beside other groups, 1 to [`MOST_WEIGHT`].
    pub(super) weight: u64,
    /// Processes and threads.
    pub(super) tasks: u32,
}

impl GroupLimits {
    /// The files of a group, and what is written to them.
    fn files(self) -> [(&'static str, String); 6] {
        [
            ("memory.max", self.memory.to_string()),
            ("memory.swap.max", "0".into()),
            ("memory.oom.group", "1".into()),
            ("cpu.weight", self.weight.clamp(1, MOST_WEIGHT).to_string()),
            ("cpu.max", format!("{} {PERIOD_US}", self.quota_us)),
            ("pids.max", self.tasks.to_string()),
        ]
    }
}

/// A group; removed when dropped, which has to come after its processes are reaped and may take
/// milliseconds.
#[derive(Debug)]
pub struct ControlGroup {
    path: PathBuf,
    folder: OwnedFd,
}

impl ControlGroup {
    /// Makes the group `path` with these limits.
    ///
    /// # Errors
    /// The kernel's, with the file; nothing is left.
    pub(super) fn new(path: PathBuf, limits: GroupLimits) -> Result<Self, GroupError> {
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
        let group = Self { path, folder };
        for (file, value) in limits.files() {
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

    /// Where it is, for logs and for what it says of itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it, which cannot be born there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self, pid: Pid) -> io::Result<()> {
        self.write("cgroup.procs", &pid.as_raw_nonzero().to_string())
    }

    /// Ends all that is in it.
    pub(crate) fn kill(&self) {
        kill(&self.path);
    }

    pub(super) fn write(&self, file: &str, value: &str) -> io::Result<()> {
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

impl Drop for ControlGroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Ends all that is in a group; an empty one has nothing to end.
pub(super) fn kill(path: &Path) {
    if let Err(error) = fs::write(path.join("cgroup.kill"), "1") {
        let path = path.display();
        tracing::warn!(%path, %error, "a control group's processes are not ended");
    }
}

/// Removes a group whose processes have ended; what cannot be removed is said, and gone at the next
/// start.
pub(super) fn remove(path: &Path) {
    let mut removed = fs::remove_dir(path);
    let busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
    if removed.as_ref().is_err_and(busy) && is_left(path) {
        removed = fs::remove_dir(path);
    }
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let path = path.display();
            tracing::warn!(%path, %error, "a control group is left behind");
        }
        _ => {}
    }
}

/// Waits until the last process has left a group; false: not in time.
fn is_left(path: &Path) -> bool {
    let until = Instant::now() + LEAVING;
    let Ok(events) = File::open(path.join("cgroup.events")) else {
        return false;
    };
    loop {
        // What is read says from when on a change is an event.
        let mut text = [0; 64];
        let length = events.read_at(&mut text, 0).unwrap_or(0);
        let text = str::from_utf8(&text[..length]).unwrap_or_default();
        if admission::number(text, "populated") == Some(0) {
            return true;
        }
        let left = until.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else {
            return false;
        };
        let mut changed = [PollFd::new(&events, PollFlags::PRI)];
        if left.is_zero() || event::poll(&mut changed, Some(&timeout)).is_err() {
            return false;
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
