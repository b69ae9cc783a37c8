//! The peer that is at hand everywhere: QEMU's `microvm` machine with KVM and vhost-vsock, booting
//! the same kernel, agent and disk.

use super::{Boot, Guest, now_ns};
use crate::agent::Agent;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// The guest's address; one such machine runs at a time.
const GUEST_CID: u32 = 4242;

/// A running QEMU with its agent.
pub(crate) struct Vm {
    child: Child,
    /// The agent.
    pub(crate) agent: Agent<VsockStream>,
    /// Where its start went; QEMU does not tell when it enters the guest, so the program's own
    /// start is counted as the kernel's.
    pub(crate) boot: Boot,
}

impl Vm {
    /// Boots a guest by the QEMU at `program` and waits for its agent.
    pub(crate) fn boot(guest: &Guest, program: &Path) -> Result<Self> {
        let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, wire::AGENT_PORT)
            .context("Listening on vsock; is the vhost_vsock module loaded?")?;
        let initrd = guest.dist.join("initrd.cpio");
        let spawned_ns = now_ns();
        let mut child = command(guest, program, &initrd)
            .spawn()
            .context("Starting QEMU")?;
        let stream = match accept(&listener, &mut child) {
            Ok(stream) => stream,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let (agent, ready) = Agent::greet(stream)?;
        let boot = Boot::split(spawned_ns, spawned_ns, now_ns(), ready);
        Ok(Self { child, agent, boot })
    }

    /// The process to count.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the machine.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

fn command(guest: &Guest, program: &Path, initrd: &Path) -> Command {
    let mut qemu = Command::new(program);
    let drive = guest.dist.join("base.ext4");
    qemu.args([
        "-M",
        "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off",
    ])
    .args([
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-nodefaults",
        "-no-user-config",
        "-nographic",
    ])
    .args(["-no-reboot", "-smp", &guest.vcpus.to_string()])
    .args(["-m", &format!("{}M", guest.memory_mib)])
    .arg("-kernel")
    .arg(guest.dist.join("vmlinux"))
    .arg("-initrd")
    .arg(initrd)
    .args(["-append", "quiet panic=-1 rdinit=/init"])
    .arg("-drive")
    .arg(format!(
        "id=root,file={},format=raw,if=none,snapshot=on",
        drive.display()
    ))
    .args(["-device", "virtio-blk-device,drive=root"])
    .args(["-device", "virtio-rng-device"])
    .arg("-device")
    .arg(format!("vhost-vsock-device,guest-cid={GUEST_CID}"))
    .stdin(Stdio::null())
    .stdout(Stdio::null());
    qemu
}

/// Waits for the agent's connection, but not for a QEMU that has ended.
fn accept(listener: &VsockListener, child: &mut Child) -> Result<VsockStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).context("Accepting the agent's connection"),
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended before the agent came: {status}");
        }
        let timeout = rustix::time::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let mut poll = [rustix::event::PollFd::new(
            listener,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, Some(&timeout))?;
    }
}
