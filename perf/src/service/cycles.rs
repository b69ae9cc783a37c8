//! Whole lives of sandboxes, and whether anything is left of them.

use super::client::ApiClient;
use super::context::ServiceContext;
use super::server::BenchServer;
use crate::engine::now_ns;
use crate::record::Sample;
use crate::{host, processes};
use anyhow::{Context as _, Result, ensure};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long ended machines' memory gets to come back.
const SETTLE: Duration = Duration::from_secs(3);
/// Lives before the first look: what is kept for ever is there after them.
const FIRST: u32 = 20;
/// So many lives that fail, of a thousand, are the emulator's; more end the scenario.
const MAX_FAILED_PERMILLE: u32 = 50;

/// What is in use.
#[derive(Clone, Copy, Debug)]
struct ServerUsage {
    processes: u64,
    descriptors: u64,
    available_kib: u64,
    server_kib: u64,
    disk_kib: u64,
}

impl ServerUsage {
    fn now(server: &BenchServer) -> Result<Self> {
        server.settle(0)?;
        std::thread::sleep(SETTLE);
        Ok(Self {
            processes: u64::try_from(processes::descendants(server.pid())?.len())?,
            descriptors: processes::descriptors(server.pid())?,
            available_kib: host::available_kib()?,
            server_kib: host::private_kib(server.pid())?,
            disk_kib: host::folder_kib(&server.data())?,
        })
    }
}

/// So many lives by so many clients, a sample each, and one of what is left in `<name>-growth`.
pub(super) fn cycles(
    context: &mut ServiceContext<'_>,
    name: &str,
    server: &BenchServer,
    count: u32,
    clients: u32,
) -> Result<()> {
    let mut client = server.client()?;
    (0..FIRST).try_for_each(|_| life(&mut client).map(drop))?;
    let before = ServerUsage::now(server)?;
    let began_ns = now_ns();
    let samples = lives(server, count, clients)?;
    let took_ns = now_ns() - began_ns;
    let failed = samples.iter().filter(|s| s.is_err()).count();
    for sample in samples {
        context.keep(name, sample);
    }
    let after = ServerUsage::now(server)?;
    let good = u64::from(count) - u64::try_from(failed)?;
    let mut sample = Sample::new(
        format!("{good} times exit status 0"),
        &[
            ("cycles", count.into()),
            ("failed", u64::try_from(failed)?),
            ("each_time", took_ns / u64::from(count.max(1))),
        ],
    );
    sample.add(&host::growth([
        ("processes_left", before.processes, after.processes),
        ("descriptors_left", before.descriptors, after.descriptors),
        ("memory_lost_kib", after.available_kib, before.available_kib),
        ("server_grown_kib", before.server_kib, after.server_kib),
        ("disk_lost_kib", before.disk_kib, after.disk_kib),
    ]));
    context.keep(&format!("{name}-growth"), Ok(sample));
    let failed = u32::try_from(failed)?;
    ensure!(
        failed * 1000 <= count * MAX_FAILED_PERMILLE,
        "{failed} of {count} lives failed"
    );
    Ok(())
}

fn lives(server: &BenchServer, count: u32, clients: u32) -> Result<Vec<Result<Sample>>> {
    let next = AtomicU32::new(0);
    let samples = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        let mut client = server.client()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            if number % 100 == 99 {
                eprintln!("  {} of {count} lives", number + 1);
            }
            let sample = life(&mut client);
            if sample.is_err() {
                client = server.client()?;
            }
            let mut samples = samples.lock().ok().context("A client's thread died")?;
            samples.push(sample);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            t.join().ok().context("A client's thread died").flatten()
        };
        threads.into_iter().try_for_each(join)
    })?;
    samples.into_inner().ok().context("A client's thread died")
}

/// Made, used once, killed.
fn life(client: &mut ApiClient) -> Result<Sample> {
    let begin_ns = now_ns();
    let (sandbox, _) = client.create("base")?;
    let used = client.exec_true(&sandbox);
    let used_ns = now_ns();
    client.delete(&sandbox.id)?;
    let over_ns = now_ns();
    let status = used?;
    Ok(Sample::new(
        format!("{status} in {}", sandbox.id),
        &[
            ("first_exec_time", used_ns - begin_ns),
            ("delete_time", over_ns - used_ns),
        ],
    ))
}
