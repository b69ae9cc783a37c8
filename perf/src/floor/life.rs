//! Lives of single machines: built, let go, answered, ended.

use super::Context;
use super::guest::{Bare, Then};
use super::process::Process;
use super::wide::answer;
use crate::engine::now_ns;
use crate::record::Sample;
use anyhow::{Result, ensure};
use control::ExitReport;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// From a kernel's entry.
pub(super) fn boot(context: &Context) -> Result<Sample> {
    let mut process = Process::boot(&context.program)?;
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
pub(super) fn build(context: &Context, bare: &Bare) -> Result<Sample> {
    live(Process::husk(&context.program, bare)?, bare)
}

/// Husks that stand ready, oldest first.
pub(super) struct Pool {
    husks: VecDeque<Process>,
    bare: Bare,
    size: usize,
}

impl Pool {
    /// Fills a pool.
    pub(super) fn fill(context: &Context, size: u32) -> Result<Self> {
        let bare = context.waiting.golden(0, Then::Wait)?;
        let mut pool = Self {
            husks: VecDeque::new(),
            bare,
            size: usize::try_from(size.max(1))?,
        };
        pool.refill(context)?;
        Ok(pool)
    }

    fn refill(&mut self, context: &Context) -> Result<()> {
        while self.husks.len() < self.size {
            let husk = Process::husk(&context.program, &self.bare)?;
            self.husks.push_back(husk);
        }
        Ok(())
    }

    /// Lets the oldest go; another takes its place afterwards, off the clock.
    pub(super) fn claim(&mut self, context: &Context) -> Result<Sample> {
        let oldest = self.husks.pop_front();
        let sample = oldest.map_or_else(
            || Err(anyhow::anyhow!("the pool is empty")),
            |husk| live(husk, &self.bare),
        );
        self.refill(context)?;
        sample
    }
}

/// Lets a husk go and ends it when the guest has written its value.
fn live(mut husk: Process, bare: &Bare) -> Result<Sample> {
    let (spawned_ns, configured_ns) = (husk.spawned_ns, husk.configured_ns);
    let asked_ns = husk.start()?;
    let (said, here_ns) = husk.answer()?;
    ensure!(
        said == bare.value,
        "the guest said {said:?}, not {:?}",
        bare.value
    );
    let report = husk.stop()?;
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
pub(super) fn save(context: &Context, bare: &Bare) -> Result<Sample> {
    let mut process = Process::husk(&context.program, bare)?;
    answer(&mut process, bare)?;
    let (memory, state) = (scratch_file()?, scratch_file()?);
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

/// A clone that has dirtied its pages is put back, and must do all again.
pub(super) fn reset(context: &Context, bare: &Bare) -> Result<Sample> {
    let mut process = Process::husk(&context.program, bare)?;
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
fn scratch_file() -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?)
}
