//! A note on disk for each VM process, so that a server that starts after a crash can make sure
//! that none is left. A VM process ends by itself when its server is gone; this is for one that
//! hangs.
//!
//! The name is the process's number, the content the time at which it started: numbers are given
//! anew, the pair is not.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

/// How long killed processes may take to go.
const BOUND: Duration = Duration::from_secs(10);

/// The note of one process; dropped, it is removed.
#[derive(Debug)]
pub struct PidFile(PathBuf);

impl PidFile {
    /// Notes a child of this process.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(dir: &Path, pid: Pid) -> io::Result<Self> {
        let path = dir.join(pid.as_raw_nonzero().to_string());
        let started = start_time(pid).ok_or(io::ErrorKind::NotFound)?;
        fs::write(&path, started)?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Left behind, it names a process that is gone, which the next start notices.
        let _ = fs::remove_file(&self.0);
    }
}

/// Ends every process that is noted in `dir` and still runs. The number of those.
///
/// # Errors
/// The file system's, or a process that does not go within seconds.
pub fn end_leftovers(dir: &Path) -> io::Result<usize> {
    let mut killed = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else {
            continue;
        };
        // The descriptor first: what it means cannot change between the look and the kill.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        if fs::read_to_string(&path).ok() != start_time(pid) {
            continue;
        }
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) => killed.push(pid),
            Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let begin = Instant::now();
    while killed.iter().any(|pid| alive(*pid)) {
        if begin.elapsed() > BOUND {
            return Err(io::Error::other(
                "killed VM processes of an earlier server do not go",
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(killed.len())
}

/// Whether there is such a process and it is not just waiting to be reaped.
fn alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with('Z'))
}

/// When a process started, in ticks since boot, as text.
fn start_time(pid: Pid) -> Option<String> {
    // proc(5): the state is field 3, the start time field 22.
    Some(stat(pid)?.split_whitespace().nth(19)?.to_owned())
}

/// `/proc/<pid>/stat` from the state on: the name before it may hold anything.
fn stat(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    #[test]
    fn a_noted_process_is_ended_and_its_namesake_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let ((mut left, left_pid), (mut other, other_pid)) = (sleeper(), sleeper());
        std::mem::forget(PidFile::new(dir.path(), left_pid).unwrap());
        let stranger = PidFile::new(dir.path(), other_pid).unwrap();
        fs::write(&stranger.0, "1").unwrap();
        fs::write(dir.path().join("not-a-number"), "1").unwrap();
        assert_eq!(end_leftovers(dir.path()).unwrap(), 1);
        assert!(!left.wait().unwrap().success());
        assert!(
            other.try_wait().unwrap().is_none(),
            "started at another time: another process"
        );
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_record_goes_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, pid) = sleeper();
        drop(PidFile::new(dir.path(), pid).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(end_leftovers(dir.path()).unwrap(), 0);
    }
}
