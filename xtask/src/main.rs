//! Developer commands. `cargo xtask --help` lists them.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod cache;
mod check;
mod deps;
mod dist;
mod fuzz;
mod image;
mod kernel;
mod key;
mod lab;
mod sdk;
mod service;
mod test;
mod up;

use args::{XtaskArgs, XtaskCommand};
use clap::Parser;
use std::process::ExitCode;

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
