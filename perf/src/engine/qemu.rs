//! The peer that is at hand everywhere: QEMU's `microvm` machine with KVM and vhost-vsock, with the
//! same kernel, agent and disk.
//!
//! It begins at a restore point by an incoming migration whose memory is a file that is mapped
//! privately: the way that templates of other projects take with it, and its fastest.

use super::peer::{CMDLINE, PATIENCE, PeerEngine, PeerProcess, PeerVm, mac};
use super::qmp::QmpClient;
use super::{GuestSpec, now_ns};
use crate::agent::AgentClient;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vsock::{VMADDR_CID_ANY, VsockListener};

/// The guest's address; one such machine runs at a time.
const GUEST_CID: u32 = 4242;

/// A QEMU program.
#[derive(Clone, Debug)]
pub(crate) struct QemuEngine {
    /// The program.
    pub(crate) program: PathBuf,
}

fn listen() -> Result<VsockListener> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, wire::AGENT_PORT)
        .context("Listening on vsock; is the vhost_vsock module loaded?")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl QemuEngine {
    fn command(&self, guest: &GuestSpec, place: &Path, shared: bool) -> Command {
        let mut qemu = Command::new(&self.program);
        let drive = guest.dist.join("base.ext4");
        let machine = "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=off,memory-backend=mem";
        let on = if shared { "on" } else { "off" };
        qemu.args(["-M", machine, "-accel", "kvm", "-cpu", "host"])
            .args(["-nodefaults", "-no-user-config", "-nographic"])
            .args(["-no-reboot", "-smp", &guest.vcpus.to_string()])
            .args(["-m", &format!("{}M", guest.memory_mib)])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=mem,size={}M,mem-path={},share={on}",
                guest.memory_mib,
                place.join("memory").display()
            ))
            .arg("-qmp")
            .arg(format!(
                "unix:{},server=on,wait=off",
                place.join("api").display()
            ))
            .arg("-kernel")
            .arg(guest.dist.join("vmlinux"))
            .arg("-initrd")
            .arg(guest.dist.join("initrd.cpio"))
            .args(["-append", CMDLINE])
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
        if guest.network {
            // The gateway that the agent knows stands for the host; the name server is not asked.
            let gateway = control::GATEWAY_IPV4;
            let user = format!("user,id=net,net=169.254.0.0/24,host={gateway},dns=169.254.0.3");
            qemu.args(["-netdev", &user]).arg("-device").arg(format!(
                "virtio-net-device,netdev=net,mac={}",
                mac(control::GUEST_MAC)
            ));
        }
        qemu
    }

    fn spawn(&self, command: &mut Command) -> Result<PeerProcess> {
        let child = command.spawn();
        let child = child.with_context(|| format!("Starting {}", self.program.display()))?;
        Ok(PeerProcess(child))
    }
}

/// Waits for the agent, and puts together what is known.
fn machine(
    mut process: PeerProcess,
    listener: &VsockListener,
    [asked_ns, answers_ns, loaded_ns]: [u64; 3],
) -> Result<PeerVm> {
    let stream = process.accept(listener, || listener.accept().map(|(stream, _)| stream))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (agent, ready) = AgentClient::greet(Box::new(stream) as Box<dyn super::peer::GuestStream>)?;
    Ok(PeerVm {
        process,
        agent,
        ready,
        times: [asked_ns, answers_ns, loaded_ns, now_ns()],
    })
}

impl PeerEngine for QemuEngine {
    fn name(&self) -> &'static str {
        "qemu microvm + vhost-vsock"
    }

    fn boot(&self, guest: &GuestSpec, place: &Path) -> Result<PeerVm> {
        let listener = listen()?;
        let asked_ns = now_ns();
        let process = self.spawn(&mut self.command(guest, place, true))?;
        // It does not tell when it enters the guest, so all of it is counted as the kernel's.
        machine(process, &listener, [asked_ns; 3])
    }

    fn save(&self, machine: PeerVm, place: &Path) -> Result<()> {
        let mut process = machine.process;
        let mut qmp = QmpClient::new(process.connect(&place.join("api"))?)?;
        qmp.execute("stop", &json!({}))?;
        let state = place.join("state");
        qmp.migrate("migrate", &format!("exec:cat > {}", state.display()))
    }

    fn restore(&self, guest: &GuestSpec, place: &Path) -> Result<PeerVm> {
        let listener = listen()?;
        super::peer::remove(&place.join("api"))?;
        let asked_ns = now_ns();
        let mut command = self.command(guest, place, false);
        let mut process = self.spawn(command.args(["-incoming", "defer"]))?;
        let mut qmp = QmpClient::new(process.connect(&place.join("api"))?)?;
        let answers_ns = now_ns();
        let state = place.join("state");
        qmp.migrate("migrate-incoming", &format!("exec:cat {}", state.display()))?;
        qmp.execute("cont", &json!({}))?;
        machine(process, &listener, [asked_ns, answers_ns, now_ns()])
    }
}
