//! Other programs, run for their output and exit status.

use super::tally::Tally;
use crate::dist::workspace;
use anyhow::{Context, Result};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

/// Cargo in the workspace, with `args`.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(args).current_dir(workspace());
    command
}

/// Whether cargo has this subcommand.
pub(crate) fn has(subcommand: &str) -> bool {
    let mut command = cargo(&[subcommand, "--version"]);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// This program. A stage may have built it anew, and then the kernel calls ours deleted.
pub(crate) fn program() -> Result<String> {
    let path = std::env::current_exe()?.display().to_string();
    Ok(path
        .strip_suffix(" (deleted)")
        .map_or(path.clone(), str::to_owned))
}

/// One check that is cargo with `args`.
pub(crate) fn check(args: &[&str]) -> Result<Tally> {
    let (status, _) = tee(&mut cargo(args))?;
    Ok(Tally::of_status(
        status,
        &format!("cargo {}", args.join(" ")),
    ))
}

thread_local! {
    /// What begins each line that this thread shows.
    static LABEL: Cell<&'static str> = const { Cell::new("") };
}

/// Has what this thread shows begin with `label`, because another thread shows something too.
pub(super) fn label_lines(label: &'static str) {
    LABEL.set(label);
}

/// Prints a line, with the thread's label before it.
fn show(line: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let label = LABEL.get();
    if !label.is_empty() {
        write!(out, "{label}| ")?;
    }
    out.write_all(line)?;
    out.flush()
}

/// Runs a command; shows what it prints while it prints it, and returns it too.
pub(crate) fn tee(command: &mut Command) -> Result<(ExitStatus, String)> {
    let (reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("Running {command:?}"))?;
    command.stdout(Stdio::null()).stderr(Stdio::null()); // drops our ends of the pipe
    let mut text = String::new();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        show(&line)?;
        text.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok((child.wait()?, text))
}
