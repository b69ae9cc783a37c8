//! Lives of single machines: built, let go, answered, ended.

use super::context::BaselineContext;
use super::guest::{AfterAnswer, BareGuest};
use super::process::BareProcess;
use super::wide::answer;
use crate::engine::now_ns;
use crate::record::Sample;
use anyhow::{Result, ensure};
use control::ExitReport;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// From a kernel's entry.
pub(super) fn boot(context: &BaselineContext) -> Result<Sample> {
    let mut process = BareProcess::boot(&context.program)?;
    let asked_ns = process.start()?;
    let (said, here_ns) = process.answer()?;
    ensure!(said == "ready", "the guest said {said:?}");
    let (spawned_ns, configured_ns) = (process.spawned_ns, process.configured_ns);
    let report = process.stop()?;
    let first_ns = report.stats.first_run_ns;
    let mut sample = Sample::new(
        said,
        &[
            ("configured_ns", configured_ns.saturating_sub(spawned_ns)),
            ("entry_ns", first_ns.saturating_sub(asked_ns)),
            ("from_nothing_ns", first_ns.saturating_sub(spawned_ns)),
            ("answer_ns", here_ns.saturating_sub(spawned_ns)),
        ],
    );
    cost(&mut sample, &report);
    Ok(sample)
}

/// At a snapshot, let go as soon as it stands ready.
pub(super) fn build(context: &BaselineContext, bare: &BareGuest) -> Result<Sample> {
    live(BareProcess::warm_vm(&context.program, bare)?, bare)
}

/// Warm VMs that stand ready, oldest first.
pub(super) struct WarmPool {
    warm_vms: VecDeque<BareProcess>,
    bare: BareGuest,
    size: usize,
}

impl WarmPool {
    /// Fills a pool.
    pub(super) fn fill(context: &BaselineContext, size: u32) -> Result<Self> {
        let bare = context.waiting.base_memory(0, AfterAnswer::Wait)?;
        let mut pool = Self {
            warm_vms: VecDeque::new(),
            bare,
            size: usize::try_from(size.max(1))?,
        };
        pool.refill(context)?;
        Ok(pool)
    }

    fn refill(&mut self, context: &BaselineContext) -> Result<()> {
        while self.warm_vms.len() < self.size {
            let warm_vm = BareProcess::warm_vm(&context.program, &self.bare)?;
            self.warm_vms.push_back(warm_vm);
        }
        Ok(())
    }

    /// Lets the oldest go; another takes its place afterwards, off the clock.
    pub(super) fn claim(&mut self, context: &BaselineContext) -> Result<Sample> {
        let oldest = self.warm_vms.pop_front();
        let sample = oldest.map_or_else(
            || Err(anyhow::anyhow!("the pool is empty")),
            |warm_vm| live(warm_vm, &self.bare),
        );
        self.refill(context)?;
        sample
    }
}

/// Lets a warm VM go and ends it when the guest has written its value.
fn live(mut warm_vm: BareProcess, bare: &BareGuest) -> Result<Sample> {
    let (spawned_ns, configured_ns) = (warm_vm.spawned_ns, warm_vm.configured_ns);
    let asked_ns = warm_vm.start()?;
    let (said, here_ns) = warm_vm.answer()?;
    ensure!(
        said == bare.value,
        "the guest said {said:?}, not {:?}",
        bare.value
    );
    let report = warm_vm.stop()?;
    let first_ns = report.stats.first_run_ns;
    ensure!(first_ns >= asked_ns, "the guest ran before it was let go");
    let mut sample = Sample::new(
        said,
        &[
            ("configured_ns", configured_ns - spawned_ns),
            ("entry_ns", first_ns - asked_ns),
            ("from_nothing_ns", first_ns - spawned_ns),
            ("answer_ns", here_ns - asked_ns),
        ],
    );
    cost(&mut sample, &report);
    Ok(sample)
}

/// What the life took besides time.
fn cost(sample: &mut Sample, report: &ExitReport) {
    let stats = &report.stats;
    let costs = [
        ("cpu_ns", stats.cpu_ns),
        ("overhead_kib", stats.overhead_kib),
        ("guest_resident_kib", stats.guest_resident_kib),
    ];
    sample
        .values
        .extend(costs.map(|(name, value)| (name.into(), value)));
}

/// A clone that has dirtied its pages is saved; the layer must hold them.
pub(super) fn save(context: &BaselineContext, bare: &BareGuest) -> Result<Sample> {
    let mut process = BareProcess::warm_vm(&context.program, bare)?;
    answer(&mut process, bare)?;
    let (memory, state) = (scratch_file(context)?, scratch_file(context)?);
    let asked_ns = now_ns();
    let saved = process.save(&memory, &state)?;
    let took_ns = now_ns() - asked_ns;
    let report = process.stop()?;
    bare.check_layer(memory.into())?;
    let mut sample = Sample::new(
        &*bare.value,
        &[
            ("save_ns", took_ns),
            ("park_ns", saved.park_ns),
            ("write_ns", saved.write_ns),
            ("pages", saved.memory_pages),
        ],
    );
    cost(&mut sample, &report);
    Ok(sample)
}

/// A clone that has dirtied its pages is reset, and must do all again.
pub(super) fn reset(context: &BaselineContext, bare: &BareGuest) -> Result<Sample> {
    let mut process = BareProcess::warm_vm(&context.program, bare)?;
    answer(&mut process, bare)?;
    let asked_ns = now_ns();
    let reset = process.reset(bare)?;
    let took_ns = now_ns() - asked_ns;
    answer(&mut process, bare)?;
    let report = process.stop()?;
    ensure!(
        reset.dropped_pages >= bare.pages,
        "{} pages were given up, of {} that the guest had written",
        reset.dropped_pages,
        bare.pages
    );
    let mut sample = Sample::new(
        &*bare.value,
        &[
            ("reset_ns", took_ns),
            ("park_ns", reset.park_ns),
            ("back_ns", reset.reset_ns),
            ("pages", reset.dropped_pages),
        ],
    );
    cost(&mut sample, &report);
    Ok(sample)
}

/// A file without a name where the service would have its data: on a disk, not in memory.
fn scratch_file(context: &BaselineContext) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(open(
        context.scratch.path(),
        flags,
        Mode::RUSR | Mode::WUSR,
    )?)
}
