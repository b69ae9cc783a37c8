//! Facts that the kernel tells everyone.

use crate::kvm_module::KvmModules;
use crate::probe::{self, ProbeReport};
use control::{CgroupMode, CgroupSite, JailMode, NoCgroups};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Everything that is judged.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// The kernel's release, as `uname -r`.
    pub kernel: String,
    /// The processor says that it can virtualize.
    pub cpu_virtualizes: bool,
    /// What the kernel's modules for virtual machines were loaded with.
    pub modules: KvmModules,
    /// The kernel keeps debugfs.
    pub debugfs: bool,
    /// The hard limit of open files; `None` for none.
    pub open_files: Option<u64>,
    /// Least of the limits of processes and threads; `None` for none.
    pub tasks: Option<u64>,
    /// All memory, MiB.
    pub memory_mb: u64,
    /// Memory that could be had now, MiB.
    pub available_mb: u64,
    /// `vm.overcommit_memory`.
    pub overcommit: u64,
    /// The data folder.
    pub disk: Result<DiskFacts, String>,
    /// Whether the configuration is valid, or what is wrong with it besides a missing key.
    pub config: Result<(), String>,
    /// Some API key is configured.
    pub has_key: bool,
    /// What TLS would be served with, or why it could not be; `None`: it is not set up.
    pub tls: Option<Result<TlsFacts, String>>,
    /// Each program and image: what it is, where it should be, and why it cannot be read.
    pub files: Vec<(String, PathBuf, Option<String>)>,
    /// What is done where walls are missing.
    pub jail: JailMode,
    /// What is done where VM processes cannot have control groups.
    pub cgroup: CgroupMode,
    /// Where they can, for a server that is started as this program was.
    pub groups: Result<CgroupSite, NoCgroups>,
    /// Most sandboxes at one time, as configured.
    pub max_sandboxes: usize,
    /// With `clones.lazy`: why the pager's program cannot be read, or that it can. `None`: it is
    /// off.
    pub lazy: Option<Result<(), String>>,
    /// The largest template's memory, MiB.
    pub largest_mb: u32,
    /// How many name servers sandboxes have by default, or why none is known.
    pub name_servers: Result<usize, String>,
    /// What the VM program says, or why it says nothing.
    pub probe: Result<ProbeReport, String>,
}

/// A certificate that can be served with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// Where.
    pub listen: SocketAddr,
    /// The names it is for.
    pub names: String,
    /// Until when it holds, if that is known.
    pub ends: Option<String>,
    /// What is not well about it, each with what to do.
    pub warnings: Vec<String>,
}

/// A data folder that can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// The folder, or the nearest one above it that exists.
    pub path: PathBuf,
    /// Space for this user, MiB.
    pub free_mb: u64,
    /// Unnamed files can be made.
    pub unnamed_files: bool,
}

/// What the server would have, as far as it can be known.
#[derive(Clone, Debug)]
pub struct HostQuestion {
    /// The data folder.
    pub data_dir: PathBuf,
    /// Whether the configuration is valid, or what is wrong with it besides a missing key.
    pub config: Result<(), String>,
    /// Some API key is configured.
    pub has_key: bool,
    /// What TLS would be served with, or why it could not be; `None`: it is not set up.
    pub tls: Option<Result<TlsFacts, String>>,
    /// The VM program.
    pub vmm: PathBuf,
    /// The guest agent.
    pub agent: PathBuf,
    /// The network program.
    pub network: PathBuf,
    /// How many name servers sandboxes have by default, or why none is known.
    pub name_servers: Result<usize, String>,
    /// The pager's program, if memory is to be demand-paged.
    pub pager: Option<PathBuf>,
    /// What is done where walls are missing.
    pub jail: JailMode,
    /// What is done where VM processes cannot have control groups.
    pub cgroup: CgroupMode,
    /// Under which group they are to have theirs; `None`: the server's own.
    pub cgroup_parent: Option<PathBuf>,
    /// Most sandboxes at one time.
    pub max_sandboxes: usize,
    /// The templates.
    pub templates: Vec<TemplateQuestion>,
}

/// What a template is made of.
#[derive(Clone, Debug)]
pub struct TemplateQuestion {
    /// Its name.
    pub name: String,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its image.
    pub image: PathBuf,
    /// Its memory, MiB.
    pub memory_mb: u32,
}

/// Looks at everything.
#[must_use]
pub fn look(question: &HostQuestion) -> HostFacts {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let sizes = question.templates.iter().map(|template| template.memory_mb);
    HostFacts {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        cpu_virtualizes: read("/proc/cpuinfo").is_some_and(|text| virtualizes(&text)),
        modules: KvmModules::read(Path::new("/sys/module")),
        debugfs: read("/proc/filesystems").is_some_and(|text| has_word(&text, "debugfs")),
        open_files: getrlimit(Resource::Nofile).maximum,
        tasks: task_limit(),
        memory_mb: mebibytes(&memory, "MemTotal:"),
        available_mb: mebibytes(&memory, "MemAvailable:"),
        overcommit: number("/proc/sys/vm/overcommit_memory").unwrap_or(0),
        disk: disk(&question.data_dir),
        config: question.config.clone(),
        has_key: question.has_key,
        tls: question.tls.clone(),
        files: files(question),
        jail: question.jail,
        cgroup: question.cgroup,
        groups: CgroupSite::find(question.cgroup_parent.as_deref()),
        max_sandboxes: question.max_sandboxes,
        lazy: question.pager.as_deref().map(readable),
        largest_mb: sizes.max().unwrap_or(0),
        name_servers: question.name_servers.clone(),
        probe: probe::ask(&question.vmm),
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn number(path: impl AsRef<Path>) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|found| found == word)
}

fn virtualizes(cpuinfo: &str) -> bool {
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    has_word(flags, "vmx") || has_word(flags, "svm")
}

fn mebibytes(meminfo: &str, key: &str) -> u64 {
    let value = meminfo.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == key)?;
        words.next()?.parse::<u64>().ok()
    });
    value.unwrap_or(0) >> 10
}

/// The least of: this user's processes, the kernel's threads and numbers, this cgroup's tasks.
fn task_limit() -> Option<u64> {
    let kernel = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(number);
    let user = getrlimit(Resource::Nproc).maximum;
    kernel
        .into_iter()
        .chain([user, cgroup_tasks()])
        .flatten()
        .min()
}

/// The limit of this process's cgroup, in either version.
fn cgroup_tasks() -> Option<u64> {
    let groups = read("/proc/self/cgroup")?;
    let file = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let root = match controllers {
            "" => "/sys/fs/cgroup".to_owned(),
            "pids" => "/sys/fs/cgroup/pids".to_owned(),
            _ => return None,
        };
        // "max" is no number, and means no limit.
        number(format!("{root}{path}/pids.max"))
    };
    groups.lines().filter_map(file).min()
}

fn files(question: &HostQuestion) -> Vec<(String, PathBuf, Option<String>)> {
    let mut files = vec![
        ("VM program".to_owned(), question.vmm.clone()),
        ("guest agent".to_owned(), question.agent.clone()),
        ("network program".to_owned(), question.network.clone()),
    ];
    for template in &question.templates {
        let named = |what: &str| format!("{what} of template {}", template.name);
        files.push((named("kernel"), template.kernel.clone()));
        files.push((named("image"), template.image.clone()));
    }
    let check = |(what, path): (String, PathBuf)| {
        let error = std::fs::File::open(&path)
            .err()
            .map(|error| error.to_string());
        (what, path, error)
    };
    files.into_iter().map(check).collect()
}

fn readable(path: &Path) -> Result<(), String> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn disk(dir: &Path) -> Result<DiskFacts, String> {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let path = dir
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned();
    let failed = |error: rustix::io::Errno| format!("{}: {error}", path.display());
    rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).map_err(failed)?;
    let space = rustix::fs::statvfs(&path).map_err(failed)?;
    let unnamed = rustix::fs::open(
        &path,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    );
    let free_mb = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    Ok(DiskFacts {
        path,
        free_mb,
        unnamed_files: unnamed.is_ok(),
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn words_are_whole_words() {
        assert!(virtualizes("processor : 0\nflags\t\t: fpu svm npt\n"));
        assert!(!virtualizes("flags : fpu svm_lock\nvmx flags : x\n"));
        assert!(has_word("nodev\tdebugfs\n", "debugfs"));
    }

    #[test]
    fn memory_is_read_in_mebibytes() {
        let text = "MemTotal:       24576000 kB\nMemFree: 1 kB\n";
        assert_eq!(
            (mebibytes(text, "MemTotal:"), mebibytes(text, "Swap:")),
            (24_000, 0)
        );
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_is_judged_by_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(&dir.path().join("a/b")).unwrap();
        assert_eq!(disk.path, dir.path());
        assert!(disk.free_mb > 0);
    }
}
