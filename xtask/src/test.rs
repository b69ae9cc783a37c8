//! `cargo xtask test`: every check there is, in order, with one summary at the end.
//!
//! A stage that fails does not stop the later ones. The last line is `N passed, N failed, N
//! skipped`, summed over all runners; what was skipped is listed above it with the reason.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

mod e2e;
mod intel;
mod rerun;
pub(crate) mod runner;
mod server;
pub(crate) mod sources;
pub(crate) mod stage;
pub(crate) mod tally;
mod tls;

use crate::deps;
use anyhow::{Result, bail};
use stage::{StageRounds, TestStage, run_all};
use std::process::ExitCode;
use tally::Tally;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Run only these stages, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    only: Vec<String>,
    /// List the stages and stop
    #[arg(long)]
    list: bool,
    /// Run all of it so many times, and say how often each stage passed, and how often only when
    /// run again
    #[arg(
        long,
        value_name = "TIMES",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1000),
    )]
    repeat: u32,
}

const STAGES: &[TestStage] = &[
    sources::FMT,
    sources::CLIPPY,
    sources::UNIT,
    sources::DOC,
    sources::TIDY,
    TestStage {
        name: "native",
        about: "SDK suites, agent as an ordinary process",
        beside: false,
        run: e2e::native,
    },
    TestStage {
        name: "vm",
        about: "Python SDK suite, in microVMs",
        beside: true,
        run: e2e::vm,
    },
    TestStage {
        name: "fault",
        about: "killed VMs, kernels, servers; leaks",
        beside: true,
        run: e2e::fault,
    },
    TestStage {
        name: "sdk",
        about: "JavaScript suite, README programs, older and newer SDKs, in microVMs",
        beside: true,
        run: e2e::sdk,
    },
    TestStage {
        name: "intel",
        about: "smoke, and AVX-512 state over pause, fork, reset, on kvm_intel",
        beside: true,
        run: intel::short,
    },
    TestStage {
        name: "bench",
        about: "one short run of the benchmark suite",
        beside: true,
        run: e2e::bench,
    },
];

/// Stages that run only when they are named.
const NAMED: &[TestStage] = &[TestStage {
    name: "intel-long",
    about: "SDK suites of branches, checkpoints, pauses, life cycles, on kvm_intel",
    beside: false,
    run: intel::long,
}];

/// Runs the stages.
pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    if args.list {
        for stage in STAGES {
            println!("{:<10} {}", stage.name, stage.about);
        }
        for stage in NAMED {
            println!("{:<10} {}; only when named", stage.name, stage.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let stages = chosen(&args.only)?;
    deps::ensure(deps::TO_BUILD)?;
    let mut total = Tally::default();
    let mut rounds = vec![StageRounds::default(); stages.len()];
    for round in 1..=args.repeat {
        if args.repeat > 1 {
            println!("\n== round {round} of {}", args.repeat);
        }
        total.add(run_all(&stages, &mut rounds));
    }
    if args.repeat > 1 {
        for (stage, rounds) in stages.iter().zip(&rounds) {
            println!("{}", rounds.summary(stage.name));
        }
    }
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    let good = total.failed == 0 && total.passed > 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Every stage but those that want to be named, or those that are.
fn chosen(only: &[String]) -> Result<Vec<&'static TestStage>> {
    let all = || STAGES.iter().chain(NAMED);
    if let Some(unknown) = only
        .iter()
        .find(|only| all().all(|stage| stage.name != **only))
    {
        bail!("There is no stage {unknown:?}: `cargo xtask test --list` names them");
    }
    let named = |stage: &&TestStage| only.iter().any(|only| only == stage.name);
    Ok(if only.is_empty() {
        STAGES.iter().collect()
    } else {
        all().filter(named).collect()
    })
}
