//! Many sandboxes that stand at once after one command: what each takes, and what it does idle.

use super::client::ClientSandbox;
use super::context::ServiceContext;
use super::meter::WorkMeter;
use super::server::BenchServer;
use crate::engine::timed;
use crate::host;
use crate::record::Sample;
use anyhow::{Context as _, Result};
use std::time::Duration;

/// How long the kernel gets to settle its accounts of memory.
const SETTLE: Duration = Duration::from_secs(1);
/// How long idle sandboxes are watched.
const WATCH: Duration = Duration::from_secs(10);

/// Sandboxes are added step by step; a sample at each.
pub(super) fn ladder(
    context: &mut ServiceContext<'_>,
    name: &str,
    server: &BenchServer,
    steps: &[u32],
) -> Result<()> {
    let mut client = server.client()?;
    // What all share, and what the first of a kind brings about, is there before.
    let (first, _) = client.create("base")?;
    client.exec_true(&first)?;
    server.settle(1)?;
    std::thread::sleep(SETTLE);
    let empty_kib = host::available_kib()?;
    let idle_before = idle(server)?;
    let mut sandboxes: Vec<ClientSandbox> = Vec::new();
    let mut last_kib = empty_kib;
    for step in steps {
        let begin = u32::try_from(sandboxes.len())?;
        let (_, made_ns) = timed(|| {
            for _ in begin..*step {
                let (sandbox, _) = client.create("base")?;
                client.exec_true(&sandbox)?;
                sandboxes.push(sandbox);
            }
            Ok(())
        })?;
        eprintln!("  {step} sandboxes stand");
        server.settle(step + 1)?;
        std::thread::sleep(SETTLE);
        let now_kib = host::available_kib()?;
        let taken = |from: u64, count: u32| from.saturating_sub(now_kib) / u64::from(count.max(1));
        let verified = format!("{step} times exit status 0");
        let mut sample = Sample::new(
            verified,
            &[
                ("clones", (*step).into()),
                ("clone_kib", taken(empty_kib, *step)),
                ("added_each_kib", taken(last_kib, step - begin)),
                ("made_each_time", made_ns / u64::from((step - begin).max(1))),
            ],
        );
        last_kib = now_kib;
        if let (Some(before), Some(now)) = (idle_before, idle(server)?) {
            let each = now.saturating_sub(before) / u64::from(*step);
            sample.add(&[("idle_work_per_s", each)]);
        }
        context.keep(&format!("{name}-{step}"), Ok(sample));
    }
    // The first and the last still work.
    client.exec_true(&first)?;
    client.exec_true(sandboxes.last().context("No step")?)?;
    for sandbox in sandboxes.iter().chain([&first]) {
        client.delete(&sandbox.id)?;
    }
    Ok(())
}

/// What everybody but this client does in a second while nobody asks anything.
fn idle(server: &BenchServer) -> Result<Option<u64>> {
    let meter = WorkMeter::start(server.pid())?;
    std::thread::sleep(WATCH);
    let spent = meter.stop()?;
    let per_s = |work: u64| u128::from(work) * 1_000_000_000 / u128::from(spent.elapsed_ns.max(1));
    Ok(spent
        .work_ns
        .and_then(|work| u64::try_from(per_s(work)).ok()))
}
