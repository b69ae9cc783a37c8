//! Installs Debian packages that a command needs and the machine lacks.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// What cargo needs to build the workspace: `userfaultfd` reads the kernel's headers with libclang.
pub(crate) const TO_BUILD: &[&str] = &["libclang1-14", "linux-libc-dev"];

/// Makes sure that `packages` are installed.
///
/// # Errors
/// What apt says, if it can install them neither with the lists that it has nor with fresh ones.
pub(crate) fn ensure(packages: &[&str]) -> Result<()> {
    let missing: Vec<_> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Apt gives up at once when another one runs.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    eprintln!("installing {}", missing.join(" "));
    let install = ["install", "-y", "--no-install-recommends"];
    // A fresh machine has no lists yet: what apt says about that is no error.
    if apt(&install, &missing)?.is_none() {
        return Ok(());
    }
    let failed = match apt(&["update"], &[])? {
        None => apt(&install, &missing)?,
        failed => failed,
    };
    match failed {
        None => Ok(()),
        Some(messages) => bail!(
            "Could not install {}; run `apt-get install {}` as root and try again: {messages}",
            missing.join(", "),
            missing.join(" ")
        ),
    }
}

/// Makes sure that `node` and `npm` can be run, whoever installed them.
pub(crate) fn ensure_node() -> Result<()> {
    for (program, package) in [("node", "nodejs"), ("npm", "npm")] {
        if Command::new(program).arg("--version").output().is_err() {
            ensure(&[package])?;
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

/// Runs apt-get to its end; if it fails, what it said.
fn apt(verb: &[&str], packages: &[&str]) -> Result<Option<String>> {
    let done = Command::new("apt-get")
        .arg("-qq")
        .args(verb)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .context("Running apt-get")?;
    let messages = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Ok((!done.status.success()).then_some(messages))
}
