//! Which QEMU emulates a lab: a newer one than Debian 12's, which takes a sixth less time.
//!
//! Debian's own QEMU 10 for Debian 12 is in its backports. It is fetched from there by a source
//! list of its own, so that the machine's list stays as it is, checked by apt with Debian's keys,
//! and unpacked into the cache, not installed: the libraries that it needs come with the installed
//! one. Instructions are counted as 7.2 counts them: the medians of `bench clone` differ by 0.2 %
//! at most.

use super::package::apt_update;
use crate::kernel::output;
use crate::{cache, deps};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "qemu-system-x86_64";
/// The major version from which on the installed one is as good as that of the backports.
const GOOD: u32 = 10;
/// Which packages, by their exact versions: the key of the cache covers them, as it must.
const PACKAGES: [&str; 3] = [
    "qemu-system-x86=1:10.0.2+ds-2+deb13u1~bpo12+1",
    "qemu-system-data=1:10.0.2+ds-2+deb13u1~bpo12+1",
    "seabios=1.16.3-2~bpo12+1",
];
/// The release that the machine has by its own source list, in whose archive the backports are.
const RELEASE: &str = "bookworm";
/// Who must have signed them.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What is kept of the packages, and what it is called in the cache.
const KEPT: [(&str, &str); 3] = [
    ("usr/bin/qemu-system-x86_64", PROGRAM),
    ("usr/share/qemu", "data"),
    ("usr/share/seabios", "firmware"),
];

/// A QEMU that can be started.
#[derive(Debug)]
pub(super) struct QemuProgram {
    program: PathBuf,
    /// Where its firmware is, if not where it looks by itself.
    firmware: Vec<PathBuf>,
}

impl QemuProgram {
    /// The one for a lab, fetched if need be. Without the newer one it is the installed one, and a
    /// line says why.
    ///
    /// # Errors
    /// If QEMU cannot be installed.
    pub(super) fn ensure() -> Result<Self> {
        deps::ensure(&["qemu-system-x86"])?;
        let installed = Self {
            program: PROGRAM.into(),
            firmware: Vec::new(),
        };
        if installed.version().is_ok_and(|version| version >= GOOD) {
            return Ok(installed);
        }
        Ok(Self::backport().unwrap_or_else(|error| {
            let why = format!("{error:#}").replace('\n', " | ");
            eprintln!(
                "lab: slower than need be: QEMU {GOOD} of Debian's backports cannot be had: {why}"
            );
            installed
        }))
    }

    /// That of the backports, from the cache or Debian's archive.
    fn backport() -> Result<Self> {
        let inputs = ["lab qemu 1"].into_iter().chain(PACKAGES);
        let key = cache::key(inputs.map(str::as_bytes));
        let dir = cache::entry("lab", &format!("qemu-{key}"), fetch)?;
        Ok(Self::unpacked(&dir))
    }

    /// The one whose parts are in a folder by the names of [`KEPT`].
    fn unpacked(dir: &Path) -> Self {
        Self {
            program: dir.join(PROGRAM),
            firmware: vec![dir.join("data"), dir.join("firmware")],
        }
    }

    /// A command that runs it, without its arguments.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
    }

    /// Its major version, as it says itself.
    fn version(&self) -> Result<u32> {
        let said = output(self.command().arg("--version"))?;
        major(&said).with_context(|| format!("{} names no version: {said}", self.program.display()))
    }
}

/// The major version in what `--version` prints.
fn major(said: &str) -> Option<u32> {
    let (_, version) = said.split_once("version ")?;
    version.split('.').next()?.parse().ok()
}

/// Fetches and unpacks the packages into a folder, and tries whether the program runs here.
fn fetch(dir: &Path) -> Result<()> {
    deps::ensure(&["debian-archive-keyring"])?;
    eprintln!("lab: fetching QEMU {GOOD} of Debian's backports (about 15 MB)");
    let (apt, list, settings) = (
        dir.join("apt"),
        dir.join("sources.list"),
        dir.join("apt.conf"),
    );
    for folder in ["lists/partial", "cache/archives/partial"] {
        let folder = apt.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("Creating {}", folder.display()))?;
    }
    let source = source(&archive()?);
    for (file, text) in [(&list, &source), (&settings, &own_settings(&list, &apt))] {
        fs::write(file, text).with_context(|| format!("Writing {}", file.display()))?;
    }
    let apt_get = |verb: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-qq").args(verb).current_dir(dir);
        output(command.env("APT_CONFIG", &settings)).map(drop)
    };
    apt_get(&["update"])?;
    apt_get(&[&["download"][..], &PACKAGES].concat())?;
    unpack(dir)?;
    fs::remove_dir_all(&apt).with_context(|| format!("Removing {}", apt.display()))?;
    let version = QemuProgram::unpacked(dir).version()?;
    if version < GOOD {
        bail!("it says that it is QEMU {version}");
    }
    Ok(())
}

/// Where this machine's apt has its packages from.
fn archive() -> Result<String> {
    if let Some(archive) = known_archive()? {
        return Ok(archive);
    }
    apt_update()?; // a fresh machine has no lists, and apt tells of those that it has
    known_archive()?.with_context(|| format!("apt has no source for {RELEASE}"))
}

fn known_archive() -> Result<Option<String>> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)"]);
    let said = output(&mut command)?;
    let of_release = |line: &str| Some(line.strip_prefix(RELEASE)?.strip_prefix(' ')?.to_owned());
    Ok(said.lines().find_map(of_release))
}

/// The list with the backports of an archive.
fn source(archive: &str) -> String {
    format!("deb [signed-by={KEYS}] {archive} {RELEASE}-backports main\n")
}

/// What has apt read this list alone, and keep what it learns of it apart from the machine's lists.
fn own_settings(list: &Path, apt: &Path) -> String {
    let (list, apt) = (list.display(), apt.display());
    format!(
        "Dir::Etc::SourceList \"{list}\"; Dir::Etc::SourceParts \"-\";
         Dir::State::Lists \"{apt}/lists\"; Dir::Cache \"{apt}/cache\";
         APT::Sandbox::User \"root\"; APT::Update::Error-Mode \"any\";
         Acquire::Retries \"1\"; Acquire::http::Timeout \"20\";\n"
    )
}

/// Unpacks each package of a folder, and keeps there what a lab needs of them.
fn unpack(dir: &Path) -> Result<()> {
    let all = dir.join("all");
    let packages = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let packages = packages.filter(|path| path.extension().is_some_and(|e| e == "deb"));
    for package in packages.collect::<Vec<_>>() {
        output(Command::new("dpkg-deb").arg("-x").args([&package, &all]))?;
        fs::remove_file(&package).with_context(|| format!("Removing {}", package.display()))?;
    }
    for (from, to) in KEPT {
        let from = all.join(from);
        fs::rename(&from, dir.join(to)).with_context(|| format!("Moving {}", from.display()))?;
    }
    fs::remove_dir_all(&all).with_context(|| format!("Removing {}", all.display()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_major_version_is_read() {
        let debian = "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u15)\nCopyright";
        assert_eq!(major(debian), Some(7));
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian"), Some(10));
        assert_eq!(major("no such program"), None);
    }

    #[test]
    fn only_one_that_is_not_installed_is_told_where_its_firmware_is() {
        let words = |qemu: &QemuProgram| {
            let command = qemu.command();
            let words = command.get_args().map(|word| word.display().to_string());
            words.collect::<Vec<_>>().join(" ")
        };
        let unpacked = QemuProgram::unpacked(Path::new("/cache"));
        assert_eq!(words(&unpacked), "-L /cache/data -L /cache/firmware");
        assert_eq!(unpacked.program, Path::new("/cache/qemu-system-x86_64"));
        let installed = QemuProgram {
            program: PROGRAM.into(),
            firmware: Vec::new(),
        };
        assert_eq!(words(&installed), "");
    }
}
