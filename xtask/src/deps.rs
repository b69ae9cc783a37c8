//! Installs Debian packages that a command needs and the machine lacks.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// What cargo needs to build the workspace: `userfaultfd` reads the kernel's headers with libclang.
pub(crate) const TO_BUILD: &[&str] = &["libclang1-14", "linux-libc-dev"];

/// Makes sure that `packages` are installed.
pub(crate) fn ensure(packages: &[&str]) -> Result<()> {
    let missing: Vec<_> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    if !apt(&["install", "-y", "--no-install-recommends"], &missing)? {
        apt(&["update"], &[])?;
        if !apt(&["install", "-y", "--no-install-recommends"], &missing)? {
            bail!(
                "Could not install {}; run `apt-get install {}` as root and try again",
                missing.join(", "),
                missing.join(" ")
            );
        }
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|o| o.stdout == b"installed")
}

fn apt(verb: &[&str], packages: &[&str]) -> Result<bool> {
    let status = Command::new("apt-get")
        .arg("-qq")
        .args(verb)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null())
        .status()
        .context("Running apt-get")?;
    Ok(status.success())
}
