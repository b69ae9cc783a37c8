//! Our VM process, driven through its control socket as the service does.

use super::child::{self, VmChild};
use super::{BootTimes, GuestSpec, now_ns};
use crate::agent::AgentClient;
use anyhow::{Context, Result, bail};
use control::{
    BootSource, Descriptors, DeviceSpec, DiskSpec, Event, NetDeviceSpec, Request, SaveSpec,
    SavedLink, Spawned, VmSpec, VmStats, VsockSpec,
};
use snapshot_memory::{BaseMemory, LayerFile, WorkingSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

/// A running VM process with its agent.
pub(crate) struct RunningVm {
    child: VmChild,
    control: OwnedFd,
    /// The far end of its network card.
    wire: OwnedFd,
    /// The agent.
    pub(crate) agent: AgentClient<UnixStream>,
    /// Where its start went.
    pub(crate) boot: BootTimes,
}

impl RunningVm {
    /// Boots a guest and waits for its agent.
    pub(crate) fn boot(guest: &GuestSpec) -> Result<Self> {
        let spawned_ns = now_ns();
        let (child, Spawned { control, .. }) = child::spawn(&guest.dist.join("hatchery-vmm"))?;
        let (ours, theirs) = UnixStream::pair()?;
        let (wire, guest_wire) = control::pair()?;
        configure(guest, &control, (theirs, guest_wire))?;
        expect(&control, "Configure", |e| matches!(e, Event::Configured(_)))?;
        control::send(&control, &Request::Start, &[])?;
        let (agent, ready) = AgentClient::greet(ours)?;
        let greeted_ns = now_ns();
        let first_run_ns = stats(&control)?.first_run_ns;
        let boot = BootTimes::split(spawned_ns, first_run_ns, greeted_ns, ready);
        Ok(Self {
            child,
            control,
            wire,
            agent,
            boot,
        })
    }

    /// The VM process's counters.
    pub(crate) fn stats(&self) -> Result<VmStats> {
        stats(&self.control)
    }

    /// The far end of its network card, which nobody reads unless somebody is given it.
    pub(crate) fn wire(&self) -> &OwnedFd {
        &self.wire
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

/// A saved machine that clones begin at.
pub(crate) struct SavedVm {
    memory: BaseMemory,
    /// The image under its disk, opened once for all, and the disk's size.
    base: (File, u64),
    state: OwnedFd,
    disk: OwnedFd,
    next_stream: u32,
    /// What the VM process said of the saving.
    pub(crate) report: control::Saved,
}

/// A machine that stands where another was saved, and has not run.
pub(crate) struct WarmVm {
    child: VmChild,
    control: OwnedFd,
    link: UnixStream,
    wire: OwnedFd,
    next_stream: u32,
    /// Program start to standing ready, nanoseconds.
    pub(crate) build_ns: u64,
}

impl RunningVm {
    /// Saves the machine, which must be idle, and ends it.
    pub(crate) fn save(self, guest: &GuestSpec) -> Result<SavedVm> {
        let next_stream = self.agent.next_stream();
        let files = self.save_files()?;
        let pages = u64::from(guest.memory_mib) << 20 >> 12;
        let memory =
            BaseMemory::merge_layers(pages, &[LayerFile::open(File::from(files.memory))?])?;
        Ok(SavedVm {
            base: base_image(guest)?,
            memory,
            state: files.state,
            disk: files.disk,
            next_stream,
            report: files.report,
        })
    }

    fn save_files(self) -> Result<SavedFiles> {
        let (memory, state, disk) = (scratch_file()?, scratch_file()?, scratch_file()?);
        let mut fds = Descriptors::default();
        let spec = SaveSpec {
            memory: fds.add(memory.try_clone()?),
            state: fds.add(state.try_clone()?),
            contents: vec![fds.add(disk.try_clone()?)],
            ahead: false,
        };
        control::send(&self.control, &Request::Save(spec), &fds.borrow())?;
        let report = match control::recv::<Event>(&self.control)? {
            Some((Event::Saved(report), _)) => report,
            other => bail!("Save: the VM process answered {other:?}"),
        };
        self.stop()?;
        Ok(SavedFiles {
            memory,
            state,
            disk,
            report,
        })
    }
}

/// All bytes of a file, wherever its position is.
fn whole(file: &OwnedFd) -> Result<Vec<u8>> {
    let file = File::from(file.try_clone()?);
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

struct SavedFiles {
    memory: OwnedFd,
    state: OwnedFd,
    disk: OwnedFd,
    report: control::Saved,
}

impl SavedVm {
    /// Has warm VMs begin with the pages that `trial`, a clone built to tell them, has used. Ends
    /// it.
    pub(crate) fn learn(&mut self, trial: RunningVm) -> Result<WorkingSet> {
        let trial = trial.save_files()?;
        let states = (whole(&self.state)?, whole(&trial.state)?);
        let (state, first) = self.memory.learn(&states.0, &states.1)?;
        let learned = scratch_file()?;
        File::from(learned.try_clone()?).write_all(&state)?;
        self.state = learned;
        Ok(first)
    }
}

impl WarmVm {
    /// Builds a machine that stands where `saved` was saved.
    pub(crate) fn build(guest: &GuestSpec, saved: &SavedVm) -> Result<Self> {
        Self::new(guest, saved, false)
    }

    /// The same, of which is learned what clones use first.
    pub(crate) fn trial(guest: &GuestSpec, saved: &SavedVm) -> Result<Self> {
        Self::new(guest, saved, true)
    }

    fn new(guest: &GuestSpec, saved: &SavedVm, trial: bool) -> Result<Self> {
        let mut fds = Descriptors::default();
        let boot_source = BootSource::Snapshot {
            base_memory: fds.add(saved.memory.as_fd().try_clone_to_owned()?),
            state: fds.add(saved.state.try_clone()?),
            delta_layer: None,
            trial,
        };
        let (base, size) = &saved.base;
        let (base, parent) = (base.try_clone()?, saved.disk.try_clone()?);
        let spawned_ns = now_ns();
        let (child, Spawned { control, .. }) = child::spawn(&guest.dist.join("hatchery-vmm"))?;
        let (link, theirs) = UnixStream::pair()?;
        let (wire, guest_wire) = control::pair()?;
        let disk = DiskSpec {
            base: fds.add(base),
            parent: Some(fds.add(parent)),
            layer: Some(fds.add(scratch_file()?)),
            size: *size,
        };
        let spec = VmSpec {
            sandbox_id: "bench".into(),
            vcpus: guest.vcpus,
            memory_mib: guest.memory_mib,
            boot_source,
            devices: devices((theirs, guest_wire), SavedLink::Kept, disk, &mut fds),
        };
        let configure = Request::Configure(Box::new(spec));
        control::send(&control, &configure, &fds.borrow())?;
        expect(&control, "Configure", |e| matches!(e, Event::Configured(_)))?;
        Ok(Self {
            child,
            control,
            link,
            wire,
            next_stream: saved.next_stream,
            build_ns: now_ns() - spawned_ns,
        })
    }

    /// The process to count.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the machine go as a new one; returns when its agent has taken the identity.
    pub(crate) fn claim(self, generation: u64, entropy: &[u8; 32]) -> Result<RunningVm> {
        control::send(&self.control, &Request::Start, &[])?;
        let mut agent = AgentClient::resume(self.link, self.next_stream);
        agent.set_identity(generation, entropy)?;
        Ok(RunningVm {
            child: self.child,
            control: self.control,
            wire: self.wire,
            agent,
            boot: BootTimes::default(),
        })
    }
}

/// The image that all guests share, and the size of its disk.
fn base_image(guest: &GuestSpec) -> Result<(File, u64)> {
    let base = open(guest, "base.ext4")?;
    let size = rustix::fs::seek(&base, rustix::fs::SeekFrom::End(0))?;
    Ok((base, size.next_multiple_of(4096)))
}

fn open(guest: &GuestSpec, name: &str) -> Result<File> {
    let path = guest.dist.join(name);
    File::open(&path).with_context(|| format!("Opening {}", path.display()))
}

fn configure(guest: &GuestSpec, control: &OwnedFd, sockets: (UnixStream, OwnedFd)) -> Result<()> {
    let (base, size) = base_image(guest)?;
    let mut fds = Descriptors::default();
    let disk = DiskSpec {
        base: fds.add(base),
        parent: None,
        layer: Some(fds.add(scratch_file()?)),
        size,
    };
    let spec = VmSpec {
        sandbox_id: "bench".into(),
        vcpus: guest.vcpus,
        memory_mib: guest.memory_mib,
        boot_source: BootSource::Kernel {
            kernel: fds.add(open(guest, "vmlinux")?),
            agent: fds.add(open(guest, "hatchery-agent")?),
            cmdline_extra: String::new(),
            contents: None,
        },
        devices: devices(sockets, SavedLink::Broken, disk, &mut fds),
    };
    let configure = Request::Configure(Box::new(spec));
    control::send(control, &configure, &fds.borrow()).context("Configuring")
}

/// The devices that the service gives each machine.
fn devices(
    (link, wire): (UnixStream, OwnedFd),
    connection: SavedLink,
    disk: DiskSpec,
    fds: &mut Descriptors,
) -> Vec<DeviceSpec> {
    let (link, frames) = (fds.add(link), fds.add(wire));
    vec![
        DeviceSpec::Vsock(VsockSpec { link, connection }),
        DeviceSpec::Block(disk),
        DeviceSpec::Rng,
        DeviceSpec::Net(NetDeviceSpec { frames }),
    ]
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
