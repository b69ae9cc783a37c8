//! The floor and the judgement: the barometer on this machine itself.

use super::results::Results;
use crate::dist;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The programs that the floor needs, built.
pub(super) struct Programs {
    barometer: PathBuf,
    vmm: PathBuf,
}

impl Programs {
    /// Builds them as a release has them.
    pub(super) fn ensure() -> Result<Self> {
        dist::cargo(&["--release", "-p", "vmm", "-p", "perf"])?;
        let built = dist::target_dir().join("release");
        Ok(Self {
            barometer: built.join("barometer"),
            vmm: built.join("hatchery-vmm"),
        })
    }

    /// Measures bare guests into `results`.
    pub(super) fn floor(&self, results: &Results, only: &[String]) -> Result<ExitCode> {
        let mut command = Command::new(&self.barometer);
        command.arg("floor").arg("--program").arg(&self.vmm);
        command.arg("--out").arg(&results.dir);
        command.args(["--commit", &results.commit]);
        if !only.is_empty() {
            command.args(["--only", &only.join(",")]);
        }
        run(&mut command)
    }

    /// Writes the pages.
    pub(super) fn report(&self, folder: &Path) -> Result<ExitCode> {
        run(Command::new(&self.barometer)
            .args(["report", "--results"])
            .arg(folder))
    }

    /// Says what became of the bars.
    pub(super) fn bars(&self, folder: &Path) -> Result<ExitCode> {
        run(Command::new(&self.barometer)
            .args(["bars", "--results"])
            .arg(folder))
    }
}

/// Runs a program with its output passed through; its exit status.
fn run(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("Running {}", command.get_program().display()))?;
    Ok(super::exit_code(status))
}
