//! Counts that do not depend on the clock: host system calls and VM exits, from the kernel's own
//! tracepoints (histogram triggers, so nothing is copied out per event).

use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Events that happened in some processes between two points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventCounts {
    /// System calls.
    pub(crate) syscalls: u64,
    /// Returns from guest mode.
    pub(crate) vm_exits: u64,
    /// Of these, those for memory that the guest has touched and the host has not given yet.
    pub(crate) guest_faults: u64,
}

/// The tracing file system with both histograms armed; disarmed when dropped.
pub(crate) struct EventCounters {
    events: PathBuf,
}

const SYSCALLS: &str = "raw_syscalls/sys_enter";
const EXITS: &str = "kvm/kvm_exit";
const FAULTS: &str = "kvm/kvm_page_fault";
const EVENTS: [&str; 3] = [SYSCALLS, EXITS, FAULTS];
const TRIGGER: &str = "hist:keys=common_pid:size=8192";

impl EventCounters {
    /// Arms the histograms.
    ///
    /// # Errors
    /// When the kernel has no tracing file system, or no histogram triggers.
    pub(crate) fn arm() -> Result<Self> {
        let counters = Self {
            events: PathBuf::from("/sys/kernel/tracing/events"),
        };
        if !counters.events.is_dir() {
            let status = std::process::Command::new("mount")
                .args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"])
                .status()
                .context("Running mount")?;
            anyhow::ensure!(status.success(), "No tracing file system: are you root?");
        }
        for event in EVENTS {
            let path = counters.events.join(event).join("trigger");
            fs::write(&path, TRIGGER).with_context(|| format!("Arming {}", path.display()))?;
        }
        Ok(counters)
    }

    /// Runs `work` and returns what it gave, with what `pids` did meanwhile, all threads together.
    pub(crate) fn during<T>(
        &self,
        pids: &[u32],
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, EventCounts)> {
        let threads: HashSet<u32> = pids.iter().flat_map(|pid| threads(*pid)).collect();
        self.around(|thread| threads.contains(&thread), work)
    }

    /// Runs `work` on this thread and returns what it gave, with what all other processes did
    /// meanwhile.
    pub(crate) fn of_others<T>(
        &self,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, EventCounts)> {
        let own: HashSet<u32> = threads(std::process::id()).into_iter().collect();
        self.around(|thread| !own.contains(&thread), work)
    }

    fn around<T>(
        &self,
        counts: impl Fn(u32) -> bool,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, EventCounts)> {
        let before = self.read(&counts)?;
        let value = work()?;
        let after = self.read(&counts)?;
        let counts = EventCounts {
            syscalls: after.syscalls - before.syscalls,
            vm_exits: after.vm_exits - before.vm_exits,
            guest_faults: after.guest_faults - before.guest_faults,
        };
        Ok((value, counts))
    }

    fn read(&self, counted: impl Fn(u32) -> bool) -> Result<EventCounts> {
        let sum = |event: &str| -> Result<u64> {
            let path = self.events.join(event).join("hist");
            let text =
                fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?;
            let counts = parse_histogram(&text);
            Ok(counts
                .iter()
                .filter(|(t, _)| counted(**t))
                .map(|(_, n)| n)
                .sum())
        };
        Ok(EventCounts {
            syscalls: sum(SYSCALLS)?,
            vm_exits: sum(EXITS)?,
            guest_faults: sum(FAULTS)?,
        })
    }
}

impl Drop for EventCounters {
    fn drop(&mut self) {
        for event in EVENTS {
            let _ = fs::write(
                self.events.join(event).join("trigger"),
                format!("!{TRIGGER}"),
            );
        }
    }
}

/// The ids of a process's threads.
fn threads(pid: u32) -> Vec<u32> {
    let Ok(dir) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")) else {
        return Vec::new();
    };
    dir.flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Lines like `{ common_pid:        123 } hitcount:         45`.
fn parse_histogram(text: &str) -> HashMap<u32, u64> {
    let line = |line: &str| {
        let (key, rest) = line.strip_prefix("{ common_pid:")?.split_once('}')?;
        let count = rest.trim().strip_prefix("hitcount:")?;
        Some((key.trim().parse().ok()?, count.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_histogram_is_read() {
        let text = "# event histogram\n#\n{ common_pid:        123 } hitcount:         45\n\
                    { common_pid:          7 } hitcount:          1\n\nTotals:\n    Hits: 46\n";
        assert_eq!(parse_histogram(text), HashMap::from([(123, 45), (7, 1)]));
    }
}
