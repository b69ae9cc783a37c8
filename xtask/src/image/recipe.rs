//! What goes into each template image.

use super::node;
use crate::cache;
use anyhow::{Result, bail};

/// Version of the steps in `build.rs`, `node.rs` and `times.rs`: raise it when they would give
/// another image.
const STEPS: &str = "2";

/// Debian release of every image.
pub(super) const SUITE: &str = "bookworm";

/// Where packages come from, at build time and in the image.
pub(super) const SOURCES: &[&str] = &[
    "deb http://deb.debian.org/debian bookworm main",
    "deb http://deb.debian.org/debian bookworm-updates main",
    "deb http://deb.debian.org/debian-security bookworm-security main",
];

/// Time of every file that the build itself makes, seconds since 1970 (2026-01-01).
pub(super) const EPOCH: u32 = 1_767_225_600;

/// Size of the disk, bytes. The file is sparse: what is unused takes no space.
const DISK: u64 = 8 << 30;

/// Packages of `base`, on top of Debian's essential ones.
const BASE_PACKAGES: &[&str] = &[
    // HTTPS for everything below
    "ca-certificates",
    // what agents fetch, clone and unpack with
    "bzip2",
    "curl",
    "git",
    "openssh-client",
    "rsync",
    "unzip",
    "wget",
    "xz-utils",
    "zip",
    // what they build with; `python3-dev` for packages of pip's that come as sources
    "g++",
    "gcc",
    "libc6-dev",
    "make",
    "patch",
    "python3-dev",
    // what they run; Node.js is npm's (`node.rs`), and needs this library
    "libstdc++6",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "sqlite3",
    "tmux",
    // what they look around with
    "file",
    "jq",
    "less",
    "nano",
    "procps",
    "psmisc",
    "ripgrep",
    "xxd",
    // users and network
    "fuse3",
    "iproute2",
    "iputils-ping",
    "libnss-myhostname",
    "netbase",
    "sudo",
    "tzdata",
];

/// A file that the build writes over what Debian has.
pub(super) struct RecipeFile {
    /// Absolute path in the image.
    pub(super) path: &'static str,
    /// Permission bits.
    pub(super) mode: u32,
    /// Whole content.
    pub(super) content: &'static str,
}

const BASE_FILES: &[RecipeFile] = &[
    RecipeFile {
        path: "/etc/hostname",
        mode: 0o644,
        content: "sandbox\n",
    },
    RecipeFile {
        path: "/etc/hosts",
        mode: 0o644,
        content: "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n",
    },
    // A sandbox's own name is the kernel's to tell: no sandbox has to write it to its disk.
    RecipeFile {
        path: "/etc/nsswitch.conf",
        mode: 0o644,
        content: LOOKUP,
    },
    // Debian's tools copy the build machine's; a sandbox's own is written when it has a network.
    RecipeFile {
        path: "/etc/resolv.conf",
        mode: 0o644,
        content: "",
    },
    // Empty: made anew in each sandbox.
    RecipeFile {
        path: "/etc/machine-id",
        mode: 0o444,
        content: "",
    },
    RecipeFile {
        path: "/etc/default/locale",
        mode: 0o644,
        content: "LANG=C.UTF-8\n",
    },
    RecipeFile {
        path: "/etc/profile",
        mode: 0o644,
        content: PROFILE,
    },
    RecipeFile {
        path: "/etc/sudoers.d/user",
        mode: 0o440,
        content: "user ALL=(ALL:ALL) NOPASSWD: ALL\n",
    },
];

/// As Debian's, with `myhostname` before the network.
const LOOKUP: &str = "passwd: files
group: files
shadow: files
gshadow: files

hosts: files myhostname dns
networks: files

protocols: db files
services: db files
ethers: db files
rpc: db files

netgroup: nis
";

/// As Debian's, with one difference: a login shell, which every command of the E2B SDKs is, asks
/// `id` who it runs for, and that is a second process for each command. Bash knows by itself.
const PROFILE: &str = r#"# Read by login shells, and so by every command of the E2B SDKs: no process is started here.

if [ "${EUID:-$(id -u)}" -eq 0 ]; then
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  prompt='# '
else
  PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games
  prompt='$ '
fi
export PATH

if [ -n "${PS1-}" ]; then
  if [ -z "${BASH-}" ] || [ "$BASH" = /bin/sh ]; then
    PS1=$prompt
  elif [ -f /etc/bash.bashrc ]; then
    . /etc/bash.bashrc
  fi
fi
unset prompt

for part in /etc/profile.d/*.sh; do
  if [ -r "$part" ]; then
    . "$part"
  fi
done
unset part
"#;

/// Paths that the build removes: a folder ending in `/` is emptied, anything else deleted.
const BASE_REMOVED: &[&str] = &[
    // `pip install` works without a virtual environment: the sandbox is one.
    "/usr/lib/python3.11/EXTERNALLY-MANAGED",
    // Device nodes: the guest mounts devtmpfs there.
    "/dev/",
    "/run/",
    "/tmp/",
    "/var/tmp/",
    "/var/log/",
    "/var/cache/apt/",
    "/var/lib/apt/lists/",
    // Holds inode numbers of the build machine.
    "/var/cache/ldconfig/aux-cache",
    "/var/cache/debconf/config.dat-old",
    "/var/cache/debconf/templates.dat-old",
    "/var/lib/dpkg/status-old",
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/passwd-",
    "/etc/shadow-",
    "/etc/subgid-",
    "/etc/subuid-",
    // A login shell runs it after its command, and what fails there becomes the command's status.
    // Root's home has none.
    "/etc/bash.bash_logout",
    "/etc/skel/.bash_logout",
    "/home/user/.bash_logout",
    // Options of the build.
    "/etc/apt/apt.conf.d/99mmdebstrap",
];

/// How one template image is made.
pub(super) struct ImageRecipe {
    /// Template name.
    pub(super) name: &'static str,
    /// Debian packages on top of the essential ones.
    pub(super) packages: &'static [&'static str],
    /// Files written over Debian's.
    pub(super) files: &'static [RecipeFile],
    /// Paths removed or, with a `/` at the end, emptied.
    pub(super) removed: &'static [&'static str],
    /// Size of the disk, bytes.
    pub(super) disk: u64,
}

const RECIPES: &[ImageRecipe] = &[ImageRecipe {
    name: "base",
    packages: BASE_PACKAGES,
    files: BASE_FILES,
    removed: BASE_REMOVED,
    disk: DISK,
}];

impl ImageRecipe {
    /// The recipe of template `name`.
    pub(super) fn named(name: &str) -> Result<Self> {
        let known = || {
            RECIPES
                .iter()
                .map(|r| r.name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        match RECIPES.iter().find(|r| r.name == name) {
            Some(recipe) => Ok(Self { ..*recipe }),
            None => bail!("There is no template `{name}`; known: {}", known()),
        }
    }

    /// A key over everything here; package versions come on top of it.
    pub(super) fn key(&self) -> String {
        let mut parts = vec![STEPS.to_owned(), SUITE.to_owned(), self.name.to_owned()];
        parts.extend(SOURCES.iter().chain(self.packages).map(ToString::to_string));
        parts.extend(
            self.files
                .iter()
                .map(|f| format!("{} {:o} {}", f.path, f.mode, f.content)),
        );
        parts.extend(self.removed.iter().map(ToString::to_string));
        parts.extend(node::parts().map(String::from));
        parts.push(format!("{} {EPOCH}", self.disk));
        cache::key(parts.iter().map(String::as_bytes))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_key_is_stable_and_covers_the_packages() {
        let base = ImageRecipe::named("base").unwrap();
        let smaller = ImageRecipe {
            packages: &base.packages[1..],
            ..ImageRecipe::named("base").unwrap()
        };
        assert_eq!(base.key(), ImageRecipe::named("base").unwrap().key());
        assert_ne!(base.key(), smaller.key());
    }

    #[test]
    fn an_unknown_template_names_the_known_ones() {
        let error = ImageRecipe::named("bse").err().unwrap().to_string();
        assert!(error.contains("`bse`") && error.contains("base"), "{error}");
    }

    #[test]
    fn a_login_shell_starts_no_process() {
        let profile = PROFILE.replace("/etc/profile.d", "/nowhere");
        let script = format!("PATH=/nowhere; PS1=; {profile}\necho \"$PATH\"");
        let ran = std::process::Command::new("/bin/bash")
            .args(["--norc", "--noprofile", "-c", &script])
            .output()
            .unwrap();
        // Any program at all would not have been found.
        assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
        assert!(String::from_utf8_lossy(&ran.stdout).contains("/usr/local/bin:"));
    }

    #[test]
    fn paths_stay_inside_the_image() {
        let base = ImageRecipe::named("base").unwrap();
        for path in base
            .files
            .iter()
            .map(|f| f.path)
            .chain(base.removed.iter().copied())
        {
            assert!(path.starts_with('/') && !path.contains(".."), "{path}");
        }
    }
}
