//! The lab's root file system: busybox, the C library, kernel modules and this program.

use super::archive::CpioArchive;
use super::package::LabKernel;
use super::state::AGENT_PORT;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What runs first; see the comments in it.
const RC: &str = include_str!("rc");

/// Processes that busybox's init keeps running.
const INITTAB: &str = "::sysinit:/etc/rc\n::respawn:/sbin/lab-agent\n::restart:/sbin/init\n";

/// Starts the agent with the limit on open files that systemd would give it.
const AGENT: &str = "#!/bin/sh\nulimit -Hn 524288\nulimit -Sn 1024\nexec /sbin/xtask lab agent\n";

/// Of the C library: what dynamically linked Rust programs load.
const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
];
const LIBRARY_FOLDER: &str = "/lib/x86_64-linux-gnu";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Writes the first root for `kernel` to `path`.
pub(super) fn write(path: &Path, kernel: &LabKernel, token: &str) -> Result<()> {
    let file = create(path)?;
    let mut archive = CpioArchive::new(BufWriter::new(file));
    for folder in [
        "bin",
        "sbin",
        "etc",
        "lib",
        LIBRARY_FOLDER,
        "lib64",
        "opt",
        "root",
        "usr",
        "usr/bin",
        "usr/sbin",
    ] {
        archive.folder(folder)?;
    }
    archive.copy("bin/busybox", 0o755, &busybox()?)?;
    archive.link("bin/sh", "busybox")?;
    archive.file("init", 0o755, RC.as_bytes())?;
    archive.file("etc/rc", 0o755, RC.as_bytes())?;
    archive.file("etc/inittab", 0o644, INITTAB.as_bytes())?;
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    archive.file(
        "etc/group",
        0o644,
        b"root:x:0:\ntty:x:5:\nkvm:x:104:\nnogroup:x:65534:\n",
    )?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost lab\n")?;
    for library in LIBRARIES {
        let path = format!("{LIBRARY_FOLDER}/{library}");
        archive.copy(&path, 0o755, Path::new(&path))?;
    }
    archive.copy(LOADER, 0o755, Path::new(LOADER))?;
    modules(&mut archive, kernel)?;
    archive.file(
        "etc/lab-agent",
        0o600,
        format!("{AGENT_PORT} {token}").as_bytes(),
    )?;
    archive.file("sbin/lab-agent", 0o755, AGENT.as_bytes())?;
    archive.file("sbin/xtask", 0o755, &this_program(path)?)?;
    archive
        .finish()?
        .flush()
        .with_context(|| format!("Writing {}", path.display()))
}

/// Only this user may read it: the token is in it.
fn create(path: &Path) -> Result<File> {
    let _ = std::fs::remove_file(path);
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(path)
        .with_context(|| format!("Creating {}", path.display()))
}

fn busybox() -> Result<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("busybox-static is installed but has no /bin/busybox")
}

fn modules(archive: &mut CpioArchive<impl Write>, kernel: &LabKernel) -> Result<()> {
    archive.file(
        "etc/boot-modules",
        0o644,
        (kernel.boot_order()?.join("\n") + "\n").as_bytes(),
    )?;
    archive.folder("lib/modules")?;
    folder(
        archive,
        &kernel.modules(),
        &format!("lib/modules/{}", kernel.release),
    )
}

/// Adds a folder with everything below it.
fn folder(archive: &mut CpioArchive<impl Write>, from: &Path, to: &str) -> Result<()> {
    archive.folder(to)?;
    let mut entries = std::fs::read_dir(from)
        .with_context(|| format!("Reading {}", from.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry
            .file_name()
            .into_string()
            .ok()
            .context("A module file without a plain name")?;
        let path = format!("{to}/{name}");
        if entry.file_type()?.is_dir() {
            folder(archive, &entry.path(), &path)?;
        } else {
            archive.copy(&path, 0o644, &entry.path())?;
        }
    }
    Ok(())
}

/// This program, without debug information if the machine has `strip`.
fn this_program(beside: &Path) -> Result<Vec<u8>> {
    // Not by its name: cargo may have put a newer one in its place.
    let this = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    let stripped = beside.with_file_name("agent");
    let strip = Command::new("strip")
        .arg("-o")
        .args([&stripped, &this])
        .stderr(Stdio::null())
        .status();
    let from = if strip.is_ok_and(|status| status.success()) {
        &stripped
    } else {
        &this
    };
    let bytes = std::fs::read(from).with_context(|| format!("Reading {}", from.display()));
    let _ = std::fs::remove_file(&stripped);
    bytes
}
