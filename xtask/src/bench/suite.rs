//! The benchmark suite on this machine itself: the bare-guest baseline, and whatever reads records.

use super::results::ResultsFolder;
use super::status::exit_code;
use crate::dist;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The programs that the baseline needs, built.
pub(super) struct SuitePrograms {
    /// Reads what was measured.
    pub(super) reader: RecordReader,
    vmm: PathBuf,
}

/// The suite's program as a reader of records.
pub(super) struct RecordReader {
    program: PathBuf,
}

impl SuitePrograms {
    /// Builds them as a release has them.
    pub(super) fn ensure() -> Result<Self> {
        let built = dist::release()?;
        let program = built.join("hatchery-bench");
        Ok(Self {
            reader: RecordReader { program },
            vmm: built.join("hatchery-vmm"),
        })
    }

    /// Measures bare guests into `results`.
    pub(super) fn baseline(&self, results: &ResultsFolder, only: &[String]) -> Result<ExitCode> {
        let mut command = self.reader.command("baseline");
        command.arg("--program").arg(&self.vmm);
        command.arg("--out").arg(&results.dir);
        command.args(["--commit", &results.commit]);
        if !only.is_empty() {
            command.args(["--only", &only.join(",")]);
        }
        run(&mut command)
    }
}

impl RecordReader {
    /// Builds it, quickly: it measures nothing.
    pub(super) fn ensure() -> Result<Self> {
        // With the features of the whole workspace, as the native tests' server: what the two share
        // is built once.
        dist::cargo(&["--workspace", "--bin", "hatchery-bench"])?;
        let program = dist::target_dir().join("debug/hatchery-bench");
        Ok(Self { program })
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(what);
        command
    }

    /// Writes the pages.
    pub(super) fn report(&self, folder: &Path) -> Result<ExitCode> {
        run(self.command("report").arg("--results").arg(folder))
    }

    /// Says what became of the targets.
    pub(super) fn targets(&self, folder: &Path) -> Result<ExitCode> {
        run(self.command("targets").arg("--results").arg(folder))
    }

    /// Holds one set of records against another.
    pub(super) fn compare(&self, old: &Path, new: &Path, limit: &str) -> Result<ExitCode> {
        let mut command = self.command("compare");
        run(command.arg(old).arg(new).args(["--limit", limit]))
    }
}

/// Runs a program with its output passed through; its exit status.
fn run(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("Running {}", command.get_program().display()))?;
    Ok(exit_code(status))
}
