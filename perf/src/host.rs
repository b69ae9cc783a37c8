//! What a machine is, and what it has left.

use crate::processes::{self, stat_fields};
use crate::record::{BASELINE, COUNTED, UNCOUNTED};
use crate::renamed;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// So much memory is used to see whether the machine notices.
const PROBE_KIB: usize = 64 << 10;

/// What figures were taken on. Written beside the records of a place as `machine-<place>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostDescription {
    /// `baseline`, `lab`, `lab-wall` or `metal`.
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
    let description = description(place, program, commit)?;
    let path = folder.join(format!("machine-{place}.json"));
    fs::write(&path, serde_json::to_string_pretty(&description)?)
        .with_context(|| format!("Writing {}", path.display()))
}

/// What this machine is.
pub(crate) fn description(place: &str, program: &Path, commit: &str) -> Result<HostDescription> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let after = |key: &str| {
        let line = cpuinfo.lines().find(|l| l.starts_with(key));
        line.and_then(|l| Some(l.split_once(": ")?.1)).unwrap_or("")
    };
    let version = Command::new(program).arg("version").output();
    let version = version.with_context(|| format!("Running {} version", program.display()))?;
    Ok(HostDescription {
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
    })
}

/// Every description in a folder.
pub(crate) fn descriptions(folder: &Path) -> Result<Vec<HostDescription>> {
    let mut found = Vec::new();
    for place in ["floor", BASELINE, COUNTED, UNCOUNTED, "metal"] {
        let path = folder.join(format!("machine-{place}.json"));
        if let Ok(text) = fs::read_to_string(&path) {
            let description = serde_json::from_str(&text);
            let mut description: HostDescription =
                description.with_context(|| format!("Reading {}", path.display()))?;
            description.place = renamed::place(description.place);
            found.push(description);
        }
    }
    Ok(found)
}

/// Memory that could be had without swapping, KiB.
pub(crate) fn available_kib() -> Result<u64> {
    meminfo("MemAvailable:")
}

/// [`available_kib`], if it is true here: on some machines it stands still whatever is used.
pub(crate) fn true_available_kib() -> Result<Option<u64>> {
    static TRUE: OnceLock<bool> = OnceLock::new();
    let kib = available_kib()?;
    if let Some(known) = TRUE.get() {
        return Ok(known.then_some(kib));
    }
    let used = std::hint::black_box(vec![1_u8; PROBE_KIB << 10]);
    let fell = kib.saturating_sub(available_kib()?);
    drop(used);
    let moves = fell > PROBE_KIB as u64 / 2;
    if !moves {
        eprintln!("MemAvailable does not fall when memory is used: it is left out of the figures");
    }
    Ok(TRUE.get_or_init(|| moves).then_some(kib))
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

/// Page faults of this machine's processes since it started, those for guests among them.
pub(crate) fn faults() -> Result<u64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let line = text.lines().find_map(|l| l.strip_prefix("pgfault "));
    let value = line.and_then(|l| l.trim().parse().ok());
    value.context("/proc/vmstat does not say pgfault")
}

/// Memory that a process has of its own, KiB: what its end would give back.
pub(crate) fn private_kib(pid: u32) -> Result<u64> {
    let text = mappings(pid)?;
    Ok(kib(&text, "Private_Clean:")? + kib(&text, "Private_Dirty:")?)
}

/// Memory of a process that is no file's, KiB: what it has written.
pub(crate) fn anonymous_kib(pid: u32) -> Result<u64> {
    kib(&mappings(pid)?, "Anonymous:")
}

fn mappings(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
    ensure!(text.contains("Private_Dirty:"), "{path} says nothing");
    Ok(text)
}

/// CPU time of children that have been waited for, nanoseconds, as fine as the kernel's ticks.
pub(crate) fn children_cpu_ns() -> Result<u64> {
    Ok(cpu_ticks()?.1 * NS_PER_TICK)
}

/// The same and this process's own.
pub(crate) fn all_cpu_ns() -> Result<u64> {
    let (own, children) = cpu_ticks()?;
    Ok((own + children) * NS_PER_TICK)
}

/// `USER_HZ` is 100 on every machine that Linux shows to programs.
const NS_PER_TICK: u64 = 10_000_000;

/// Own and waited-for children's user and system time, in ticks.
fn cpu_ticks() -> Result<(u64, u64)> {
    let fields = stat_fields("self")?;
    let field = |n: usize| {
        fields
            .get(n)
            .and_then(|f| f.parse::<u64>().ok())
            .unwrap_or(0)
    };
    Ok((field(11) + field(12), field(13) + field(14)))
}

/// How long this machine's processors have been busy since it started, all together; `None` if the
/// kernel keeps no such account.
pub(crate) fn busy_ns() -> Option<u64> {
    busy(&fs::read_to_string("/proc/schedstat").ok()?)
}

/// The seventh figure of each processor's line is the time that its tasks have run.
fn busy(text: &str) -> Option<u64> {
    const RAN: usize = 7;
    let lines = text.lines().filter(|line| line.starts_with("cpu"));
    lines
        .map(|line| line.split(' ').nth(RAN)?.parse::<u64>().ok())
        .sum()
}

/// What is in use now, and would be more if something were left behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leftovers {
    /// Processes of this session: whoever starts one is in it, and so are its orphans.
    pub(crate) processes: u64,
    /// Descriptors of this process.
    pub(crate) descriptors: u64,
    /// Memory of this process's own.
    pub(crate) own_kib: u64,
    /// Memory of the machine that could be had, if it says so.
    pub(crate) available_kib: Option<u64>,
    /// Files in the benchmark's own folder.
    pub(crate) disk_kib: u64,
}

impl Leftovers {
    /// Looks; `folder` is the benchmark's own.
    pub(crate) fn now(folder: &Path) -> Result<Self> {
        Ok(Self {
            processes: u64::try_from(session()?.len())?,
            descriptors: u64::try_from(fs::read_dir("/proc/self/fd")?.count())?,
            own_kib: private_kib(std::process::id())?,
            available_kib: true_available_kib()?,
            disk_kib: folder_kib(folder)?,
        })
    }
}

/// By how much each figure grew, from its value before and after; zero for one that shrank.
pub(crate) fn growth<const N: usize>(
    figures: [(&'static str, u64, u64); N],
) -> [(&'static str, u64); N] {
    figures.map(|(name, before, after)| (name, after.saturating_sub(before)))
}

/// What the files of a folder take of its disk, KiB: each once, whatever its names. What ends while
/// this looks is not counted.
pub(crate) fn folder_kib(folder: &Path) -> Result<u64> {
    let mut blocks = BTreeMap::new();
    let mut next = vec![folder.to_path_buf()];
    while let Some(folder) = next.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("Listing {}", folder.display()))?,
        };
        for entry in entries.flatten() {
            let Ok(about) = entry.metadata() else {
                continue;
            };
            if about.is_dir() {
                next.push(entry.path());
            }
            blocks.insert((about.dev(), about.ino()), about.blocks());
        }
    }
    Ok(blocks.values().sum::<u64>() / 2)
}

/// The processes of this session.
fn session() -> Result<Vec<String>> {
    const SESSION: usize = 3;
    let mine = stat_fields("self")?.get(SESSION).cloned();
    let pids = processes::all()?.into_iter().map(|pid| pid.to_string());
    let session = |pid: &String| stat_fields(pid).ok()?.get(SESSION).cloned();
    Ok(pids.filter(|pid| session(pid) == mine).collect())
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
    fn busy_time_is_that_of_all_processors() {
        let text = "version 16\ntimestamp 42\ncpu0 0 0 0 0 0 0 12 3 4\ndomain0 3 1 2\ncpu1 9 9 9 9 9 9 30 3 4\n";
        assert_eq!(busy(text), Some(42));
        assert_eq!(busy("cpu0 1 2\n"), None);
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        assert!(private_kib(std::process::id()).unwrap() > 0);
        assert!(available_kib().unwrap() > 0);
    }

    #[test]
    fn growth_is_what_came_to_it() {
        let grown = growth([("a", 3, 10), ("b", 10, 3), ("c", 5, 5)]);
        assert_eq!(grown, [("a", 7), ("b", 0), ("c", 0)]);
    }

    #[test]
    fn a_folders_files_count_once_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let before = folder_kib(folder.path()).unwrap();
        let deep = folder.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), vec![1; 256 << 10]).unwrap();
        fs::hard_link(deep.join("file"), folder.path().join("same")).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("file"), vec![1; 8 << 20]).unwrap();
        let grown = folder_kib(folder.path()).unwrap() - before;
        assert!((256..512).contains(&grown), "{grown} KiB");
        fs::remove_dir_all(folder.path().join("a")).unwrap();
        fs::remove_file(folder.path().join("same")).unwrap();
        assert_eq!(folder_kib(folder.path()).unwrap(), before);
        assert_eq!(folder_kib(&deep).unwrap(), 0);
    }

    #[test]
    fn a_child_that_is_there_is_seen() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let with = session().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let after = session().unwrap();
        let pid = child.id().to_string();
        assert!(with.contains(&pid), "{pid} is not in {with:?}");
        assert!(!after.contains(&pid), "{pid} is in {after:?}");
        assert!(Leftovers::now(&std::env::temp_dir()).unwrap().descriptors > 0);
    }
}
