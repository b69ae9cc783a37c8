//! Our VM process, driven through its control socket as the service does.

use super::{Boot, Guest, now_ns};
use crate::agent::Agent;
use anyhow::{Context, Result, bail};
use control::{DiskSpec, Event, Origin, Request, VmSpec, VmStats};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;

/// A running VM process with its agent.
pub(crate) struct Vm {
    child: Child,
    control: OwnedFd,
    /// The agent.
    pub(crate) agent: Agent<UnixStream>,
    /// Where its start went.
    pub(crate) boot: Boot,
}

impl Vm {
    /// Boots a guest and waits for its agent.
    pub(crate) fn boot(guest: &Guest) -> Result<Self> {
        let spawned_ns = now_ns();
        let (child, control) = control::spawn(guest.dist.join("hatchery-vmm"), &[])
            .context("Starting hatchery-vmm")?;
        let (ours, theirs) = UnixStream::pair()?;
        configure(guest, &control, theirs)?;
        expect(&control, "Configure", |e| matches!(e, Event::Configured(_)))?;
        control::send(&control, &Request::Start, &[])?;
        expect(&control, "Start", |e| matches!(e, Event::Started))?;
        let (agent, ready) = Agent::greet(ours)?;
        let greeted_ns = now_ns();
        let first_run_ns = stats(&control)?.first_run_ns;
        let boot = Boot::split(spawned_ns, first_run_ns, greeted_ns, ready);
        Ok(Self {
            child,
            control,
            agent,
            boot,
        })
    }

    /// The VM process's counters.
    pub(crate) fn stats(&self) -> Result<VmStats> {
        stats(&self.control)
    }

    /// The process to count.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the machine and its process.
    pub(crate) fn stop(mut self) -> Result<()> {
        control::send(&self.control, &Request::Stop, &[])?;
        expect(&self.control, "Stop", |e| matches!(e, Event::Exited(_)))?;
        self.child.wait()?;
        Ok(())
    }
}

fn configure(guest: &Guest, control: &OwnedFd, link: UnixStream) -> Result<()> {
    let open = |name: &str| {
        let path = guest.dist.join(name);
        File::open(&path).with_context(|| format!("Opening {}", path.display()))
    };
    let base = open("base.ext4")?;
    let size = rustix::fs::seek(&base, rustix::fs::SeekFrom::End(0))?;
    let layer = scratch_file()?;
    let fds = [
        open("vmlinux")?.into(),
        open("hatchery-agent")?.into(),
        OwnedFd::from(link),
    ];
    let [kernel, agent, link]: [OwnedFd; 3] = fds;
    let spec = VmSpec {
        sandbox_id: "bench".into(),
        vcpus: guest.vcpus,
        memory_mib: guest.memory_mib,
        origin: Origin::Boot {
            kernel: 0,
            agent: 1,
            cmdline_extra: String::new(),
        },
        link: 2,
        disks: vec![DiskSpec {
            base: 3,
            parent: None,
            layer: Some(4),
            size: size.next_multiple_of(4096),
        }],
    };
    let fds = [
        kernel.as_fd(),
        agent.as_fd(),
        link.as_fd(),
        base.as_fd(),
        layer.as_fd(),
    ];
    control::send(control, &Request::Configure(Box::new(spec)), &fds).context("Configuring")
}

/// An unlinked file for a private disk layer.
fn scratch_file() -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR).context("Making a scratch file")
}

fn stats(control: &OwnedFd) -> Result<VmStats> {
    control::send(control, &Request::Stats, &[])?;
    match control::recv::<Event>(control)? {
        Some((Event::Stats(stats), _)) => Ok(stats),
        other => bail!("Asked for counters, got {other:?}"),
    }
}

fn expect(control: &OwnedFd, asked: &str, right: impl Fn(&Event) -> bool) -> Result<()> {
    match control::recv::<Event>(control)? {
        Some((event, _)) if right(&event) => Ok(()),
        other => bail!("{asked}: the VM process answered {other:?}"),
    }
}
