//! `cargo xtask check`: what a change should pass before it is shown to anybody, in a minute.
//!
//! The stages of `cargo xtask test` that only read or compile; nothing is run.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use crate::deps;
use crate::test::sources::{CLIPPY, DOC_WARNINGS, FMT, TIDY};
use crate::test::stage::run_all;
use anyhow::Result;
use std::process::ExitCode;

/// Runs the stages, says how long each took, and fails if one of them does.
pub(crate) fn run() -> Result<ExitCode> {
    deps::ensure(deps::TO_BUILD)?;
    let total = run_all(&[&FMT, &TIDY, &CLIPPY, &DOC_WARNINGS], &mut []);
    println!("{} passed, {} failed", total.passed, total.failed);
    let good = total.failed == 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
