//! The process that emulates a lab's machine, QEMU or Bochs: found and stopped.

use super::qmp::QmpClient;
use super::state::LabPlace;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, test_kill_process};
use serde_json::json;
use std::path::Path;

/// The lab's process, if it runs. A stale file, or one whose number another process has since been
/// given, counts as none.
pub(super) fn process(place: &LabPlace) -> Option<Pid> {
    let qemu = || running(&place.pid_file(), &place.pid_file());
    qemu().or_else(|| running(&place.bochs_pid_file(), &place.bochsrc()))
}

/// The process that `pid_file` names, if `argument` is one of its arguments.
fn running(pid_file: &Path, argument: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(pid_file).ok()?;
    let pid = Pid::from_raw(text.trim().parse().ok()?)?;
    test_kill_process(pid).ok()?;
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    line.split(|byte| *byte == 0)
        .any(|word| word == argument.as_os_str().as_encoded_bytes())
        .then_some(pid)
}

/// Ends the lab at once; it has nothing to save.
pub(super) fn stop(place: &LabPlace) -> Result<()> {
    let Some(pid) = process(place) else {
        return Ok(());
    };
    let end = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        opened => opened.context("Watching the lab's process")?,
    };
    // Bochs has no such socket.
    let asked =
        QmpClient::connect(&place.qmp()).and_then(|mut qmp| qmp.execute("quit", &json!({})));
    if asked.is_err() || !gone_within(&end, 5)? {
        let _ = kill_process(pid, Signal::KILL);
        if !gone_within(&end, 10)? {
            bail!("The lab's process {} does not end", pid.as_raw_nonzero());
        }
    }
    Ok(())
}

/// Whether a process ends within so many seconds.
fn gone_within(end: &OwnedFd, seconds: i64) -> Result<bool> {
    let limit = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let ended = retry_on_intr(|| poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&limit)));
    Ok(ended.context("Waiting for the lab's end")? > 0)
}
