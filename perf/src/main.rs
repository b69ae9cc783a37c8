//! The barometer: measures Hatchery, and peers doing the same work, from outside.
//!
//! It drives VM processes as black boxes with the same kernel, agent and disk, checks every answer,
//! and prints counts (instructions, VM exits, system calls, bytes) rather than wall times wherever
//! the host is an emulated one.

#![forbid(unsafe_code)]

mod agent;
mod api;
mod bars;
mod boot;
mod clone;
mod compare;
mod counters;
mod definition;
mod engine;
mod floor;
mod host;
mod http;
mod output;
mod processes;
mod record;
mod report;
mod service;
mod statistics;
mod versus;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "barometer", about = "Measures Hatchery and its peers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Cold boot, first exec and bulk transfer of single VMs
    Boot(boot::Args),
    /// Clones of a saved VM: claim, first exec, memory
    Clone(clone::Args),
    /// A first command after a saved moment, by several engines in turn
    Versus(versus::Args),
    /// Bare guests on this machine's own KVM
    Floor(floor::Args),
    /// The whole system through its API, in the lab
    Service(service::Args),
    /// What was measured, against the bars
    Bars(bars::Args),
    /// Two sets of records, figure by figure
    Compare(compare::CompareArgs),
    /// What was measured, as a page of HTML and one of Markdown
    Report(report::Args),
}

fn main() -> ExitCode {
    let result: Result<ExitCode> = match Cli::parse().command {
        Command::Boot(args) => boot::run(&args),
        Command::Clone(args) => clone::run(&args),
        Command::Versus(args) => versus::run(&args),
        Command::Floor(args) => floor::run(&args),
        Command::Service(args) => service::run(&args),
        Command::Bars(args) => bars::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Report(args) => report::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
