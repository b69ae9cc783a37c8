//! Gives a new machine its first state: a kernel's entry, or a restore point.

use crate::demand_paging::PagerWatch;
use crate::device_list::PlacedDevice;
use crate::error::{AssembleError, chain};
use crate::initrd;
use crate::log::SandboxLog;
use crate::pages::write_whole;
use crate::parts::TrialRun;
use crate::prefault::prefault;
use crate::state_file::SavedState;
use control::{BootSource, ReceivedFds, VmSpec};
use devices::{EventLoop, Ioapic};
use machine::acpi::{self, AcpiDevice};
use machine::boot::{self, BootSpec};
use machine::{Backing, CpuContract, HugePages, MemorySpec, Vcpu, Vm, layout};
use snapshot_memory::{LayerFile, Pagemap, TouchTracking};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The hardware id by which Linux finds a virtio-mmio window.
const VIRTIO_MMIO: &str = "LNRO0005";
/// Most bytes of an agent.
const MAX_AGENT: u64 = 16 << 20;

/// The command line of every guest's kernel:
/// - only what goes wrong is printed (said first, so that it holds when the console appears), and
///   the boot console is the only one: no driver takes it over;
/// - a panic resets at once, and a reset is the keyboard controller's;
/// - no search for buses and timers that do not exist;
/// - no watchdog over the TSC: it wakes a guest twice a second, for ever, to look after what is the
///   host's to look after.
const CMDLINE: &str = "loglevel=4 earlycon=uart8250,io,0x3f8 keep_bootcon panic=-1 reboot=k \
                       pci=off nomodule no_timer_check random.trust_cpu=on tsc=nowatchdog";

/// What small guests get besides: hash tables and slabs of a size for one tenant. The kernel fills
/// its tables with zeros while it boots, so every entry is memory that each sandbox has of its own.
const SMALL_GUEST: &str = " dhash_entries=8192 ihash_entries=4096 thash_entries=1024 \
                           uhash_entries=256 slub_min_objects=4";

/// Guests with more memory, in MiB, keep the kernel's own sizes.
const SMALL_GUEST_MIB: u32 = 2048;

/// The memory a machine is to have.
pub(crate) fn memory(spec: &VmSpec, fds: &mut ReceivedFds) -> Result<MemorySpec, AssembleError> {
    let bytes = u64::from(spec.memory_mib) << 20;
    let backing = match spec.boot_source {
        BootSource::Kernel { .. } | BootSource::DemandPaged { .. } => Backing::Anonymous,
        BootSource::Snapshot { base_memory, .. } => {
            Backing::BaseMemory(sealed(fds.take(base_memory)?, bytes)?)
        }
    };
    Ok(MemorySpec {
        bytes,
        backing,
        huge_pages: HugePages::Never,
    })
}

/// A machine whose parts are all there and have no state yet.
pub(crate) struct NewMachine<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) processors: &'a [Vcpu],
    pub(crate) placed: &'a [PlacedDevice],
    pub(crate) ioapic: &'a Ioapic,
    pub(crate) pagemap: &'a Pagemap,
    pub(crate) cpu: &'a CpuContract,
    pub(crate) event_loop: &'a mut EventLoop,
}

impl NewMachine<'_> {
    /// Gives it the state that the spec asks for; that state, if it is a restore point.
    pub(crate) fn load(
        mut self,
        spec: &VmSpec,
        fds: &mut ReceivedFds,
        watch: PagerWatch<'_>,
    ) -> Result<Option<SavedState>, AssembleError> {
        match &spec.boot_source {
            BootSource::Kernel {
                kernel,
                agent,
                cmdline_extra,
                contents,
            } => {
                let programs = (fds.take(*kernel)?, fds.take(*agent)?);
                self.boot(spec, cmdline_extra, programs)?;
                if let Some(contents) = contents {
                    let of = File::from(fds.take(*contents)?);
                    let state = SavedState::read(&of, self.vm.memory().pages())?;
                    self.event_loop.load_contents(&state.devices)?;
                }
                Ok(None)
            }
            BootSource::Snapshot {
                state, delta_layer, ..
            } => {
                let state = self.read(&File::from(fds.take(*state)?))?;
                let layer = delta_layer.map(|fd| fds.take(fd)).transpose()?;
                if let Some(layer) = layer.map(File::from).map(LayerFile::open).transpose()? {
                    layer.apply(|offset, bytes| write_whole(self.vm, offset, bytes))?;
                }
                self.restore(&state)?;
                prefault(self.vm, self.processors, self.pagemap, &state.working_set)?;
                Ok(Some(state))
            }
            BootSource::DemandPaged {
                pager,
                userfaultfd,
                state,
            } => {
                let state = self.read(&File::from(fds.take(*state)?))?;
                let sockets = (fds.take(*pager)?, fds.take(*userfaultfd)?);
                // Nothing before this has touched guest memory.
                let machine = (self.vm, self.processors);
                let known = (&*state.working_set.touched, self.pagemap);
                crate::demand_paging::start(sockets, machine, known, watch)?;
                self.restore(&state)?;
                Ok(Some(state))
            }
        }
    }

    /// A state that can be resumed on this host.
    fn read(&self, file: &File) -> Result<SavedState, AssembleError> {
        let state = SavedState::read(file, self.vm.memory().pages())?;
        state.cpu.fits(self.cpu)?;
        Ok(state)
    }

    /// Loads all but memory, which is as it was saved: processors, clock, devices.
    fn restore(&mut self, state: &SavedState) -> Result<(), AssembleError> {
        self.vm.load(self.processors, &state.vm, &state.vcpus)?;
        self.ioapic.load(&state.ioapic)?;
        self.event_loop.load(&state.devices)?;
        Ok(())
    }

    /// What a trial needs before anything touches guest memory.
    pub(crate) fn trial(&self, spec: &VmSpec, log: &SandboxLog) -> Option<TrialRun> {
        let BootSource::Snapshot { trial: true, .. } = spec.boot_source else {
            return None;
        };
        let exact = TouchTracking::begin(&self.vm.memory().host_ranges());
        let inexact = |error| {
            let text = format!("more than is used is learned: {}", chain(&error));
            log.line("warn", &text);
        };
        Some(TrialRun {
            _exact: exact.map_err(inexact).ok(),
        })
    }

    /// Puts kernel, agent and tables into guest memory, and the first vCPU at the kernel's entry.
    fn boot(
        &self,
        spec: &VmSpec,
        cmdline_extra: &str,
        (kernel, agent): (OwnedFd, OwnedFd),
    ) -> Result<(), AssembleError> {
        let agent = read_agent(File::from(agent))?;
        let tables = match spec.memory_mib {
            0..=SMALL_GUEST_MIB => SMALL_GUEST,
            _ => "",
        };
        let cmdline = format!("{CMDLINE}{tables} {cmdline_extra}");
        let boot = BootSpec {
            cmdline: cmdline.trim_end(),
            initrd: &initrd::build(&agent),
        };
        let ram = self.vm.memory().ram();
        let loaded = boot::load_linux(self.vm.memory(), &mut File::from(kernel), &boot)?;
        let devices: Vec<_> = self
            .placed
            .iter()
            .map(|p| AcpiDevice {
                hid: VIRTIO_MMIO,
                base: p.base,
                size: layout::MMIO_WINDOW,
                gsi: p.gsi,
            })
            .collect();
        acpi::write_tables(ram, spec.vcpus, &devices)?;
        if let Some(first) = self.processors.first() {
            first.enter_at(&loaded.entry)?;
        }
        Ok(())
    }
}

/// Base memory: a file of the machine's size, and sealed, so that nobody who still has it can
/// change what clones have mapped, or cut it, which would end them by a bus error.
fn sealed(fd: OwnedFd, bytes: u64) -> Result<Arc<File>, AssembleError> {
    use rustix::fs::{SealFlags, fcntl_get_seals};
    let refuse = |what: String| AssembleError::BaseMemory { what };
    let file = File::from(fd);
    let size = file.metadata().map_err(|e| refuse(e.to_string()))?.len();
    if size != bytes {
        return Err(refuse(format!("has {size} bytes, {bytes} are asked")));
    }
    let seals = fcntl_get_seals(&file).map_err(|e| refuse(format!("cannot be sealed: {e}")))?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(refuse(format!("is not sealed against change: {seals:?}")));
    }
    Ok(Arc::new(file))
}

fn read_agent(file: File) -> Result<Vec<u8>, AssembleError> {
    let mut agent = Vec::new();
    file.take(MAX_AGENT + 1)
        .read_to_end(&mut agent)
        .map_err(AssembleError::Agent)?;
    if agent.len() as u64 > MAX_AGENT {
        return Err(AssembleError::AgentTooLarge(MAX_AGENT));
    }
    Ok(agent)
}
