//! Creations and first commands: one client or many at once, from a pool or without.

use super::client::{ApiClient, ClientSandbox, ServerSteps};
use super::context::ServiceContext;
use super::meter::WorkMeter;
use super::server::BenchServer;
use crate::counters::EventCounters;
use crate::engine::{now_ns, timed};
use crate::host;
use crate::record::Sample;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::time::Duration;

/// How often is looked whether a machine is gone.
const LOOK: Duration = Duration::from_micros(200);

/// One sandbox, made and perhaps used.
struct MadeSandbox {
    sandbox: ClientSandbox,
    sample: Sample,
}

/// All of `clients` make a sandbox at once, and run a first command in it. A sample each, and one
/// of the round in `<name>-rounds`.
pub(super) fn round(
    context: &mut ServiceContext<'_>,
    name: &str,
    server: &BenchServer,
    clients: u32,
    exec: bool,
) -> Result<()> {
    server.settle(0)?;
    let connections = (0..clients)
        .map(|_| server.client())
        .collect::<Result<Vec<_>>>()?;
    let barrier = Barrier::new(connections.len() + 1);
    let (meter, made) = std::thread::scope(|scope| {
        let barrier = &barrier;
        let one = move |mut client: ApiClient| {
            barrier.wait();
            make(&mut client, exec)
        };
        let spawn = |client| scope.spawn(move || one(client));
        let threads: Vec<_> = connections.into_iter().map(spawn).collect();
        let meter = WorkMeter::start(server.pid());
        barrier.wait();
        let join = |t: std::thread::ScopedJoinHandle<'_, Result<MadeSandbox>>| {
            t.join().ok().context("A client's thread died").flatten()
        };
        (meter, threads.into_iter().map(join).collect::<Vec<_>>())
    });
    let meter = meter?;
    let spent = meter.stop()?;
    let mut round: BTreeMap<_, _> = spent.each(clients).into_iter().collect();
    let mut failed = false;
    let mut ids = Vec::new();
    for one in made {
        failed |= one.is_err();
        let sample = one.map(|made| {
            ids.push(made.sandbox.id);
            made.sample
        });
        context.keep(name, sample);
    }
    let ended = end_all(server, &ids)?;
    round.extend(ended);
    server.settle(0)?;
    let with_refill = meter.stop()?;
    let refill = with_refill
        .work_ns
        .zip(spent.work_ns)
        .map(|(all, own)| all - own);
    round.extend(refill.map(|ns| ("end_and_refill_each_time", ns / u64::from(clients))));
    round.insert("clients", clients.into());
    // What a guest that hangs makes the processor do is no creation's.
    anyhow::ensure!(!failed, "not all of {clients} sandboxes were made and used");
    let values: Vec<_> = round.into_iter().collect();
    context.keep(&format!("{name}-rounds"), Ok(Sample::new("", &values)));
    Ok(())
}

fn make(client: &mut ApiClient, exec: bool) -> Result<MadeSandbox> {
    let begin_ns = now_ns();
    let (sandbox, steps) = client.create("base")?;
    let created_ns = now_ns();
    let mut verified = sandbox.id.clone();
    let mut values = vec![("create_time", created_ns - begin_ns)];
    if exec {
        let status = client.exec_true(&sandbox)?;
        let over_ns = now_ns();
        verified = format!("{status} in {verified}");
        values.push(("exec_time", over_ns - created_ns));
        values.push(("first_exec_time", over_ns - begin_ns));
    }
    let mut sample = Sample::new(verified, &values);
    add_steps(&mut sample, &steps);
    Ok(MadeSandbox { sandbox, sample })
}

/// The server's own account, a value for each step; `from_pool` is whether no process was started.
pub(super) fn add_steps(sample: &mut Sample, steps: &ServerSteps) {
    for (step, ns) in steps {
        *sample
            .values
            .entry(format!("step_{step}_time"))
            .or_default() += ns;
    }
    if !steps.is_empty() {
        let spawned = steps.iter().any(|(step, _)| step == "spawn");
        sample
            .values
            .insert("from_pool".into(), u64::from(!spawned));
    }
}

/// Ends sandboxes one after the other; the longest that a caller waited for an answer, and if it
/// was one, how long until its process was gone.
fn end_all(server: &BenchServer, ids: &[String]) -> Result<Vec<(&'static str, u64)>> {
    let mut client = server.client()?;
    let machines = server.machines()?;
    let begin_ns = now_ns();
    let mut longest = 0;
    for id in ids {
        let ((), took) = timed(|| client.delete(id))?;
        longest = longest.max(took);
    }
    let mut values = vec![("delete_time", longest)];
    if let [_] = ids {
        let there = || {
            let left = machines.iter().filter(|pid| is_there(**pid)).count();
            left == machines.len()
        };
        while there() && now_ns() - begin_ns < 20_000_000_000 {
            std::thread::sleep(LOOK);
        }
        values.push(("gone_time", now_ns() - begin_ns));
    }
    Ok(values)
}

fn is_there(pid: u32) -> bool {
    std::fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false)
}

/// One creation and first command while the kernel counts what everybody but this client does.
pub(super) fn counted(
    context: &mut ServiceContext<'_>,
    name: &str,
    server: &BenchServer,
) -> Result<()> {
    server.settle(0)?;
    let mut client = server.client()?;
    let before = written(&server.machines()?);
    let counters = EventCounters::arm()?;
    let faults = host::faults()?;
    let (made, counts) = counters.of_others(|| make(&mut client, true))?;
    let faults = host::faults()? - faults;
    drop(counters);
    let after = written(&server.machines()?);
    // A machine that was not there before has written all that it has.
    let grown = after.iter().map(|(pid, kib)| {
        let had = before.get(pid).copied().unwrap_or(0);
        kib.saturating_sub(had)
    });
    let sample = Sample::new(
        made.sample.verified,
        &[
            ("vm_exits", counts.vm_exits),
            ("guest_faults", counts.guest_faults),
            ("syscalls", counts.syscalls),
            ("host_faults", faults),
            ("pages_copied", grown.sum::<u64>() / 4),
        ],
    );
    client.delete(&made.sandbox.id)?;
    context.keep(name, Ok(sample));
    Ok(())
}

/// What processes that are there have written, KiB.
fn written(pids: &[u32]) -> BTreeMap<u32, u64> {
    let one = |pid: &u32| Some((*pid, host::anonymous_kib(*pid).ok()?));
    pids.iter().filter_map(one).collect()
}
