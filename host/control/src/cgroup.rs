//! Where control groups (version 2) for VM processes can be made on this host, and what is to be
//! done where they cannot.

use rustix::fs::{Access, access};
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// The controllers that a VM process's group has to have.
pub const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// One more, which some hosts do not have: who wrote is told of each write to a disk.
const OPTIONAL: &str = "io";

/// What is to be done where VM processes cannot have control groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupMode {
    /// They go without, and that is told.
    #[default]
    Auto,
    /// No VM process is made.
    Required,
    /// They go without in any case.
    Off,
}

impl CgroupMode {
    /// As it is written in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Required => "required",
            Self::Off => "off",
        }
    }
}

/// Why there are no groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoCgroups {
    /// What stood in the way.
    pub why: String,
    /// What an operator can do about it.
    pub remedy: &'static str,
}

impl fmt::Display for NoCgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.why, self.remedy)
    }
}

/// A group under which others can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupSite {
    /// Its folder.
    pub dir: PathBuf,
    /// Whether it is the host's first one, which may hold processes beside groups with limits.
    pub is_root: bool,
    /// What can be limited there, of [`CONTROLLERS`] and `io`.
    pub controllers: Vec<&'static str>,
}

const DELEGATE: &str = "with systemd: Delegate=yes in the service's unit; in a container: mount \
                        /sys/fs/cgroup writable, with a cgroup namespace of its own; or name a \
                        group by resources.cgroup_parent";

impl CgroupSite {
    /// Looks at `parent`, or where there is none at the group of the calling process. Changes
    /// nothing.
    ///
    /// # Errors
    /// [`NoCgroups`].
    pub fn find(parent: Option<&Path>) -> Result<Self, NoCgroups> {
        let dir = match parent {
            Some(parent) => parent.to_owned(),
            None => own_group()?,
        };
        let (site, me) = (Self::look(dir)?, std::process::id());
        let text = std::fs::read_to_string(site.dir.join("cgroup.procs")).unwrap_or_default();
        let others = text.lines().filter(|line| line.parse() != Ok(me)).count();
        if !site.is_root && others > 0 {
            return Err(NoCgroups {
                why: format!(
                    "{others} other processes are in {}, which cannot have limited groups under \
                     it as long as they are",
                    site.dir.display()
                ),
                remedy: "start `hatchery serve` as the only process of its group (exec it, or as \
                         a systemd unit), or name a group by resources.cgroup_parent",
            });
        }
        Ok(site)
    }

    /// What a folder offers, whoever is in it.
    fn look(dir: PathBuf) -> Result<Self, NoCgroups> {
        let read = |file: &str| std::fs::read_to_string(dir.join(file));
        let no = |why: String| NoCgroups {
            why,
            remedy: DELEGATE,
        };
        let offered = read("cgroup.controllers").map_err(|error| {
            let path = dir.display();
            no(format!("{path} is no control group of version 2: {error}"))
        })?;
        let has = |name: &&str| offered.split_whitespace().any(|word| word == *name);
        let lacks: Vec<_> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
        if !lacks.is_empty() {
            let path = dir.display();
            return Err(no(format!("{path} has no {} controller", lacks.join(", "))));
        }
        for file in ["cgroup.subtree_control", "cgroup.procs"] {
            let path = dir.join(file);
            access(&path, Access::WRITE_OK)
                .map_err(|error| no(format!("{} cannot be written: {error}", path.display())))?;
        }
        Ok(Self {
            // Only the first group has no type.
            is_root: !dir.join("cgroup.type").exists(),
            controllers: CONTROLLERS
                .into_iter()
                .chain([OPTIONAL].into_iter().filter(has))
                .collect(),
            dir,
        })
    }
}

/// The folder of the calling process's group.
fn own_group() -> Result<PathBuf, NoCgroups> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (mounts, groups) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    match (mount_point(&mounts), path) {
        (Some(mount), Some(path)) if !path.starts_with("..") => Ok(mount.join(path)),
        _ => Err(NoCgroups {
            why: "no control groups of version 2 are mounted here".into(),
            remedy: "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 at \
                     /sys/fs/cgroup",
        }),
    }
}

/// Where control groups of version 2 are mounted: proc(5), the fifth field, and the type behind
/// the dash.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let is_ours = rest.split_whitespace().next() == Some("cgroup2");
        let point = mount.split_whitespace().nth(4)?;
        is_ours.then(|| point.into())
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;

    fn group(controllers: &str) -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("hatchery-cgroup-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        for (file, text) in [
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", ""),
            ("cgroup.procs", ""),
            ("cgroup.type", "domain\n"),
        ] {
            fs::write(dir.join(file), text).unwrap();
        }
        dir
    }

    #[test]
    fn the_mount_is_found_by_its_type() {
        let text = "24 1 0:22 / /sys/fs/cgroup ro - tmpfs cgroup ro\n\
                    31 24 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mount_point(text),
            Some("/sys/fs/cgroup/unified".into()),
            "not the one of version 1"
        );
        assert_eq!(mount_point("24 1 0:22 / / rw - ext4 /dev/root rw\n"), None);
    }

    #[test]
    fn a_group_offers_what_it_says_and_is_refused_in_words() {
        let dir = group("cpuset cpu io memory pids\n");
        let site = CgroupSite::find(Some(&dir)).unwrap();
        assert_eq!(site.controllers, ["memory", "cpu", "pids", "io"]);
        assert!(!site.is_root);
        fs::write(dir.join("cgroup.procs"), "1\n2\n").unwrap();
        let why = CgroupSite::find(Some(&dir)).unwrap_err().why;
        assert!(why.starts_with("2 other processes"), "{why}");
        fs::remove_file(dir.join("cgroup.type")).unwrap();
        assert!(CgroupSite::find(Some(&dir)).unwrap().is_root);
        fs::remove_dir_all(dir).unwrap();

        let dir = group("cpu\n");
        let why = CgroupSite::find(Some(&dir)).unwrap_err().why;
        assert!(why.ends_with("has no memory, pids controller"), "{why}");
        fs::remove_dir_all(&dir).unwrap();
        let why = CgroupSite::find(Some(&dir)).unwrap_err().why;
        assert!(why.contains("is no control group"), "{why}");
    }
}
