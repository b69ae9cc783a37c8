//! The benchmark suite: measures Hatchery, and peers doing the same work, from outside.
//!
//! It drives VM processes as black boxes with the same kernel, agent and disk, checks every answer,
//! and prints counts (instructions, VM exits, system calls, bytes) rather than wall times wherever
//! the host is an emulated one.

#![forbid(unsafe_code)]

mod agent;
mod api;
mod baseline;
mod boot;
mod clone;
mod compare;
mod counters;
mod definition;
mod engine;
mod host;
mod http;
mod net;
mod output;
mod processes;
mod record;
mod renamed;
mod report;
mod service;
mod statistics;
mod targets;
mod versus;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "hatchery-bench", about = "Measures Hatchery and its peers")]
struct SuiteArgs {
    #[command(subcommand)]
    command: SuiteCommand,
}

#[derive(Subcommand)]
enum SuiteCommand {
    /// Cold boot, first exec and bulk transfer of single VMs
    Boot(boot::BootArgs),
    /// Clones of a saved VM: claim, first exec, memory
    Clone(clone::CloneArgs),
    /// A first command after a restore point, by several engines in turn
    Versus(versus::VersusArgs),
    /// Bytes and round trips over a guest's network, by several engines in turn
    Net(net::NetArgs),
    /// Bare guests on this machine's own KVM
    #[command(alias = "floor")]
    Baseline(baseline::BaselineArgs),
    /// The whole system through its API, in the lab
    Service(service::ServiceArgs),
    /// What was measured, against the targets
    #[command(alias = "bars")]
    Targets(targets::TargetArgs),
    /// Two sets of records, figure by figure
    Compare(compare::CompareArgs),
    /// What was measured, as a page of HTML and one of Markdown
    Report(report::ReportArgs),
}

fn main() -> ExitCode {
    let result: Result<ExitCode> = match SuiteArgs::parse().command {
        SuiteCommand::Boot(args) => boot::run(&args),
        SuiteCommand::Clone(args) => clone::run(&args),
        SuiteCommand::Versus(args) => versus::run(&args),
        SuiteCommand::Net(args) => net::run(&args),
        SuiteCommand::Baseline(args) => baseline::run(&args),
        SuiteCommand::Service(args) => service::run(&args),
        SuiteCommand::Targets(args) => targets::run(&args),
        SuiteCommand::Compare(args) => compare::run(&args),
        SuiteCommand::Report(args) => report::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
