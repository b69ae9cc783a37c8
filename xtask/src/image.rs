//! Under construction.
use anyhow::Result;
use std::process::ExitCode;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Result<ExitCode> {
    anyhow::bail!("not built yet")
}

pub(crate) fn ensure(_name: &str) -> Result<std::path::PathBuf> {
    anyhow::bail!("not built yet")
}
