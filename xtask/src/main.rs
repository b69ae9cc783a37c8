//! Developer commands. `cargo xtask --help` lists them.

mod cache;
mod deps;
mod image;
mod kernel;
mod lab;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs, tests and measures Hatchery")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the guest kernel, or check a built one against its fragments
    Kernel(kernel::Args),
    /// Build the guest images
    Image(image::Args),
    /// The emulated host: real KVM on machines without hardware virtualization
    Lab(lab::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
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
