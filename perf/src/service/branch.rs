//! Sandboxes with something to lose: forked, reset, stored.

use super::client::{ApiClient, ClientSandbox};
use super::context::ServiceContext;
use super::create::add_steps;
use super::meter::WorkMeter;
use super::server::BenchServer;
use crate::engine::{now_ns, timed};
use crate::host;
use crate::record::Sample;
use anyhow::{Context as _, Result, ensure};

/// What a guest writes, and where: memory that no disk stands behind.
const FILE: &str = "/dev/shm/bench";

/// A sandbox of the template, and its machine's process.
struct WrittenSandbox {
    sandbox: ClientSandbox,
    pid: u32,
    /// What the creation took, from a full pool.
    create_ns: u64,
}

/// A sandbox that has written so much.
fn subject(server: &BenchServer, client: &mut ApiClient, dirty_mib: u32) -> Result<WrittenSandbox> {
    server.settle(0)?;
    // The pool's only warm VM becomes the sandbox.
    let warm_vms = server.machines()?;
    let [pid] = warm_vms[..] else {
        anyhow::bail!("{} machines stand ready, not one", warm_vms.len());
    };
    let ((sandbox, _), create_ns) = timed(|| client.create("base"))?;
    client.exec_true(&sandbox)?;
    if dirty_mib > 0 {
        let script = format!("yes | head -c {dirty_mib}M > {FILE}; wc -c < {FILE}");
        let ran = client.exec(&sandbox, &["/bin/bash", "-c", &script])?;
        let expected = (u64::from(dirty_mib) << 20).to_string();
        ensure!(ran.stdout.trim() == expected, "the guest wrote {ran:?}");
    }
    server.settle(1)?;
    Ok(WrittenSandbox {
        sandbox,
        pid,
        create_ns,
    })
}

/// How much a guest finds of what it wrote.
fn written(client: &mut ApiClient, sandbox: &ClientSandbox) -> Result<String> {
    let script = format!("test ! -e {FILE} || wc -c < {FILE}");
    let ran = client.exec(sandbox, &["/bin/bash", "-c", &script])?;
    ensure!(ran.status == "exit status 0", "looking for {FILE}: {ran:?}");
    Ok(ran.stdout.trim().into())
}

fn expected(dirty_mib: u32) -> String {
    match dirty_mib {
        0 => String::new(),
        mib => (u64::from(mib) << 20).to_string(),
    }
}

/// A sandbox is forked; each child must have what the parent had.
pub(super) fn fork(
    context: &mut ServiceContext<'_>,
    name: &str,
    server: &BenchServer,
    count: u32,
    dirty_mib: u32,
) -> Result<()> {
    let mut client = server.patient_client()?;
    let parent = subject(server, &mut client, dirty_mib)?;
    let dirty = host::private_kib(parent.pid)? / 4;
    let meter = WorkMeter::start(server.pid())?;
    let begin_ns = now_ns();
    let (children, steps, still) = client.fork(&parent.sandbox.id, count)?;
    let forked_ns = now_ns();
    let status = client.exec_true(&children[0])?;
    let over_ns = now_ns();
    let spent = meter.stop()?;
    client.exec_true(&parent.sandbox)?;
    for child in &children {
        let has = written(&mut client, child)?;
        ensure!(
            has == expected(dirty_mib),
            "a child has {has:?} bytes of its parent's file"
        );
    }
    let mut sample = Sample::new(
        format!("{status}; {} children have what it wrote", children.len()),
        &[
            ("fork_time", forked_ns - begin_ns),
            ("first_exec_time", over_ns - begin_ns),
            ("dirty_pages", dirty),
            ("paused_pages", still),
            ("paused_pages_permille", still * 1000 / dirty.max(1)),
        ],
    );
    sample.add(&spent.each(count));
    add_steps(&mut sample, &steps);
    sample.values.remove("from_pool");
    for one in children.iter().chain([&parent.sandbox]) {
        client.delete(&one.id)?;
    }
    context.keep(name, Ok(sample));
    Ok(())
}

/// A sandbox goes back to its first restore point; what it had written must be gone.
pub(super) fn reset(
    context: &mut ServiceContext<'_>,
    name: &str,
    server: &BenchServer,
    dirty_mib: u32,
) -> Result<()> {
    /// What each dirty page may cost.
    const EACH_PAGE: u64 = 500;
    let mut client = server.patient_client()?;
    let subject = subject(server, &mut client, dirty_mib)?;
    let dirty = host::private_kib(subject.pid)? / 4;
    let meter = WorkMeter::start(server.pid())?;
    let begin_ns = now_ns();
    let steps = client.reset(&subject.sandbox.id)?;
    let reset_ns = now_ns() - begin_ns;
    let status = client.exec_true(&subject.sandbox)?;
    let over_ns = now_ns() - begin_ns;
    let spent = meter.stop()?;
    let has = written(&mut client, &subject.sandbox)?;
    ensure!(has.is_empty(), "after a reset there are {has} bytes");
    let budget = subject.create_ns / 20 + EACH_PAGE * dirty;
    let mut sample = Sample::new(
        format!("{status}; what it wrote is gone"),
        &[
            ("reset_time", reset_ns),
            ("first_exec_time", over_ns),
            ("dirty_pages", dirty),
            ("create_time", subject.create_ns),
        ],
    );
    if context.args.icount {
        let permille = reset_ns * 1000 / budget.max(1);
        sample.add(&[("of_budget_permille", permille)]);
    }
    sample.add(&spent.each(1));
    add_steps(&mut sample, &steps);
    client.delete(&subject.sandbox.id)?;
    context.keep(name, Ok(sample));
    Ok(())
}

/// A sandbox is stored and runs on; one that is made of it must have what it had.
pub(super) fn snapshot(
    context: &mut ServiceContext<'_>,
    name: &str,
    server: &BenchServer,
    dirty_mib: u32,
) -> Result<()> {
    let mut client = server.patient_client()?;
    let subject = subject(server, &mut client, dirty_mib)?;
    let dirty = host::private_kib(subject.pid)? / 4;
    let meter = WorkMeter::start(server.pid())?;
    let ((stored, steps), took_ns) = timed(|| client.snapshot(&subject.sandbox.id))?;
    let spent = meter.stop()?;
    client.exec_true(&subject.sandbox)?;
    let begin_ns = now_ns();
    let (copy, _) = client.create(&stored)?;
    let status = client.exec_true(&copy)?;
    let from_ns = now_ns() - begin_ns;
    let has = written(&mut client, &copy)?;
    ensure!(
        has == expected(dirty_mib),
        "a copy has {has:?} bytes of the file that was stored"
    );
    let mut sample = Sample::new(
        format!("{status}; a copy has what it wrote"),
        &[
            ("snapshot_time", took_ns),
            ("create_from_time", from_ns),
            ("dirty_pages", dirty),
        ],
    );
    sample.add(&spent.each(1));
    add_steps(&mut sample, &steps);
    sample.values.remove("from_pool");
    client.delete(&copy.id)?;
    client.delete(&subject.sandbox.id)?;
    client.delete_snapshot(&stored)?;
    context.keep(name, Ok(sample));
    Ok(())
}

/// A fresh sandbox touches memory that it has not touched before.
pub(super) fn touch(
    context: &mut ServiceContext<'_>,
    name: &str,
    server: &BenchServer,
    mib: u32,
) -> Result<()> {
    let mut client = server.patient_client()?;
    let subject = subject(server, &mut client, 0)?;
    let before = host::private_kib(subject.pid)?;
    // One read into a buffer of that size: the guest's kernel clears it, page by page.
    let (from, size) = ("if=/dev/zero", format!("bs={mib}M"));
    let argv = [
        "/bin/dd",
        from,
        "of=/dev/null",
        &size,
        "count=1",
        "iflag=fullblock",
    ];
    let meter = WorkMeter::start(server.pid())?;
    let (ran, touch_ns) = timed(|| client.exec(&subject.sandbox, &argv))?;
    let spent = meter.stop()?;
    let bytes = (u64::from(mib) << 20).to_string();
    let copied = ran.stderr.lines().last().context("dd says nothing")?;
    ensure!(copied.starts_with(&bytes), "dd says {copied:?}");
    let kib = host::private_kib(subject.pid)?.saturating_sub(before);
    let mut sample = Sample::new(
        format!("{bytes} bytes"),
        &[("touch_time", touch_ns), ("pages_taken", kib / 4)],
    );
    sample.add(&spent.each(1));
    client.delete(&subject.sandbox.id)?;
    context.keep(name, Ok(sample));
    Ok(())
}
