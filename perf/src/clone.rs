//! The clone benchmark: what a sandbox costs when it is claimed rather than booted.
//!
//! A guest is booted and warmed once, saved, and cloned. Each sample is one life: a warm VM is
//! built (off the path of a create), claimed (Start to the agent's acknowledgement of its
//! identity), and runs `/bin/true` for the first time, whose exit status is the verification. Half
//! of the lives are of warm VMs that have waited a while, as they do in a pool; the others of such
//! that are claimed at once.

use crate::agent::RunOutcome;
use crate::counters::{EventCounters, EventCounts};
use crate::engine::hatchery::{RunningVm, SavedVm, WarmVm};
use crate::engine::{GuestSpec, timed};
use crate::output::say;
use crate::record::RecordPrinter;
use anyhow::{Context, Result, ensure};
use snapshot_memory::PageRange;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long a warmed guest is left alone before it is saved, so that nothing is under way.
const IDLE: Duration = Duration::from_millis(300);

/// How long a warm VM is left alone in which a pool's is: what its making and the end of the life
/// before have left the kernel to do is not a part of its claim. It frees after grace periods, of
/// whose end no event tells.
pub(crate) const POOLED: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(crate) struct CloneArgs {
    /// Folder with hatchery-vmm, hatchery-agent, vmlinux and base.ext4
    #[arg(long)]
    dist: PathBuf,
    /// Clones to measure, after one that is not counted
    #[arg(long, default_value_t = 5)]
    samples: u32,
    /// The clock counts instructions (the host runs under QEMU's -icount)
    #[arg(long)]
    icount: bool,
    /// Clones to hold at once, each after one exec, for the memory they take; 0 for none
    #[arg(long, default_value_t = 0)]
    density: u32,
    /// Guest memory, MiB
    #[arg(long, default_value_t = 512)]
    memory_mib: u32,
}

/// One life, nanoseconds or instructions.
#[derive(Clone, Copy, Debug)]
struct CloneSample {
    build_ns: u64,
    claim_ns: u64,
    exec_ns: u64,
    /// Of another life: all of it, with nothing made ahead.
    cold_ns: u64,
}

#[derive(Debug)]
struct CloneFigures {
    save: [u64; 4],
    samples: Vec<CloneSample>,
    claim_and_exec: EventCounts,
    second_exec_ns: u64,
    guest_resident_kib: u64,
    overhead_kib: u64,
    warm_vm_kib: Option<u64>,
    clone_kib: Option<u64>,
}

pub(crate) fn run(args: &CloneArgs) -> Result<ExitCode> {
    let guest = GuestSpec {
        dist: args.dist.clone(),
        vcpus: 1,
        memory_mib: args.memory_mib,
        network: false,
    };
    let saved = template(&guest)?;
    let mut figures = lives(args, &guest, &saved)?;
    if args.density > 0 {
        (figures.warm_vm_kib, figures.clone_kib) = density(args.density, &guest, &saved)?;
    }
    report(args, &figures);
    Ok(ExitCode::SUCCESS)
}

/// Boots a guest, reads and runs in it what programs begin with, and saves it.
pub(crate) fn template(guest: &GuestSpec) -> Result<SavedVm> {
    eprintln!("booting and saving the guest that is cloned");
    let mut vm = RunningVm::boot(guest)?;
    vm.agent.read_first()?;
    (0..3).try_for_each(|_| run_true(&mut vm))?;
    std::thread::sleep(IDLE);
    let mut saved = vm.save(guest)?;
    let mut trial = claim(WarmVm::trial(guest, &saved)?, u32::MAX)?;
    run_true(&mut trial)?;
    std::thread::sleep(IDLE);
    let first = saved.learn(trial)?;
    say(&format!(
        "working set of a claim and an exec: {} pages, {} of them written",
        PageRange::count(&first.touched),
        PageRange::count(&first.written)
    ));
    Ok(saved)
}

fn run_true(vm: &mut RunningVm) -> Result<()> {
    let ran = vm.agent.run(&[b"/bin/true"])?;
    ensure!(
        ran == RunOutcome {
            bytes: 0,
            status: 0
        },
        "wrong answer from the guest: {ran:?}"
    );
    Ok(())
}

pub(crate) fn entropy() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    ensure!(got == bytes.len(), "The host gave {got} random bytes");
    Ok(bytes)
}

pub(crate) fn claim(warm_vm: WarmVm, generation: u32) -> Result<RunningVm> {
    warm_vm.claim(generation.into(), &entropy()?)
}

fn lives(args: &CloneArgs, guest: &GuestSpec, saved: &SavedVm) -> Result<CloneFigures> {
    let mut samples = Vec::new();
    for number in 0..=args.samples {
        let sample = life(guest, saved, 2 * number + 1)?;
        eprintln!("clone {number} of {}: {sample:?}", args.samples);
        // The first one brings programs and files into the host's caches.
        if number > 0 {
            samples.push(sample);
        }
    }
    let warm_vm = WarmVm::build(guest, saved)?;
    let pid = warm_vm.pid();
    std::thread::sleep(POOLED);
    let counters = EventCounters::arm()?;
    let (mut vm, claim_and_exec) = counters.during(&[pid], || {
        let mut vm = claim(warm_vm, 2 * args.samples + 3)?;
        run_true(&mut vm)?;
        Ok(vm)
    })?;
    drop(counters);
    let ((), second_exec_ns) = timed(|| run_true(&mut vm))?;
    let stats = vm.stats()?;
    vm.stop()?;
    let report = saved.report;
    Ok(CloneFigures {
        save: [
            report.park_ns,
            report.write_ns,
            report.memory_pages,
            report.disk_blocks,
        ],
        samples,
        claim_and_exec,
        second_exec_ns,
        guest_resident_kib: stats.guest_resident_kib,
        overhead_kib: stats.overhead_kib,
        warm_vm_kib: None,
        clone_kib: None,
    })
}

/// A warm VM that has waited, and then one that has not.
fn life(guest: &GuestSpec, saved: &SavedVm, number: u32) -> Result<CloneSample> {
    let warm_vm = WarmVm::build(guest, saved)?;
    let build_ns = warm_vm.build_ns;
    std::thread::sleep(POOLED);
    let (mut vm, claim_ns) = timed(|| claim(warm_vm, number))?;
    let ((), exec_ns) = timed(|| run_true(&mut vm))?;
    vm.stop()?;
    std::thread::sleep(POOLED);
    let (vm, cold_ns) = timed(|| {
        let mut vm = claim(WarmVm::build(guest, saved)?, number + 1)?;
        run_true(&mut vm)?;
        Ok(vm)
    })?;
    vm.stop()?;
    Ok(CloneSample {
        build_ns,
        claim_ns,
        exec_ns,
        cold_ns,
    })
}

/// What a warm VM and what a clone after one exec take of the host's memory, KiB each.
fn density(count: u32, guest: &GuestSpec, saved: &SavedVm) -> Result<(Option<u64>, Option<u64>)> {
    // One before, so that what all share is there.
    let mut first = claim(WarmVm::build(guest, saved)?, 1_000_000)?;
    run_true(&mut first)?;
    let empty = available_kib()?;
    let warm_vms: Vec<_> = (0..count)
        .map(|_| WarmVm::build(guest, saved))
        .collect::<Result<_>>()?;
    std::thread::sleep(IDLE);
    let with_warm_vms = available_kib()?;
    let mut vms = Vec::new();
    for (warm_vm, number) in warm_vms.into_iter().zip(1_000_001..) {
        let mut vm = claim(warm_vm, number)?;
        run_true(&mut vm)?;
        vms.push(vm);
    }
    std::thread::sleep(IDLE);
    let with_clones = available_kib()?;
    for vm in vms {
        vm.stop()?;
    }
    first.stop()?;
    let each = |now: u64| Some(empty.saturating_sub(now) / u64::from(count));
    Ok((each(with_warm_vms), each(with_clones)))
}

fn available_kib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let value = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok());
    value.context("/proc/meminfo does not say MemAvailable")
}

fn report(args: &CloneArgs, figures: &CloneFigures) {
    let unit = if args.icount { "instructions" } else { "ns" };
    let median = |part: fn(&CloneSample) -> u64| {
        let mut values: Vec<u64> = figures.samples.iter().map(part).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    let [park, write, pages, blocks] = figures.save;
    say(&format!(
        "save: park {park} {unit}, write {write} {unit}, {pages} pages, {blocks} disk blocks"
    ));
    say(&format!(
        "clone, median of {} ({unit}):",
        figures.samples.len()
    ));
    say(&format!(
        "  warm VM: vm process start -> ready   {:>12}",
        median(|s| s.build_ns)
    ));
    say(&format!(
        "  claim -> identity acknowledged    {:>12}",
        median(|s| s.claim_ns)
    ));
    say(&format!(
        "  first exec of /bin/true           {:>12}",
        median(|s| s.exec_ns)
    ));
    say(&format!(
        "  create -> first exec, pool warm   {:>12}",
        median(|s| s.claim_ns + s.exec_ns)
    ));
    say(&format!(
        "  create -> first exec, pool empty  {:>12}",
        median(|s| s.cold_ns)
    ));
    say(&format!(
        "  second exec                       {:>12}",
        figures.second_exec_ns
    ));
    say(&format!(
        "claim and first exec: {} vm exits, {} system calls of the vm process",
        figures.claim_and_exec.vm_exits, figures.claim_and_exec.syscalls
    ));
    say(&format!(
        "clone after two execs: {} KiB of guest memory present (shared or own), {} KiB outside",
        figures.guest_resident_kib, figures.overhead_kib
    ));
    if let (Some(warm_vm), Some(clone)) = (figures.warm_vm_kib, figures.clone_kib) {
        say(&format!(
            "{} at once, of MemAvailable each: warm VM {warm_vm} KiB, clone after one exec \
             {clone} KiB",
            args.density
        ));
    }
    keep(args, figures);
}

fn keep(args: &CloneArgs, figures: &CloneFigures) {
    const ENGINE: &str = "hatchery";
    let mut printer = RecordPrinter::new(args.icount);
    for s in &figures.samples {
        let values = [
            ("build_time", s.build_ns),
            ("claim_time", s.claim_ns),
            ("first_exec_time", s.exec_ns),
            ("create_time", s.claim_ns + s.exec_ns),
            ("cold_time", s.cold_ns),
        ];
        printer.keep("clone", ENGINE, &values);
    }
    let counts = [
        ("vm_exits", figures.claim_and_exec.vm_exits),
        ("syscalls", figures.claim_and_exec.syscalls),
        ("second_exec_time", figures.second_exec_ns),
        ("overhead_kib", figures.overhead_kib),
    ];
    printer.keep("clone-counts", ENGINE, &counts);
    let [park, write, pages, blocks] = figures.save;
    let save = [
        ("park_time", park),
        ("write_time", write),
        ("pages", pages),
        ("blocks", blocks),
    ];
    printer.keep("save", ENGINE, &save);
    if let (Some(warm_vm), Some(clone)) = (figures.warm_vm_kib, figures.clone_kib) {
        let density = [
            ("warm_vm_kib", warm_vm),
            ("clone_kib", clone),
            ("clones", args.density.into()),
        ];
        printer.keep("density", ENGINE, &density);
    }
}
