//! Where the control groups of a server's VM processes and network processes are.
//!
//! ```text
//! the group that the service was started in, or resources.cgroup_parent
//!  └─ hatchery-<device>-<inode of the data folder>   one a server: nobody else's groups in it
//!      ├─ service     the service, its zygote and its pager: only where they must leave the above
//!      ├─ vm-1        one a VM process, which is born in it
//!      ├─ vm-2
//!      └─ net-3       one a network process, made when it is started
//! ```
//!
//! A group counts the memory that its processes touch first. Pages of base memory are made, and so
//! paid for, by the service; a clone pays for those that it writes. A cached page of a template's
//! image is the first reader's, which gives it up when it needs the room.

use crate::machine::control_group::{
    ControlGroup, GroupError, GroupLimits, MOST_WEIGHT, PERIOD_US, WEIGHT, kill, remove,
};
use crate::machine::group::{GroupRules, MachineSize, VmGroup};
use control::{CgroupMode, CgroupSite, NoCgroups};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

/// What the groups of VM processes are called.
const VM: &str = "vm-";
/// And those of network processes.
const NET: &str = "net-";
/// Memory of a network process without flows, and for each flow its buffers and those that the
/// kernel keeps for its socket, bytes.
const NET_MEMORY: u64 = 64 << 20;
const FLOW_MEMORY: u64 = 64 << 10;
/// Tasks of a network process, which is one.
const NET_TASKS: u32 = 8;
/// The service's own group.
const SERVICE: &str = "service";

/// What an operator says of control groups.
#[derive(Clone, Debug, Default)]
pub struct GroupOptions {
    /// What is done where there are none.
    pub mode: CgroupMode,
    /// Where they are to be made; `None`: under the service's own.
    pub parent: Option<PathBuf>,
    /// Memory of a VM process beside its guest's, MiB.
    pub memory_overhead_mb: u64,
}

/// What VM processes are limited in on this host, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourcesView {
    /// What is done where there are no groups: `auto`, `required` or `off`.
    pub mode: &'static str,
    /// The controllers that stand.
    pub standing: Vec<&'static str>,
    /// Those that are missing.
    pub missing: Vec<&'static str>,
}

/// Why a VM process has no group, and so is not made.
#[derive(Debug, thiserror::Error)]
pub enum NoGroup {
    /// The host offers none.
    #[error(
        "No sandbox starts on this host, because resources.cgroup = \"required\" and there are no \
         control groups: {0}. `hatchery doctor` tells more; \"auto\" starts sandboxes without \
         limits of memory and processor"
    )]
    Missing(String),
    /// This one could not be made.
    #[error(transparent)]
    Failed(#[from] GroupError),
}

/// All groups of a server.
#[derive(Debug)]
pub struct GroupTree {
    mode: CgroupMode,
    place: Result<GroupPlace, NoCgroups>,
    next: AtomicU64,
}

#[derive(Debug)]
struct GroupPlace {
    base: PathBuf,
    controllers: Vec<&'static str>,
    rules: GroupRules,
}

impl GroupTree {
    /// Makes the server's group for the data folder `data`, moves the calling process into it where
    /// the kernel wants that, and removes what a crashed server of this folder left. Says in the
    /// log what became of it.
    #[must_use]
    pub fn open(options: &GroupOptions, data: &Path) -> Self {
        let place = match options.mode {
            CgroupMode::Off => Err(NoCgroups {
                why: "they are switched off".into(),
                remedy: "set resources.cgroup = \"auto\"",
            }),
            CgroupMode::Auto | CgroupMode::Required => CgroupSite::find(options.parent.as_deref())
                .and_then(|site| GroupPlace::make(&site, options.memory_overhead_mb, data)),
        };
        match &place {
            Ok(place) => {
                let (path, what) = (place.base.display(), place.controllers.join(", "));
                tracing::info!(%path, "each VM process has a control group: {what}");
            }
            Err(why) if options.mode == CgroupMode::Required => {
                tracing::error!(%why, "no sandbox will start: there are no control groups");
            }
            Err(why) => tracing::warn!(
                %why,
                "VM processes have no control groups: sandboxes can take processor and memory from \
                 each other"
            ),
        }
        Self {
            mode: options.mode,
            place,
            next: AtomicU64::new(1),
        }
    }

    /// None, for machines that need none.
    #[must_use]
    pub fn none() -> Self {
        let mode = CgroupMode::Off;
        let options = GroupOptions {
            mode,
            ..GroupOptions::default()
        };
        Self::open(&options, Path::new("/"))
    }

    /// What stands.
    #[must_use]
    pub fn view(&self) -> ResourcesView {
        let standing = self.place.as_ref().map(|place| place.controllers.clone());
        let standing = standing.unwrap_or_default();
        let is_missing = |name: &&str| !standing.contains(name);
        ResourcesView {
            mode: self.mode.name(),
            missing: control::CONTROLLERS
                .into_iter()
                .filter(is_missing)
                .collect(),
            standing,
        }
    }

    /// A group for a machine; `None`: it goes without. Takes some file operations: not for a claim.
    ///
    /// # Errors
    /// [`NoGroup`], if groups are required.
    pub fn for_machine(&self, size: MachineSize) -> Result<Option<VmGroup>, NoGroup> {
        self.make(VM, |path, place| VmGroup::new(path, size, place.rules))
    }

    /// A group for a network process of so many flows: the time of one processor at most. `None`:
    /// it goes without.
    ///
    /// # Errors
    /// [`NoGroup`], if groups are required.
    pub fn for_network(&self, flows: u32) -> Result<Option<ControlGroup>, NoGroup> {
        let limits = GroupLimits {
            memory: NET_MEMORY + u64::from(flows) * FLOW_MEMORY,
            quota_us: PERIOD_US,
            weight: WEIGHT,
            tasks: NET_TASKS,
        };
        self.make(NET, |path, _| ControlGroup::new(path, limits))
    }

    fn make<G>(
        &self,
        prefix: &str,
        new: impl FnOnce(PathBuf, &GroupPlace) -> Result<G, GroupError>,
    ) -> Result<Option<G>, NoGroup> {
        let required = self.mode == CgroupMode::Required;
        let place = match &self.place {
            Ok(place) => place,
            Err(why) if required => return Err(NoGroup::Missing(why.to_string())),
            Err(_) => return Ok(None),
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        match new(place.base.join(format!("{prefix}{number}")), place) {
            Ok(group) => Ok(Some(group)),
            Err(error) if required => Err(error.into()),
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::warn!(error, "a process goes without a control group");
                Ok(None)
            }
        }
    }
}

impl Drop for GroupTree {
    fn drop(&mut self) {
        if let Ok(place) = &self.place {
            // A service that is in it leaves it to the next one.
            let _ = fs::remove_dir(&place.base);
        }
    }
}

impl GroupPlace {
    fn make(site: &CgroupSite, overhead_mb: u64, data: &Path) -> Result<Self, NoCgroups> {
        let about = fs::metadata(data).map_err(|error| cannot("look at", data, &error))?;
        let name = format!("hatchery-{:x}-{:x}", about.dev(), about.ino());
        let base = site.dir.join(name);
        let make =
            |dir: &Path| fs::create_dir_all(dir).map_err(|error| cannot("make", dir, &error));
        make(&base)?;
        clear(&base);
        let write = |path: PathBuf, value: &str| {
            fs::write(&path, value).map_err(|error| cannot("write to", &path, &error))
        };
        if !site.is_root && is_in(&site.dir) {
            let service = base.join(SERVICE);
            make(&service)?;
            write(service.join("cgroup.procs"), "0")?;
        }
        let wanted: Vec<_> = site.controllers.iter().map(|c| format!("+{c}")).collect();
        for dir in [&site.dir, &base] {
            write(dir.join("cgroup.subtree_control"), &wanted.join(" "))?;
        }
        // Beside processes, as in the host's first group, it weighs as one; so it gets as many as
        // there are processors for them to be on. These are not worth a server.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = u64::try_from(processors).unwrap_or(MOST_WEIGHT);
        let weight = processors.saturating_mul(WEIGHT).min(MOST_WEIGHT);
        let _ = fs::write(base.join("cpu.weight"), weight.to_string());
        // The service works for all, and little.
        let most = MOST_WEIGHT.to_string();
        let _ = fs::write(base.join(SERVICE).join("cpu.weight"), most);
        Ok(Self {
            base,
            controllers: site.controllers.clone(),
            rules: GroupRules {
                overhead: overhead_mb << 20,
                files_are_memory: is_memory(data),
            },
        })
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> NoCgroups {
    NoCgroups {
        why: format!("cannot {what} {}: {error}", path.display()),
        remedy: "with systemd: Delegate=yes in the service's unit; or name another group by \
                 resources.cgroup_parent",
    }
}

/// Whether the calling process is in this group itself.
fn is_in(dir: &Path) -> bool {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let me = std::process::id();
    text.lines().any(|line| line.parse() == Ok(me))
}

/// Ends and removes the groups that an earlier server left.
fn clear(base: &Path) {
    let groups = fs::read_dir(base).into_iter().flatten().flatten();
    let groups = groups.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(VM) || name.starts_with(NET)
    });
    let mut removed = 0;
    for group in groups {
        // Its processes have ended, or been ended by their notes; this is for one without a note.
        kill(&group.path());
        remove(&group.path());
        removed += 1;
    }
    if removed > 0 {
        tracing::info!(
            removed,
            "control groups of an earlier server were still there"
        );
    }
}

/// Whether what is written under a folder stays in memory.
fn is_memory(dir: &Path) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(dir).map(|about| u64::try_from(about.f_type).unwrap_or(0));
    matches!(kind, Ok(TMPFS | RAMFS))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::{Child, Command};

    const SIZE: MachineSize = MachineSize {
        vcpus: 1,
        memory_mib: 16,
        disk: 0,
    };

    fn options(mode: CgroupMode, parent: &Path) -> GroupOptions {
        GroupOptions {
            mode,
            parent: Some(parent.to_owned()),
            memory_overhead_mb: 16,
        }
    }

    #[test]
    fn where_there_are_none_machines_go_without_unless_they_are_required() {
        let dir = tempfile::tempdir().unwrap();
        let tree = GroupTree::open(&options(CgroupMode::Auto, dir.path()), dir.path());
        assert!(tree.for_machine(SIZE).unwrap().is_none());
        assert_eq!(tree.view().missing, control::CONTROLLERS);
        let tree = GroupTree::open(&options(CgroupMode::Required, dir.path()), dir.path());
        let why = tree.for_machine(SIZE).unwrap_err().to_string();
        assert!(why.contains("is no control group"), "{why}");
        assert_eq!(
            (tree.view().mode, tree.view().standing.len()),
            ("required", 0)
        );
        assert!(GroupTree::none().for_machine(SIZE).unwrap().is_none());
    }

    /// A tree on this host, and the folder that it is for; `None` where there are no groups.
    fn tree() -> Option<(GroupTree, tempfile::TempDir)> {
        let dir = tempfile::tempdir().unwrap();
        let site = CgroupSite::find(None).ok().filter(|site| site.is_root);
        let Some(site) = site else {
            eprintln!("skipped: this needs root, in the first control group of a host");
            return None;
        };
        let tree = GroupTree::open(&options(CgroupMode::Required, &site.dir), dir.path());
        Some((tree, dir))
    }

    fn run(group: &ControlGroup, script: &str) -> Child {
        let wait = format!("read go; {script}");
        let mut child = Command::new("/bin/sh");
        let child = child
            .args(["-c", &wait])
            .stdin(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        group
            .take(rustix::process::Pid::from_child(&child))
            .unwrap();
        drop(child.stdin.take());
        child
    }

    #[test]
    fn a_process_that_takes_more_memory_than_its_group_has_is_ended_and_it_is_told() {
        let Some((tree, _dir)) = tree() else { return };
        let group = tree.for_machine(SIZE).unwrap().unwrap();
        let status = run(&group, "x=0123456789abcdef; while :; do x=$x$x; done")
            .wait()
            .unwrap();
        assert!(!status.success(), "{status}");
        assert_eq!(
            group.shortage(),
            Some(crate::machine::group::MemoryShortage::OwnLimit(32))
        );
    }

    #[test]
    fn groups_go_with_their_machines_and_what_a_crash_left_goes_at_the_next_start() {
        let Some((tree, dir)) = tree() else { return };
        let base = tree.place.as_ref().unwrap().base.clone();
        let group = tree.for_machine(SIZE).unwrap().unwrap();
        assert!(base.join("vm-1").exists());
        assert_eq!(group.shortage(), None);
        drop(group);
        assert!(!base.join("vm-1").exists());
        let left = tree.for_machine(SIZE).unwrap().unwrap();
        let network = tree.for_network(1024).unwrap().unwrap();
        let memory = fs::read_to_string(base.join("net-3/memory.max")).unwrap();
        assert_eq!(memory.trim(), (128_u64 << 20).to_string());
        let mut children = [run(&left, "sleep 600"), run(&network, "sleep 600")];
        std::mem::forget((left, network, tree));
        let site = base.parent().unwrap().to_owned();
        let next = GroupTree::open(&options(CgroupMode::Required, &site), dir.path());
        for child in &mut children {
            assert!(!child.wait().unwrap().success(), "it was ended");
        }
        assert!(!base.join("vm-2").exists() && !base.join("net-3").exists());
        drop(next);
        assert!(!base.exists());
    }
}
