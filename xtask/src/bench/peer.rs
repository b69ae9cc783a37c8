//! Debian's QEMU, carried into the lab with the libraries it needs, as a peer to measure beside.

use crate::deps;
use crate::lab::Lab;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "qemu-system-x86_64";
/// What the `microvm` machine reads at its start, and where Debian puts it.
const FIRMWARE: [&str; 4] = [
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/kvmvapic.bin",
];
/// Where it is in the lab.
const IN_LAB: &str = "/opt/qemu";

/// Puts QEMU into the lab, with an initial file system that holds the agent of `programs`, and
/// returns the program's place there.
pub(super) fn install(lab: &Lab, programs: &Path) -> Result<PathBuf> {
    deps::ensure(&["qemu-system-x86"])?;
    let bundle = lab.share().join("qemu");
    bundle_into(&bundle)?;
    let script = format!(
        "modprobe vhost_vsock && rm -rf {IN_LAB} && cp -r /share/qemu {IN_LAB} && chmod +x \
         {IN_LAB}/run \
         && rm -rf /tmp/initrd && mkdir -p /tmp/initrd/dev && cd /tmp/initrd && mknod dev/console \
         c 5 1 \
         && cp {0}/hatchery-agent init && find . | cpio -o -H newc > {0}/initrd.cpio",
        programs.display()
    );
    let done = lab.exec(&["sh", "-c", &script])?;
    if !done.status.success() {
        bail!(
            "Putting QEMU into the lab: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(Path::new(IN_LAB).join("run"))
}

/// Copies a file, such as the program of another engine, into the lab; its place there.
pub(super) fn push(lab: &Lab, file: &Path) -> Result<PathBuf> {
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} has no plain name", file.display()))?;
    let shared = lab.share().join("peers");
    fs::create_dir_all(&shared).with_context(|| format!("Creating {}", shared.display()))?;
    fs::copy(file, shared.join(name)).with_context(|| format!("Copying {}", file.display()))?;
    // The name is an argument, never a part of the script.
    let script =
        "mkdir -p /opt/peers && cp \"/share/peers/$1\" /opt/peers/ && chmod +x \"/opt/peers/$1\"";
    let done = lab.exec(&["sh", "-c", script, "push", name])?;
    if !done.status.success() {
        bail!(
            "Putting {name} into the lab: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(Path::new("/opt/peers").join(name))
}

/// Copies the program, its libraries and its firmware into one folder, with a script that runs it
/// from wherever the folder is.
fn bundle_into(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("Creating {}", folder.display()))?;
    let program = Path::new("/usr/bin").join(PROGRAM);
    let ldd = Command::new("ldd")
        .arg(&program)
        .output()
        .context("Running ldd")?;
    let text = String::from_utf8_lossy(&ldd.stdout);
    let (libraries, loader) = libraries(&text)?;
    for file in libraries
        .iter()
        .chain([&program, &loader])
        .chain(&FIRMWARE.map(PathBuf::from))
    {
        let name = file.file_name().context("A library without a name")?;
        fs::copy(file, folder.join(name)).with_context(|| format!("Copying {}", file.display()))?;
    }
    let loader = loader
        .file_name()
        .and_then(|n| n.to_str())
        .context("The loader's name")?;
    let script = format!(
        "#!/bin/sh\nexec {IN_LAB}/{loader} --library-path {IN_LAB} {IN_LAB}/{PROGRAM} -L {IN_LAB} \
         \"$@\"\n"
    );
    fs::write(folder.join("run"), script).context("Writing the start script")
}

/// The libraries and the loader that `ldd` lists.
fn libraries(ldd: &str) -> Result<(Vec<PathBuf>, PathBuf)> {
    let mut loader = None;
    let mut libraries = Vec::new();
    for line in ldd.lines() {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        let Some((path, _)) = path.split_once(" (0x") else {
            continue;
        };
        if !path.starts_with('/') {
            continue; // the kernel's own
        }
        if line.contains("=>") {
            libraries.push(PathBuf::from(path));
        } else {
            loader = Some(PathBuf::from(path));
        }
    }
    Ok((
        libraries,
        loader.context("ldd names no loader: is QEMU installed?")?,
    ))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_ldd_lists_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let (libraries, loader) = libraries(text).unwrap();
        assert_eq!(libraries, [PathBuf::from("/lib/libc.so.6")]);
        assert_eq!(loader, PathBuf::from("/lib64/ld-linux-x86-64.so.2"));
    }
}
