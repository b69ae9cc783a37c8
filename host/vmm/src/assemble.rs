//! Builds a machine with its devices from a [`VmSpec`]: the only place that knows them all.
//!
//! The order is that of the KVM calls that stay cheap: memory slots, irqchip and vCPUs in one step
//! ([`Vm::new`]), then interrupt lines and doorbells, then everything in guest memory, and vCPU
//! threads last, parked.

use crate::confine;
use crate::ending::{Ending, Reason};
use crate::initrd;
use crate::log::Log;
use crate::stats::Accounts;
use crate::supervise::chain;
use crate::wiring::{ConsolePorts, IoapicWindow, Line, Reset, Routes, Window};
use control::{DiskSpec, MAX_CONSOLE_TAIL, Origin, VmSpec};
use devices::{
    BlockConfig, BlockMetrics, Console, EventLoop, Ioapic, LoopError, LoopMetrics, Mmio, ResetPort,
    VsockConfig, VsockMetrics,
};
use jail::{Filter, JailError};
use machine::acpi::{self, AcpiDevice};
use machine::boot::{self, BootSpec};
use machine::{
    Backing, Bus, BusDevice, Exit, HugePages, Kvm, MachineSpec, MemorySpec, Vcpu, VcpuThread, Vm,
    Wiring, layout,
};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The guest's context id on its socket device; it need not differ between machines.
const GUEST_CID: u32 = 3;
/// The port on which the agent calls the service.
const AGENT_PORT: u32 = 1024;
/// The hardware id by which Linux finds a virtio-mmio window.
const VIRTIO_MMIO: &str = "LNRO0005";
/// Most bytes of an agent.
const MAX_AGENT: u64 = 16 << 20;

/// What every guest's kernel is told:
/// - only what goes wrong is printed (said first, so that it holds when the console appears), and
///   the boot console is the only one: no driver takes it over;
/// - a panic resets at once, and a reset is the keyboard controller's;
/// - no search for buses and timers that do not exist.
const CMDLINE: &str = "loglevel=4 earlycon=uart8250,io,0x3f8 keep_bootcon panic=-1 reboot=k \
                       pci=off nomodule no_timer_check random.trust_cpu=on";

/// What small guests get besides: hash tables and slabs of a size for one tenant. The kernel fills
/// its tables with zeros while it boots, so every entry is memory that each sandbox has of its own.
const SMALL_GUEST: &str = " dhash_entries=8192 ihash_entries=4096 thash_entries=1024 \
                           uhash_entries=256 slub_min_objects=4";

/// Guests with more memory, in MiB, keep the kernel's own sizes.
const SMALL_GUEST_MIB: u32 = 2048;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssembleError {
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Loop(#[from] LoopError),
    #[error("The agent could not be read")]
    Agent(#[source] std::io::Error),
    #[error("The agent has over {MAX_AGENT} bytes")]
    AgentTooLarge,
    #[error("Descriptor {0} is missing")]
    Descriptor(u8),
    #[error("{0} devices are over {max}", max = layout::MAX_MMIO_DEVICES)]
    TooManyDevices(u32),
    #[error("An eventfd could not be had")]
    EventFd(#[source] std::io::Error),
    #[error("/proc/self/smaps does not open")]
    Accounts(#[source] std::io::Error),
    #[error("The process could not be confined")]
    Jail(#[from] JailError),
}

type Result<T> = std::result::Result<T, AssembleError>;

/// A machine that is ready to run.
pub(crate) struct Machine {
    /// The devices' event loop, until it is taken to run on the thread that assembled it.
    pub(crate) event_loop: Option<EventLoop>,
    pub(crate) vcpus: Vec<VcpuThread>,
    #[expect(
        dead_code,
        reason = "keeps the VM and its memory as long as anything uses them"
    )]
    pub(crate) vm: Vm,
    pub(crate) console: Arc<Console>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) metrics: Metrics,
    pub(crate) accounts: Accounts,
    /// The main thread's filter, for when the loop begins.
    pub(crate) filter: Filter,
}

/// The counters of all devices.
pub(crate) struct Metrics {
    pub(crate) event_loop: Arc<LoopMetrics>,
    pub(crate) vsock: Arc<VsockMetrics>,
    pub(crate) blocks: Vec<Arc<BlockMetrics>>,
}

/// Builds everything; nothing runs. `spec` has been checked against the number of `fds`.
pub(crate) fn assemble(spec: &VmSpec, fds: Vec<OwnedFd>, log: &Log) -> Result<Machine> {
    let mut fds = Fds(fds.into_iter().map(Some).collect());
    let ending = Arc::new(Ending::new().map_err(AssembleError::EventFd)?);
    let memory = MemorySpec {
        bytes: u64::from(spec.memory_mib) << 20,
        backing: Backing::Anonymous,
        huge_pages: HugePages::Never,
    };
    let (vm, processors) = Vm::new(
        &Kvm::open()?,
        &MachineSpec {
            vcpus: spec.vcpus,
            memory,
        },
    )?;
    let event_loop = EventLoop::new(Arc::new(vm.memory().ram().clone()))?;
    let mut devices = Devices {
        vm: &vm,
        event_loop,
        placed: Vec::new(),
    };
    let metrics = devices.add_all(spec, &mut fds)?;
    let Devices {
        event_loop, placed, ..
    } = devices;
    let console = Arc::new(Console::new(MAX_CONSOLE_TAIL, Some(Box::new(log.clone()))));
    let ports = Arc::new(port_bus(&console, &ending)?);
    let memory = Arc::new(memory_bus(&vm, &placed)?);
    load(spec, &vm, &mut fds, &placed, &processors)?;
    let accounts = Accounts::open(vm.memory().host_ranges()).map_err(AssembleError::Accounts)?;
    // Nothing is opened after this.
    let (filters, landlocked) = confine::process()?;
    if !landlocked {
        log.line(
            "warn",
            "this kernel's Landlock cannot forbid all access to files and network",
        );
    }
    let filter = Arc::new(filters.vcpu);
    let vcpus = processors
        .into_iter()
        .map(|vcpu| {
            let wiring = Wiring {
                ports: Arc::clone(&ports),
                memory: Arc::clone(&memory),
            };
            spawn(
                vcpu,
                wiring,
                Arc::clone(&filter),
                log.clone(),
                Arc::clone(&ending),
            )
        })
        .collect::<Result<_>>()?;
    Ok(Machine {
        event_loop: Some(event_loop),
        vcpus,
        vm,
        console,
        ending,
        metrics,
        accounts,
        filter: filters.main,
    })
}

/// The descriptors that came with the spec; each is used once.
struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    fn take(&mut self, index: u8) -> Result<OwnedFd> {
        let slot = self.0.get_mut(usize::from(index)).and_then(Option::take);
        slot.ok_or(AssembleError::Descriptor(index))
    }
}

/// A virtio device in its place.
struct Placed {
    base: u64,
    gsi: u32,
    window: Arc<Mmio>,
}

struct Devices<'a> {
    vm: &'a Vm,
    event_loop: EventLoop,
    placed: Vec<Placed>,
}

impl Devices<'_> {
    /// In the order in which a guest looks for them: what it needs first comes first.
    fn add_all(&mut self, spec: &VmSpec, fds: &mut Fds) -> Result<Metrics> {
        let config = VsockConfig {
            guest_cid: GUEST_CID,
            port: AGENT_PORT,
            link: fds.take(spec.link)?,
        };
        let vsock = self.add(|l, line| l.add_vsock(config, line))?;
        let mut blocks = Vec::new();
        for (index, disk) in spec.disks.iter().enumerate() {
            let config = block_config(index, disk, fds)?;
            blocks.push(self.add(|l, line| l.add_block(config, line))?);
        }
        self.add(|l, line| Ok((l.add_rng(line)?, ())))?;
        Ok(Metrics {
            event_loop: self.event_loop.metrics(),
            vsock,
            blocks,
        })
    }

    /// Places a device: interrupt line, device, doorbells.
    fn add<M>(
        &mut self,
        make: impl FnOnce(&mut EventLoop, Arc<Line>) -> std::result::Result<(Arc<Mmio>, M), LoopError>,
    ) -> Result<M> {
        let index = u32::try_from(self.placed.len()).unwrap_or(u32::MAX);
        let (base, gsi) = layout::mmio_device(index).ok_or(AssembleError::TooManyDevices(index))?;
        let line = Arc::new(Line(self.vm.irq_line(gsi)?));
        let (window, metrics) = make(&mut self.event_loop, line)?;
        for bell in window.notifiers() {
            self.vm
                .doorbell(base + bell.offset, bell.datamatch, bell.eventfd)?;
        }
        let acknowledged = base + devices::INTERRUPT_ACK;
        self.vm.absorb(acknowledged, window.acknowledge_eventfd())?;
        self.placed.push(Placed { base, gsi, window });
        Ok(metrics)
    }
}

fn block_config(index: usize, disk: &DiskSpec, fds: &mut Fds) -> Result<BlockConfig> {
    Ok(BlockConfig {
        base: File::from(fds.take(disk.base)?),
        layer: disk
            .layer
            .map(|fd| fds.take(fd))
            .transpose()?
            .map(File::from),
        parent: None,
        size: disk.size,
        serial: format!("disk{index}"),
    })
}

fn port_bus(console: &Arc<Console>, ending: &Arc<Ending>) -> Result<Bus> {
    let ending = Arc::clone(ending);
    let reset = Reset(ResetPort::new(move || ending.report(Reason::Reset)));
    let console: Arc<dyn BusDevice> = Arc::new(ConsolePorts(Arc::clone(console)));
    Ok(Bus::new([
        (Console::BASE.into(), Console::PORTS.into(), console),
        (ResetPort::PORT.into(), 1, Arc::new(reset) as _),
    ])?)
}

fn memory_bus(vm: &Vm, placed: &[Placed]) -> Result<Bus> {
    let ioapic = Ioapic::new(Arc::new(Routes(vm.routes())));
    let ioapic: Arc<dyn BusDevice> = Arc::new(IoapicWindow(ioapic));
    let windows = placed.iter().map(|p| {
        let window: Arc<dyn BusDevice> = Arc::new(Window(Arc::clone(&p.window)));
        (p.base, layout::MMIO_WINDOW, window)
    });
    let all = windows.chain([(layout::IOAPIC, layout::IOAPIC_WINDOW, ioapic)]);
    Ok(Bus::new(all)?)
}

/// Puts kernel, agent and tables into guest memory, and the first vCPU at the kernel's entry.
fn load(
    spec: &VmSpec,
    vm: &Vm,
    fds: &mut Fds,
    placed: &[Placed],
    processors: &[Vcpu],
) -> Result<()> {
    let Origin::Boot {
        kernel,
        agent,
        cmdline_extra,
    } = &spec.origin
    else {
        return Err(AssembleError::Descriptor(spec.link));
    };
    let mut kernel = File::from(fds.take(*kernel)?);
    let agent = read_agent(File::from(fds.take(*agent)?))?;
    let tables = match spec.memory_mib {
        0..=SMALL_GUEST_MIB => SMALL_GUEST,
        _ => "",
    };
    let cmdline = format!("{CMDLINE}{tables} {cmdline_extra}");
    let boot = BootSpec {
        cmdline: cmdline.trim_end(),
        initrd: &initrd::build(&agent),
    };
    let ram = vm.memory().ram();
    let loaded = boot::load_linux(vm.memory(), &mut kernel, &boot)?;
    let devices: Vec<_> = placed
        .iter()
        .map(|p| AcpiDevice {
            hid: VIRTIO_MMIO,
            base: p.base,
            size: layout::MMIO_WINDOW,
            gsi: p.gsi,
        })
        .collect();
    acpi::write_tables(ram, spec.vcpus, &devices)?;
    if let Some(first) = processors.first() {
        first.enter_at(&loaded.entry)?;
    }
    Ok(())
}

fn read_agent(file: File) -> Result<Vec<u8>> {
    let mut agent = Vec::new();
    file.take(MAX_AGENT + 1)
        .read_to_end(&mut agent)
        .map_err(AssembleError::Agent)?;
    if agent.len() as u64 > MAX_AGENT {
        return Err(AssembleError::AgentTooLarge);
    }
    Ok(agent)
}

fn spawn(
    vcpu: Vcpu,
    wiring: Wiring,
    filter: Arc<Filter>,
    log: Log,
    ending: Arc<Ending>,
) -> Result<VcpuThread> {
    let confine = move || {
        filter.apply().map_err(|error| {
            log.line("error", &chain(&error));
            libc::EPERM
        })
    };
    let ended = move |index, exit: Exit| ending.report(Reason::Vcpu { index, exit });
    Ok(VcpuThread::spawn(vcpu, wiring, confine, ended)?)
}
