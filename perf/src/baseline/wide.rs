//! Many machines at once: how fast they are gone, and what they take while they stand.

use super::context::BaselineContext;
use super::guest::{AfterAnswer, BareGuest};
use super::process::BareProcess;
use crate::engine::now_ns;
use crate::host;
use crate::record::Sample;
use anyhow::{Result, ensure};
use std::time::Duration;

/// How long the kernel gets to settle its accounts of memory.
const SETTLE: Duration = Duration::from_millis(300);

/// A machine that ran is killed: until nothing is left of it.
pub(super) fn kill(context: &BaselineContext, bare: &BareGuest) -> Result<Sample> {
    let mut process = running(context, bare)?;
    let asked_ns = now_ns();
    process.kill()?;
    let killed_ns = now_ns();
    process.reap()?;
    Ok(Sample::new(
        &*bare.value,
        &[
            ("kill_ns", killed_ns - asked_ns),
            ("reaped_ns", now_ns() - asked_ns),
        ],
    ))
}

/// So many machines that ran are killed together: until nothing is left of any.
pub(super) fn reap(context: &BaselineContext, bare: &BareGuest, count: u32) -> Result<Sample> {
    let mut machines = (0..count)
        .map(|_| running(context, bare))
        .collect::<Result<Vec<_>>>()?;
    let cpu_before = host::children_cpu_ns()?;
    let began_ns = now_ns();
    machines.iter_mut().try_for_each(BareProcess::kill)?;
    let killed_ns = now_ns();
    machines.into_iter().try_for_each(BareProcess::reap)?;
    let took_ns = now_ns() - began_ns;
    Ok(Sample::new(
        &*bare.value,
        &[
            ("reaped_per_s", per_s(count.into(), took_ns)),
            ("kill_all_ns", killed_ns - began_ns),
            ("reap_all_ns", took_ns),
            ("children_cpu_ns", host::children_cpu_ns()? - cpu_before),
        ],
    ))
}

/// So many warm VMs stand at once: what each takes. Each is then let go and must answer.
pub(super) fn warm_vms(context: &BaselineContext, bare: &BareGuest, count: u32) -> Result<Sample> {
    // The first brings programs and tables into memory that all share.
    let first = BareProcess::warm_vm(&context.program, bare)?;
    std::thread::sleep(SETTLE);
    let empty = host::true_available_kib()?;
    let mut warm_vms = (0..count)
        .map(|_| BareProcess::warm_vm(&context.program, bare))
        .collect::<Result<Vec<_>>>()?;
    std::thread::sleep(SETTLE);
    let taken = host::true_available_kib()?;
    let private = warm_vms
        .iter()
        .map(|h| host::private_kib(h.pid()))
        .collect::<Result<Vec<_>>>()?;
    for warm_vm in &mut warm_vms {
        answer(warm_vm, bare)?;
    }
    std::thread::sleep(SETTLE);
    let ran = host::true_available_kib()?;
    drop(first);
    let mut sample = Sample::new(
        &*bare.value,
        &[
            ("warm_vms", count.into()),
            ("private_kib", private.iter().copied().max().unwrap_or(0)),
        ],
    );
    for (name, now) in [("available_kib", taken), ("ran_available_kib", ran)] {
        if let (Some(empty), Some(now)) = (empty, now) {
            let each = empty.saturating_sub(now) / u64::from(count.max(1));
            sample.values.insert(name.into(), each);
        }
    }
    Ok(sample)
}

/// A machine whose guest has written its value and sleeps.
fn running(context: &BaselineContext, bare: &BareGuest) -> Result<BareProcess> {
    let mut process = BareProcess::warm_vm(&context.program, bare)?;
    answer(&mut process, bare)?;
    Ok(process)
}

/// Lets a machine go; its guest must write its value.
pub(super) fn answer(process: &mut BareProcess, bare: &BareGuest) -> Result<()> {
    process.start()?;
    let (said, _) = process.answer()?;
    ensure!(
        said == bare.value,
        "the guest said {said:?}, not {:?}",
        bare.value
    );
    Ok(())
}

/// One whole life: built, let go, answered, killed, reaped.
pub(super) fn life(context: &BaselineContext, bare: &BareGuest) -> Result<()> {
    let mut process = running(context, bare)?;
    process.kill()?;
    process.reap()
}

/// Base memory for machines that live on after their answer.
pub(super) fn base_memory(context: &BaselineContext) -> Result<BareGuest> {
    context.waiting.base_memory(0, AfterAnswer::Wait)
}

/// How many a second that makes.
pub(super) fn per_s(count: u64, took_ns: u64) -> u64 {
    let scaled = u128::from(count) * 1_000_000_000 / u128::from(took_ns.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
