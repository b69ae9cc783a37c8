//! Developer commands. `cargo xtask --help` lists them.

#![forbid(unsafe_code)]

mod bench;
mod cache;
mod check;
mod deps;
mod dist;
mod fuzz;
mod image;
mod kernel;
mod lab;
mod sdk;
mod service;
mod test;
mod up;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, runs, tests and measures Hatchery"
)]
struct XtaskArgs {
    #[command(subcommand)]
    command: XtaskCommand,
}

#[derive(Subcommand)]
enum XtaskCommand {
    /// From nothing to a running server, checked with the published E2B SDK
    Up(up::UpArgs),
    /// Format, lints, the house's rules and documentation, within a minute
    Check,
    /// Everything that must pass, ending in a count
    Test(test::TestArgs),
    /// Measure, and compare with the targets
    Bench(bench::BenchArgs),
    /// Drive the decoders by libFuzzer, and keep what it finds
    Fuzz(fuzz::FuzzArgs),
    /// Build the guest kernel, or check a built one against its fragments
    Kernel(kernel::KernelArgs),
    /// Build the guest images
    Image(image::ImageArgs),
    /// The emulated host: real KVM on machines without hardware virtualization
    Lab(lab::LabArgs),
}

fn main() -> ExitCode {
    let result = match XtaskArgs::parse().command {
        XtaskCommand::Up(args) => up::run(&args),
        XtaskCommand::Check => check::run(),
        XtaskCommand::Test(args) => test::run(&args),
        XtaskCommand::Bench(args) => bench::run(&args),
        XtaskCommand::Fuzz(args) => fuzz::run(&args),
        XtaskCommand::Kernel(args) => kernel::run(&args),
        XtaskCommand::Image(args) => image::run(&args),
        XtaskCommand::Lab(args) => lab::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
