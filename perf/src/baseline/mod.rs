//! The bare-guest baseline: what the VM process itself costs, with guests of a few instructions on
//! this machine's own /dev/kvm. Real time, real kernel objects, no Linux in the guest.

mod context;
mod cycle;
mod guest;
mod life;
mod process;
mod saved;
mod wide;

use crate::definition::{self, BaselineKind, BaselineScenario};
use crate::host;
use crate::output::say;
use crate::record::{BASELINE, RecordFile, Sample};
use anyhow::{Context as _, Result};
use context::BaselineContext;
use guest::{AfterAnswer, BareGuest};
use life::WarmPool;
use saved::SavedGuest;
use std::path::PathBuf;
use std::process::ExitCode;

const ENGINE: &str = "hatchery";

#[derive(clap::Args)]
pub(crate) struct BaselineArgs {
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

pub(crate) fn run(args: &BaselineArgs) -> Result<ExitCode> {
    let definitions = definition::baseline(args.definitions.as_deref())?;
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("The baseline needs /dev/kvm")?;
    let mut recorder = RecordFile::create(&args.out, BASELINE, BASELINE)?;
    host::describe(&args.out, BASELINE, &args.program, &args.commit)?;
    let context = BaselineContext {
        waiting: SavedGuest::save(&args.program).context("Making the bare guest's snapshot")?,
        program: args.program.clone(),
        cycles: args.cycles,
        scratch: tempfile::tempdir().context("Making a folder for scratch files")?,
    };
    let wanted = |s: &&BaselineScenario| args.only.is_empty() || args.only.contains(&s.name);
    let scenarios: Vec<&BaselineScenario> = definitions.scenario.iter().filter(wanted).collect();
    for group in scenarios.chunk_by(|a, b| a.group == b.group) {
        run_group(&context, group, &mut recorder)?;
    }
    say(&format!("records: {}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// Lets scenarios take turns until each has its samples, or nothing comes of any of them.
fn run_group(
    context: &BaselineContext,
    group: &[&BaselineScenario],
    recorder: &mut RecordFile,
) -> Result<()> {
    let mut runners = Vec::new();
    for scenario in group {
        eprintln!(
            "{}: {} ({} samples)",
            scenario.name, scenario.does, scenario.samples
        );
        let runner = ScenarioRunner::prepare(context, scenario.kind)
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
enum ScenarioRunner {
    Boot,
    Claim(WarmPool),
    /// The rest needs nothing but base memory.
    Of(BaselineKind, BareGuest),
}

impl ScenarioRunner {
    fn prepare(context: &BaselineContext, kind: BaselineKind) -> Result<Self> {
        Ok(match kind {
            BaselineKind::Boot => Self::Boot,
            BaselineKind::Claim { pool } => Self::Claim(WarmPool::fill(context, pool)?),
            BaselineKind::Save { pages } | BaselineKind::Reset { pages } => {
                Self::Of(kind, context.waiting.base_memory(pages, AfterAnswer::Wait)?)
            }
            _ => Self::Of(kind, wide::base_memory(context)?),
        })
    }

    /// One round's samples.
    fn samples(&mut self, context: &BaselineContext) -> Result<Vec<Result<Sample>>> {
        let one = match self {
            Self::Boot => life::boot(context),
            Self::Claim(pool) => pool.claim(context),
            Self::Of(kind, bare) => match *kind {
                BaselineKind::Boot | BaselineKind::Claim { .. } => {
                    unreachable!("prepared otherwise")
                }
                BaselineKind::Build => life::build(context, bare),
                BaselineKind::Kill => wide::kill(context, bare),
                BaselineKind::Reap { count } => wide::reap(context, bare, count),
                BaselineKind::WarmVms { count } => wide::warm_vms(context, bare, count),
                BaselineKind::Save { .. } => life::save(context, bare),
                BaselineKind::Reset { .. } => life::reset(context, bare),
                BaselineKind::Closed { workers, seconds } => {
                    cycle::closed(context, bare, workers, seconds)
                }
                BaselineKind::Growth { cycles, workers } => {
                    let cycles = context.cycles.unwrap_or(cycles);
                    cycle::growth(context, bare, workers, cycles)
                }
                BaselineKind::Open {
                    per_s,
                    seconds,
                    workers,
                } => {
                    let load = cycle::OpenLoad {
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
