//! The same work by several engines, in turn: a machine begins where one was saved, takes an
//! identity, and runs a first command. Ours from a pool and without; others by their own fastest
//! way to do it.
//!
//! What is compared are VM processes alone, without a service in front of any of them.

use crate::agent::{AgentClient, RunOutcome};
use crate::clone::{POOLED, claim, entropy, template};
use crate::counters::EventCounters;
use crate::engine::hatchery::{self, SavedVm, WarmVm};
use crate::engine::peer::{PeerEngine, PeerVm};
use crate::engine::peers::PeerArgs;
use crate::engine::{GuestSpec, now_ns, timed};
use crate::output::say;
use crate::record::{RecordPrinter, Sample};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const SCENARIO: &str = "versus";
/// How long a warmed guest is left alone before it is saved, so that nothing is under way.
const IDLE: Duration = Duration::from_millis(300);
/// So many failures in a row end an engine's turns.
const MAX_FAILURES: u32 = 3;

#[derive(clap::Args)]
pub(crate) struct VersusArgs {
    /// Folder with hatchery-vmm, hatchery-agent, vmlinux and base.ext4; for peers also initrd.cpio,
    /// with the agent as /init
    #[arg(long)]
    dist: PathBuf,
    /// Machines of each engine to measure, after one that is not counted
    #[arg(long, default_value_t = 5)]
    samples: u32,
    /// The clock counts instructions (the host runs under QEMU's -icount)
    #[arg(long)]
    icount: bool,
    #[command(flatten)]
    peers: PeerArgs,
    /// Guest memory, MiB
    #[arg(long, default_value_t = 512)]
    memory_mib: u32,
}

/// An engine that stands ready to give samples.
enum MeasuredEngine {
    Ours {
        saved: SavedVm,
        pool: bool,
    },
    Theirs {
        peer: Box<dyn PeerEngine>,
        place: tempfile::TempDir,
    },
}

pub(crate) fn run(args: &VersusArgs) -> Result<ExitCode> {
    let guest = GuestSpec {
        dist: args.dist.clone(),
        vcpus: 1,
        memory_mib: args.memory_mib,
        network: false,
    };
    let mut printer = RecordPrinter::new(args.icount);
    let mut engines = Vec::new();
    for pool in [true, false] {
        let saved = template(&guest)?;
        engines.push(MeasuredEngine::Ours { saved, pool });
    }
    for peer in args.peers.engines() {
        let name = peer.name();
        match prepare(&guest, peer, &mut printer) {
            Ok(engine) => engines.push(engine),
            Err(error) => printer.sample(SCENARIO, name, Err(error.context("it was not saved"))),
        }
    }
    let mut failures = vec![0; engines.len()];
    for number in 0..=args.samples {
        for (engine, failures) in engines.iter().zip(&mut failures) {
            if *failures >= MAX_FAILURES {
                continue;
            }
            let sample = engine.live(&guest, number + 1, None);
            *failures = if sample.is_err() { *failures + 1 } else { 0 };
            // The first brings programs and files into the host's caches.
            if number > 0 {
                printer.sample(SCENARIO, engine.name(), sample);
            }
        }
        eprintln!("versus: {number} of {}", args.samples);
    }
    for (engine, failures) in engines.iter().zip(failures) {
        if failures >= MAX_FAILURES {
            continue;
        }
        let count = || engine.live(&guest, args.samples + 2, Some(&EventCounters::arm()?));
        let mut counted = count();
        if let Ok(sample) = &mut counted {
            sample.values.remove("end_time"); // under the eyes of the counters
        }
        printer.sample("versus-counts", engine.name(), counted);
    }
    say("versus: done");
    Ok(ExitCode::SUCCESS)
}

/// Boots, warms and saves a peer's machine as ours was.
fn prepare(
    guest: &GuestSpec,
    peer: Box<dyn PeerEngine>,
    printer: &mut RecordPrinter,
) -> Result<MeasuredEngine> {
    eprintln!("versus: {} boots and is saved", peer.name());
    let place = tempfile::tempdir()?;
    let mut machine = peer.boot(guest, place.path()).context("Booting")?;
    let [asked_ns, _, _, greeted_ns] = machine.times;
    let values = [("from_nothing_time", greeted_ns - asked_ns)];
    printer.keep("versus-boot", peer.name(), &values);
    machine.agent.read_first()?;
    (0..3).try_for_each(|_| first_command(&mut machine.agent).map(drop))?;
    std::thread::sleep(IDLE);
    peer.save(machine, place.path()).context("Saving")?;
    Ok(MeasuredEngine::Theirs { peer, place })
}

fn first_command<S: Read + Write>(agent: &mut AgentClient<S>) -> Result<String> {
    let ran = agent.run(&[b"/bin/true"])?;
    let right = RunOutcome {
        bytes: 0,
        status: 0,
    };
    ensure!(ran == right, "wrong answer from the guest: {ran:?}");
    Ok("exit status 0".into())
}

impl MeasuredEngine {
    fn name(&self) -> &'static str {
        match self {
            Self::Ours { pool: true, .. } => "hatchery, pool warm",
            Self::Ours { pool: false, .. } => "hatchery, pool empty",
            Self::Theirs { peer, .. } => peer.name(),
        }
    }

    /// One life; with `counters`, what others did in it instead of how long it took.
    fn live(
        &self,
        guest: &GuestSpec,
        number: u32,
        counters: Option<&EventCounters>,
    ) -> Result<Sample> {
        match self {
            Self::Ours { saved, pool } => {
                let ahead = match pool {
                    true => Some(WarmVm::build(guest, saved)?),
                    false => None,
                };
                let (vm, mut sample) = measured(counters, || ours(guest, saved, ahead, number))?;
                let ((), end) = timed(|| vm.stop())?;
                sample.add(&[("end_time", end)]);
                Ok(sample)
            }
            Self::Theirs { peer, place } => {
                let restore = || theirs(peer.as_ref(), guest, place.path(), number);
                let (machine, mut sample) = measured(counters, restore)?;
                let ((), end) = timed(|| machine.end())?;
                sample.add(&[("end_time", end)]);
                Ok(sample)
            }
        }
    }
}

/// Does `work`, and if there are `counters` replaces its times by what others did meanwhile.
fn measured<T>(
    counters: Option<&EventCounters>,
    work: impl FnOnce() -> Result<(T, Sample)>,
) -> Result<(T, Sample)> {
    // What was made ahead waits, as it does in a pool, and so do others. No event tells when the
    // kernel has done what the life before left to it: it is freed after grace periods.
    std::thread::sleep(POOLED);
    let Some(counters) = counters else {
        return work();
    };
    let ((value, sample), counts) = counters.of_others(work)?;
    let values = [
        ("vm_exits", counts.vm_exits),
        ("guest_faults", counts.guest_faults),
        ("syscalls", counts.syscalls),
    ];
    Ok((value, Sample::new(sample.verified, &values)))
}

fn ours(
    guest: &GuestSpec,
    saved: &SavedVm,
    ahead: Option<WarmVm>,
    number: u32,
) -> Result<(hatchery::RunningVm, Sample)> {
    let begin_ns = now_ns();
    let warm_vm = match ahead {
        Some(warm_vm) => warm_vm,
        None => WarmVm::build(guest, saved)?,
    };
    let built_ns = now_ns();
    let mut vm = claim(warm_vm, number)?;
    let named_ns = now_ns();
    let status = first_command(&mut vm.agent)?;
    let over_ns = now_ns();
    let sample = Sample::new(
        status,
        &[
            ("step_build_time", built_ns - begin_ns),
            ("step_identity_time", named_ns - built_ns),
            ("step_exec_time", over_ns - named_ns),
            ("first_exec_time", over_ns - begin_ns),
        ],
    );
    Ok((vm, sample))
}

fn theirs(
    peer: &dyn PeerEngine,
    guest: &GuestSpec,
    place: &Path,
    number: u32,
) -> Result<(PeerVm, Sample)> {
    let mut machine = peer.restore(guest, place)?;
    machine
        .agent
        .set_identity(number.into(), &entropy()?)
        .context("Giving an identity")?;
    let named_ns = now_ns();
    let status = first_command(&mut machine.agent)?;
    let over_ns = now_ns();
    let [asked_ns, answers_ns, loaded_ns, greeted_ns] = machine.times;
    let sample = Sample::new(
        status,
        &[
            ("step_start_time", answers_ns - asked_ns),
            ("step_load_time", loaded_ns - answers_ns),
            ("step_greet_time", greeted_ns - loaded_ns),
            ("step_identity_time", named_ns - greeted_ns),
            ("step_exec_time", over_ns - named_ns),
            ("first_exec_time", over_ns - asked_ns),
        ],
    );
    Ok((machine, sample))
}
