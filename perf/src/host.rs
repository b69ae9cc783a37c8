//! What a machine is, and what it has left.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What figures were taken on. Written beside the records of a place as `machine-<place>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// `floor`, `lab` or `metal`.
    pub(crate) place: String,
    /// When the run began.
    pub(crate) date: String,
    /// The commit that was measured.
    pub(crate) commit: String,
    /// What the engine's program says of itself.
    pub(crate) engine: String,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The processor's name.
    pub(crate) cpu: String,
    /// Processors.
    pub(crate) cpus: usize,
    /// All of its memory.
    pub(crate) memory_kib: u64,
    /// Whether the processor itself runs guests; otherwise the kernel does by other means.
    pub(crate) hardware_virtualization: bool,
    /// Processes that were running or wanted to, over the last minute, when the run began.
    pub(crate) load: String,
}

/// Writes what this machine is into `folder`.
pub(crate) fn describe(folder: &Path, place: &str, program: &Path, commit: &str) -> Result<()> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let after = |key: &str| {
        let line = cpuinfo.lines().find(|l| l.starts_with(key));
        line.and_then(|l| Some(l.split_once(": ")?.1)).unwrap_or("")
    };
    let version = Command::new(program).arg("version").output();
    let version = version.with_context(|| format!("Running {} version", program.display()))?;
    let description = Description {
        place: place.into(),
        date: jiff::Timestamp::now()
            .strftime("%Y-%m-%d %H:%M UTC")
            .to_string(),
        commit: commit.into(),
        engine: String::from_utf8_lossy(&version.stdout).trim().into(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .into(),
        cpu: after("model name").into(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_kib: meminfo("MemTotal:")?,
        hardware_virtualization: after("flags").split(' ').any(|f| f == "svm" || f == "vmx"),
        load: fs::read_to_string("/proc/loadavg")
            .unwrap_or_default()
            .trim()
            .into(),
    };
    let path = folder.join(format!("machine-{place}.json"));
    fs::write(&path, serde_json::to_string_pretty(&description)?)
        .with_context(|| format!("Writing {}", path.display()))
}

/// Every description in a folder, by place.
pub(crate) fn descriptions(folder: &Path) -> Result<Vec<Description>> {
    let mut found = Vec::new();
    for place in ["floor", "lab", "metal"] {
        let path = folder.join(format!("machine-{place}.json"));
        if let Ok(text) = fs::read_to_string(&path) {
            let description = serde_json::from_str(&text);
            found.push(description.with_context(|| format!("Reading {}", path.display()))?);
        }
    }
    Ok(found)
}

/// Memory that could be had without swapping, KiB.
pub(crate) fn available_kib() -> Result<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(key: &str) -> Result<u64> {
    kib(&fs::read_to_string("/proc/meminfo")?, key)
}

/// The value in a line such as `MemAvailable:  123 kB`.
fn kib(text: &str, key: &str) -> Result<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let value = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse().ok());
    value.with_context(|| format!("There is no {key}"))
}

/// Memory that a process has of its own, KiB: what its end would give back.
pub(crate) fn private_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
    ensure!(text.contains("Private_Dirty:"), "{path} says nothing");
    Ok(kib(&text, "Private_Clean:")? + kib(&text, "Private_Dirty:")?)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_size_is_found_by_its_key() {
        let text = "MemTotal:       24683848 kB\nMemAvailable:   21326848 kB\n";
        assert_eq!(kib(text, "MemAvailable:").unwrap(), 21_326_848);
        kib(text, "MemGone:").unwrap_err();
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        assert!(private_kib(std::process::id()).unwrap() > 0);
        assert!(available_kib().unwrap() > 0);
    }
}
