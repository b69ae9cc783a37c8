//! The floor: what the VM process itself costs, with guests of a few instructions on this
//! machine's own /dev/kvm. Real time, real kernel objects, no Linux in the guest.

mod cycle;
mod guest;
mod life;
mod process;
mod wide;

use crate::definition::{self, Kind, Scenario};
use crate::host;
use crate::output::say;
use crate::record::{BASELINE, Recorder, Sample};
use anyhow::{Context as _, Result};
use guest::{Bare, Then, Waiting};
use life::Pool;
use std::path::PathBuf;
use std::process::ExitCode;

const ENGINE: &str = "hatchery";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The VM process's program
    #[arg(long)]
    program: PathBuf,
    /// The folder that takes the raw records
    #[arg(long)]
    out: PathBuf,
    /// A folder of definitions instead of our own
    #[arg(long)]
    definitions: Option<PathBuf>,
    /// Only scenarios with one of these names
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Lives of the scenarios that look for growth, instead of the definition's number
    #[arg(long)]
    cycles: Option<u64>,
    /// The commit that is measured, for the description of the run
    #[arg(long, default_value = "unknown")]
    commit: String,
}

/// What every scenario needs.
pub(crate) struct Context {
    program: PathBuf,
    waiting: Waiting,
    cycles: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let definitions = definition::floor(args.definitions.as_deref())?;
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("The floor needs /dev/kvm")?;
    let mut recorder = Recorder::create(&args.out, BASELINE, BASELINE)?;
    host::describe(&args.out, BASELINE, &args.program, &args.commit)?;
    let context = Context {
        waiting: Waiting::save(&args.program).context("Making the bare guest's snapshot")?,
        program: args.program.clone(),
        cycles: args.cycles,
    };
    let wanted = |s: &&Scenario| args.only.is_empty() || args.only.contains(&s.name);
    let scenarios: Vec<&Scenario> = definitions.scenario.iter().filter(wanted).collect();
    for group in scenarios.chunk_by(|a, b| a.group == b.group) {
        run_group(&context, group, &mut recorder)?;
    }
    say(&format!("records: {}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// Lets scenarios take turns until each has its samples, or nothing comes of any of them.
fn run_group(context: &Context, group: &[&Scenario], recorder: &mut Recorder) -> Result<()> {
    let mut runners = Vec::new();
    for scenario in group {
        eprintln!(
            "{}: {} ({} samples)",
            scenario.name, scenario.does, scenario.samples
        );
        let runner = Runner::prepare(context, scenario.kind)
            .with_context(|| format!("Preparing {}", scenario.name))?;
        runners.push((*scenario, runner));
    }
    let rounds = group.iter().map(|s| s.samples).max().unwrap_or(0);
    for round in 0..rounds {
        for (scenario, runner) in &mut runners {
            if round < scenario.samples {
                for sample in runner.samples(context)? {
                    recorder.keep(&scenario.name, ENGINE, sample)?;
                }
            }
        }
        if round % 100 == 99 {
            eprintln!("  {} of {rounds}", round + 1);
        }
    }
    Ok(())
}

/// A scenario that stands ready to give samples.
enum Runner {
    Boot,
    Claim(Pool),
    /// The rest needs nothing but a golden file.
    Of(Kind, Bare),
}

impl Runner {
    fn prepare(context: &Context, kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Boot => Self::Boot,
            Kind::Claim { pool } => Self::Claim(Pool::fill(context, pool)?),
            Kind::Save { pages } | Kind::Reset { pages } => {
                Self::Of(kind, context.waiting.golden(pages, Then::Wait)?)
            }
            _ => Self::Of(kind, wide::golden(context)?),
        })
    }

    /// One round's samples.
    fn samples(&mut self, context: &Context) -> Result<Vec<Result<Sample>>> {
        let one = match self {
            Self::Boot => life::boot(context),
            Self::Claim(pool) => pool.claim(context),
            Self::Of(kind, bare) => match *kind {
                Kind::Boot | Kind::Claim { .. } => unreachable!("prepared otherwise"),
                Kind::Build => life::build(context, bare),
                Kind::Kill => wide::kill(context, bare),
                Kind::Reap { count } => wide::reap(context, bare, count),
                Kind::Husks { count } => wide::husks(context, bare, count),
                Kind::Save { .. } => life::save(context, bare),
                Kind::Reset { .. } => life::reset(context, bare),
                Kind::Closed { workers, seconds } => cycle::closed(context, bare, workers, seconds),
                Kind::Growth { cycles, workers } => {
                    let cycles = context.cycles.unwrap_or(cycles);
                    cycle::growth(context, bare, workers, cycles)
                }
                Kind::Open {
                    per_s,
                    seconds,
                    workers,
                } => {
                    let load = cycle::Load {
                        per_s,
                        seconds,
                        workers,
                    };
                    return cycle::open(context, bare, load);
                }
            },
        };
        Ok(vec![one])
    }
}
