//! Developer commands. `cargo xtask --help` lists them.

#![forbid(unsafe_code)]

mod bench;
mod cache;
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
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// From nothing to a running server, checked with the published E2B SDK
    Up(up::Args),
    /// Everything that must pass, ending in a count
    Test(test::Args),
    /// Measure, and compare with the bars
    Bench(bench::Args),
    /// Drive the decoders by libFuzzer, and keep what it finds
    Fuzz(fuzz::Args),
    /// Build the guest kernel, or check a built one against its fragments
    Kernel(kernel::Args),
    /// Build the guest images
    Image(image::Args),
    /// The emulated host: real KVM on machines without hardware virtualization
    Lab(lab::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Kernel(args) => kernel::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Lab(args) => lab::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
