//! Folders of raw records, one a run, kept until somebody removes them.

use crate::dist::{target_dir, workspace};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

/// A folder for the records of one run.
pub(super) struct ResultsFolder {
    /// Where it is.
    pub(super) dir: PathBuf,
    /// The commit that is measured, with `+` if the tree has changes.
    pub(super) commit: String,
}

impl ResultsFolder {
    /// Makes `target/bench/<date>-<commit>`, and `target/bench/latest` name it.
    pub(super) fn create() -> Result<Self> {
        let commit = commit();
        let stamp = output("date", &["-u", "+%Y%m%d-%H%M%S"]).context("Asking for the date")?;
        let all = target_dir().join("bench");
        let name = format!("{stamp}-{commit}");
        let dir = all.join(&name);
        std::fs::create_dir_all(&dir).with_context(|| format!("Creating {}", dir.display()))?;
        let latest = all.join("latest");
        let _ = std::fs::remove_file(&latest);
        symlink(&name, &latest).with_context(|| format!("Linking {}", latest.display()))?;
        Ok(Self { dir, commit })
    }

    /// Adds a line to what the report says about this run.
    pub(super) fn note(&self, line: &str) -> Result<()> {
        let path = self.dir.join("notes.txt");
        let mut file = File::options().create(true).append(true).open(&path)?;
        writeln!(file, "{line}").with_context(|| format!("Writing {}", path.display()))
    }
}

/// The short name of the commit that is checked out, if there is one.
fn commit() -> String {
    let Ok(head) = output("git", &["rev-parse", "--short", "HEAD"]) else {
        return "unknown".into();
    };
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]);
    match changed {
        Ok(files) if files.is_empty() => head,
        _ => format!("{head}+"),
    }
}

/// What a program prints.
fn output(program: &str, args: &[&str]) -> Result<String> {
    let done = Command::new(program)
        .args(args)
        .current_dir(workspace())
        .output()?;
    anyhow::ensure!(
        done.status.success(),
        "{program} ended with {}",
        done.status
    );
    Ok(String::from_utf8_lossy(&done.stdout).trim().into())
}
