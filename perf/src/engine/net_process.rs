//! Our network process, as the service starts it when a machine's first frame comes.

use super::{GuestSpec, now_ns};
use anyhow::{Context, Result, bail};
use control::{NetEvent, NetPolicy, NetRequest, NetSpec};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

/// A user whom nobody else is here.
const USER: &str = "1946157056";

/// A process of `hatchery-net`; killed when dropped.
pub(crate) struct NetProcess {
    child: Child,
    control: OwnedFd,
    /// From its start to its being ready, nanoseconds.
    pub(crate) ready_ns: u64,
}

impl NetProcess {
    /// Starts one that serves the frames of `wire`, and waits until it does. The guest may reach
    /// `opened`, though it is this machine's.
    pub(crate) fn start(guest: &GuestSpec, wire: &OwnedFd, opened: SocketAddr) -> Result<Self> {
        let program = guest.dist.join("hatchery-net");
        let started_ns = now_ns();
        let (control, theirs) = control::pair()?;
        let child = Command::new(&program)
            .args(["--jail", "required", "--uid", USER, "--gid", USER])
            .env_clear()
            .stdin(Stdio::from(wire.try_clone()?))
            .stdout(Stdio::from(theirs))
            .spawn()
            .with_context(|| format!("Starting {}", program.display()))?;
        let mut process = Self {
            child,
            control,
            ready_ns: 0,
        };
        let policy = NetPolicy {
            openings: vec![opened],
            ..NetPolicy::default()
        };
        let spec = NetSpec {
            policy,
            host_addresses: vec![opened.ip()],
            ipv6: None,
            ..NetSpec::standard("bench")
        };
        let configure = NetRequest::Configure(Box::new(spec));
        control::send(&process.control, &configure, &[])?;
        match control::recv::<NetEvent>(&process.control)? {
            Some((NetEvent::Ready, _)) => {}
            other => bail!("A network process that was configured answered {other:?}"),
        }
        process.ready_ns = now_ns() - started_ns;
        Ok(process)
    }

    /// The process to look at.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for NetProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
