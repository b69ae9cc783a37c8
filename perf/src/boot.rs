//! The boot benchmark: what one sandbox costs to boot, to run a first program in, and to get bytes
//! out of; and the targets it is held to.

use crate::agent::RunOutcome;
use crate::api;
use crate::counters::{EventCounters, EventCounts};
use crate::engine::peer::PeerEngine as _;
use crate::engine::{BootTimes, GuestSpec, hatchery, qemu, timed};
use crate::output::say;
use crate::record::RecordPrinter;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::ExitCode;

/// Targets of a cold boot (issue "One sandbox, end to end").
const TARGET_BOOT_INSTRUCTIONS: u64 = 100_000_000;
const TARGET_OVERHEAD_KIB: u64 = 2 * 1024;
const TARGET_GUEST_KIB: u64 = 24 * 1024;

#[derive(clap::Args)]
pub(crate) struct BootArgs {
    /// Folder with hatchery, hatchery-vmm, hatchery-agent, vmlinux and base.ext4
    #[arg(long)]
    dist: PathBuf,
    /// Boots to measure, after one that is not counted
    #[arg(long, default_value_t = 3)]
    samples: u32,
    /// MiB that the bulk transfer moves
    #[arg(long, default_value_t = 16)]
    bulk_mib: u64,
    /// The clock counts instructions (the host runs under QEMU's -icount)
    #[arg(long)]
    icount: bool,
    /// A QEMU to measure beside, with vhost-vsock
    #[arg(long)]
    qemu: Option<PathBuf>,
    /// Exit with success although a target is missed
    #[arg(long)]
    report_only: bool,
    /// Guest memory, MiB
    #[arg(long, default_value_t = 512)]
    memory_mib: u32,
}

/// One engine's figures.
#[derive(Debug)]
struct BootFigures {
    engine: &'static str,
    boots: Vec<BootTimes>,
    overhead_kib: Option<u64>,
    guest_resident_kib: Option<u64>,
    exec: Option<WarmWork>,
    bulk: Option<WarmWork>,
}

/// Some work on a warm VM.
#[derive(Clone, Copy, Debug)]
struct WarmWork {
    /// Nanoseconds, or instructions under instruction counting.
    ns: u64,
    counts: EventCounts,
    bytes: u64,
}

pub(crate) fn run(args: &BootArgs) -> Result<ExitCode> {
    let guest = GuestSpec {
        dist: args.dist.clone(),
        vcpus: 1,
        memory_mib: args.memory_mib,
        network: false,
    };
    let ours = measure_hatchery(args, &guest)?;
    let api = api::exec(args.dist.as_path()).context("Measuring an exec through the API")?;
    let peer = match &args.qemu {
        Some(program) => Some(measure_qemu(args, &guest, program)?),
        None => None,
    };
    Ok(report(args, &ours, &api, peer.as_ref()))
}

fn measure_hatchery(args: &BootArgs, guest: &GuestSpec) -> Result<BootFigures> {
    eprintln!("warming up: one boot that is not counted");
    hatchery::RunningVm::boot(guest)?.stop()?;
    let mut figures = BootFigures {
        engine: "hatchery",
        boots: Vec::new(),
        overhead_kib: None,
        guest_resident_kib: None,
        exec: None,
        bulk: None,
    };
    for sample in 1..=args.samples {
        let mut vm = hatchery::RunningVm::boot(guest)?;
        let stats = vm.stats()?;
        eprintln!("boot {sample} of {}: {:?}", args.samples, vm.boot);
        figures.boots.push(vm.boot);
        figures.overhead_kib = figures.overhead_kib.max(Some(stats.overhead_kib));
        figures.guest_resident_kib = figures
            .guest_resident_kib
            .max(Some(stats.guest_resident_kib));
        if sample == args.samples {
            let pid = vm.pid();
            (figures.exec, figures.bulk) = warm_work(args, pid, |argv| vm.agent.run(argv))?;
        }
        vm.stop()?;
    }
    Ok(figures)
}

fn measure_qemu(
    args: &BootArgs,
    guest: &GuestSpec,
    program: &std::path::Path,
) -> Result<BootFigures> {
    eprintln!("peer: {}", program.display());
    let peer = qemu::QemuEngine {
        program: program.into(),
    };
    let place = tempfile::tempdir()?;
    let mut vm = peer.boot(guest, place.path())?;
    let [asked_ns, _, entered_ns, greeted_ns] = vm.times;
    let boot = BootTimes::split(asked_ns, entered_ns, greeted_ns, vm.ready);
    let pid = vm.pid();
    let (exec, bulk) = warm_work(args, pid, |argv| vm.agent.run(argv))?;
    vm.end()?;
    Ok(BootFigures {
        engine: peer.name(),
        boots: vec![boot],
        overhead_kib: None,
        guest_resident_kib: None,
        exec,
        bulk,
    })
}

/// A small program and a bulk transfer: each once to warm up, once timed, once counted.
fn warm_work(
    args: &BootArgs,
    pid: u32,
    mut run: impl FnMut(&[&[u8]]) -> Result<RunOutcome>,
) -> Result<(Option<WarmWork>, Option<WarmWork>)> {
    let counters = EventCounters::arm;
    let mib = format!("{}", args.bulk_mib * 1024 * 1024);
    let jobs: [(&[&[u8]], u64); 2] = [
        (&[b"/bin/true"], 0),
        (
            &[b"/usr/bin/head", b"-c", mib.as_bytes(), b"/dev/zero"],
            args.bulk_mib * 1024 * 1024,
        ),
    ];
    let mut done = [None, None];
    for ((argv, bytes), slot) in jobs.into_iter().zip(&mut done) {
        let mut checked = || -> Result<()> {
            let ran = run(argv)?;
            ensure!(
                ran == RunOutcome { bytes, status: 0 },
                "wrong answer from the guest: {ran:?}"
            );
            Ok(())
        };
        checked()?;
        let ((), ns) = timed(&mut checked)?;
        let ((), counts) = counters()?.during(&[pid], &mut checked)?;
        *slot = Some(WarmWork { ns, counts, bytes });
    }
    let [exec, bulk] = done;
    Ok((exec, bulk))
}

fn report(
    args: &BootArgs,
    ours: &BootFigures,
    api: &api::ApiExec,
    peer: Option<&BootFigures>,
) -> ExitCode {
    let unit = if args.icount { "instructions" } else { "ns" };
    let boots = &ours.boots;
    let median = |part: fn(&BootTimes) -> u64| {
        let mut values: Vec<u64> = boots.iter().map(part).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    let in_guest = median(|b| b.kernel_ns + b.agent_ns);
    say(&format!("cold boot, median of {} ({unit}):", boots.len()));
    say(&format!(
        "  vm process start -> kernel entry  {:>12}",
        median(|b| b.vmm_ns)
    ));
    say(&format!(
        "  kernel entry -> agent's first     {:>12}",
        median(|b| b.kernel_ns)
    ));
    say(&format!(
        "  agent's first -> ready            {:>12}",
        median(|b| b.agent_ns)
    ));
    let mut targets = Vec::new();
    if args.icount {
        targets.push((
            "kernel entry -> agent ready, instructions",
            Some(in_guest),
            TARGET_BOOT_INSTRUCTIONS,
        ));
    }
    targets.push((
        "vm process memory outside the guest, KiB",
        ours.overhead_kib,
        TARGET_OVERHEAD_KIB,
    ));
    targets.push((
        "guest memory touched when ready, KiB",
        ours.guest_resident_kib,
        TARGET_GUEST_KIB,
    ));
    for figures in [Some(ours), peer].into_iter().flatten() {
        work(figures, unit);
    }
    api.print(unit);
    let mut missed = false;
    for (what, value, limit) in targets {
        missed |= value.is_some_and(|value| value > limit);
        say(&format!("target: {what}: {}", told(value, limit)));
    }
    let mut printer = RecordPrinter::new(args.icount);
    for figures in [Some(ours), peer].into_iter().flatten() {
        keep(&mut printer, figures);
    }
    api.keep(&mut printer);
    if missed && !args.report_only {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// A figure beside its target; one that is not there has not missed it.
fn told(value: Option<u64>, limit: u64) -> String {
    match value {
        Some(value) if value <= limit => format!("{value} (target {limit}) met"),
        Some(value) => format!("{value} (target {limit}) MISSED"),
        None => format!("not measured (target {limit})"),
    }
}

fn keep(printer: &mut RecordPrinter, figures: &BootFigures) {
    for b in &figures.boots {
        let values = [
            ("vmm_time", b.vmm_ns),
            ("kernel_time", b.kernel_ns),
            ("agent_time", b.agent_ns),
            ("ready_time", b.kernel_ns + b.agent_ns),
        ];
        printer.keep("boot", figures.engine, &values);
    }
    let memory = [
        figures.overhead_kib.map(|v| ("overhead_kib", v)),
        figures
            .guest_resident_kib
            .map(|v| ("guest_resident_kib", v)),
    ];
    let memory: Vec<_> = memory.into_iter().flatten().collect();
    if !memory.is_empty() {
        printer.keep("memory", figures.engine, &memory);
    }
    for (scenario, work) in [("exec", figures.exec), ("bulk", figures.bulk)] {
        let Some(work) = work else { continue };
        let values = [
            ("work_time", work.ns),
            ("bytes", work.bytes),
            ("vm_exits", work.counts.vm_exits),
            ("syscalls", work.counts.syscalls),
        ];
        printer.keep(scenario, figures.engine, &values);
    }
}

fn work(figures: &BootFigures, unit: &str) {
    let name = figures.engine;
    if let Some(w) = figures.exec {
        say(&format!(
            "{name}: exec /bin/true: {} {unit}, {} vm exits, {} host system calls",
            w.ns, w.counts.vm_exits, w.counts.syscalls
        ));
    }
    if let Some(w) = figures.bulk {
        let mib = w.bytes / (1024 * 1024);
        say(&format!(
            "{name}: {mib} MiB guest -> client: {} bytes per 1000 {unit}, {} system calls and {} \
             vm \
             exits per MiB",
            w.bytes.saturating_mul(1000) / w.ns.max(1),
            w.counts.syscalls / mib.max(1),
            w.counts.vm_exits / mib.max(1),
        ));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_not_measured_has_not_missed_its_target() {
        assert_eq!(told(Some(5), 5), "5 (target 5) met");
        assert_eq!(told(Some(6), 5), "6 (target 5) MISSED");
        assert_eq!(told(None, 5), "not measured (target 5)");
    }
}
