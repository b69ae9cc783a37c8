//! Whole lives one after the other: as many as go, at a fixed rate, and whether anything is left.

use super::context::BaselineContext;
use super::guest::BareGuest;
use super::wide::{life, per_s};
use crate::engine::now_ns;
use crate::host::{self, Leftovers};
use crate::record::Sample;
use anyhow::{Context as _, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const SECOND_NS: u64 = 1_000_000_000;

/// As many lives as `workers` bring about in so many seconds, each beginning the next at once.
pub(super) fn closed(
    context: &BaselineContext,
    bare: &BareGuest,
    workers: u32,
    seconds: u32,
) -> Result<Sample> {
    let cpu_before = host::all_cpu_ns()?;
    let began_ns = now_ns();
    let end_ns = began_ns + u64::from(seconds) * SECOND_NS;
    let done = AtomicU64::new(0);
    each_worker(workers, || {
        while now_ns() < end_ns {
            life(context, bare)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let took_ns = now_ns() - began_ns;
    let done = done.into_inner();
    let cpu_ns = host::all_cpu_ns()? - cpu_before;
    Ok(Sample::new(
        &*bare.value,
        &[
            ("cycles", done),
            ("cycles_per_s", per_s(done, took_ns)),
            ("cpu_each_ns", cpu_ns / done.max(1)),
        ],
    ))
}

/// A load that does not wait for answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenLoad {
    /// Lives begun a second.
    pub(super) per_s: u32,
    /// How long.
    pub(super) seconds: u32,
    /// Most lives at once; what is due beyond that waits, and its wait counts.
    pub(super) workers: u32,
}

/// Lives that are due at fixed times. A life's time runs from when it was due, not from when
/// somebody was free to begin it, so that a stall is felt by all who would have come meanwhile.
pub(super) fn open(
    context: &BaselineContext,
    bare: &BareGuest,
    load: OpenLoad,
) -> Result<Vec<Result<Sample>>> {
    let count = u64::from(load.per_s) * u64::from(load.seconds);
    let step_ns = SECOND_NS / u64::from(load.per_s.max(1));
    let next = AtomicU64::new(0);
    let samples = Mutex::new(Vec::new());
    let began_ns = now_ns();
    each_worker(load.workers, || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            let due_ns = began_ns + number * step_ns;
            let early_ns = due_ns.saturating_sub(now_ns());
            std::thread::sleep(Duration::from_nanos(early_ns));
            let started_ns = now_ns();
            let sample = life(context, bare).map(|()| {
                let over_ns = now_ns();
                let values = [
                    ("life_ns", over_ns - due_ns),
                    ("service_ns", over_ns - started_ns),
                    ("late_ns", started_ns.saturating_sub(due_ns)),
                ];
                Sample::new(&*bare.value, &values)
            });
            samples
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(sample);
        }
    })?;
    Ok(samples.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// So many lives, and what is left when they are over.
pub(super) fn growth(
    context: &BaselineContext,
    bare: &BareGuest,
    workers: u32,
    cycles: u64,
) -> Result<Sample> {
    // What is kept for ever is there after a first few.
    (0..20).try_for_each(|_| life(context, bare))?;
    let before = Leftovers::now(context.scratch.path())?;
    let next = AtomicU64::new(0);
    let began_ns = now_ns();
    each_worker(workers, || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= cycles {
                return Ok(());
            }
            if number % 2000 == 1999 {
                eprintln!("  {} of {cycles} lives", number + 1);
            }
            life(context, bare)?;
        }
    })?;
    let took_ns = now_ns() - began_ns;
    std::thread::sleep(Duration::from_secs(2));
    let after = Leftovers::now(context.scratch.path())?;
    let mut sample = Sample::new(
        &*bare.value,
        &[("cycles", cycles), ("cycles_per_s", per_s(cycles, took_ns))],
    );
    sample.add(&host::growth([
        ("processes_left", before.processes, after.processes),
        ("descriptors_left", before.descriptors, after.descriptors),
        ("own_memory_kib", before.own_kib, after.own_kib),
        ("disk_lost_kib", before.disk_kib, after.disk_kib),
    ]));
    if let (Some(before), Some(after)) = (before.available_kib, after.available_kib) {
        sample.add(&host::growth([("memory_lost_kib", after, before)]));
    }
    Ok(sample)
}

/// Runs `work` on so many threads; the first error of any.
fn each_worker(workers: u32, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(&work)).collect();
        for thread in threads {
            thread.join().ok().context("a worker died")??;
        }
        Ok(())
    })
}
