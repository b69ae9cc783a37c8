//! Builds a machine with its devices from a [`VmSpec`]: the only place that knows them all.
//!
//! The order is that of the KVM calls that stay cheap: memory slots, irqchip and vCPUs in one step
//! ([`Vm::new`]), then interrupt lines and doorbells, then everything in guest memory, and vCPU
//! threads last, parked.

use crate::begin::{Fresh, Trial, memory};
use crate::confine;
use crate::ending::{Ending, Reason};
use crate::lazy::Watch;
use crate::log::Log;
use crate::prepared::Prepared;
use crate::save::{SaveError, State};
use crate::stats::Accounts;
use crate::wiring::{ConsolePorts, IoapicWindow, Line, Reset, Routes, Window};
use control::{DiskSpec, MAX_CONSOLE_TAIL, Origin, VmSpec};
use devices::{
    BlockConfig, BlockMetrics, Console, EventLoop, Ioapic, LoopError, LoopMetrics, Mmio, ResetPort,
    VsockConfig, VsockMetrics,
};
use jail::{Filter, JailError};
use machine::{
    Bus, BusDevice, CpuContract, Exit, MachineSpec, Vcpu, VcpuThread, Vm, Wiring, layout,
};
use snapshot_memory::{PageRange, Pagemap};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The guest's context id on its socket device; it need not differ between machines.
const GUEST_CID: u32 = 3;
/// The port on which the agent calls the service.
const AGENT_PORT: u32 = 1024;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssembleError {
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Loop(#[from] LoopError),
    #[error("The agent could not be read")]
    Agent(#[source] std::io::Error),
    #[error("The agent has over {0} bytes")]
    AgentTooLarge(u64),
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
    #[error("The golden file {what}")]
    Golden { what: String },
    #[error("The machine could not be continued")]
    Saved(#[from] SaveError),
    #[error("The devices' state was refused")]
    Devices(#[from] devices::LoadError),
    #[error("Its memory does not come")]
    Pager(#[from] snapshot_memory::pager::PagerError),
    #[error("The pager cannot be watched")]
    Watch(#[source] std::io::Error),
    #[error("It was saved on another kind of processor")]
    Cpu(#[from] machine::CpuMismatch),
    #[error("Could not write guest memory")]
    Memory(#[from] snapshot_memory::MemoryError),
}

pub(crate) type Result<T> = std::result::Result<T, AssembleError>;

/// A machine that is ready to run.
pub(crate) struct Machine {
    /// The devices' event loop, until it is taken to run on the thread that assembled it.
    pub(crate) event_loop: Option<EventLoop>,
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) vm: Vm,
    pub(crate) ioapic: Arc<Ioapic>,
    /// What its guest sees of the processor.
    pub(crate) cpu: CpuContract,
    /// For saving; opened before files were given up.
    pub(crate) pagemap: Pagemap,
    /// Whether it began where another one was saved.
    pub(crate) is_clone: bool,
    /// What it was known to use when it began, if a pager brings its memory.
    pub(crate) lazy: Option<Vec<PageRange>>,
    /// If its working set is to be learned.
    pub(crate) trial: Option<Trial>,
    /// Where it goes on when it first runs.
    pub(crate) saved: Option<State>,
    pub(crate) console: Arc<Console>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) metrics: Metrics,
    pub(crate) accounts: Accounts,
    /// For all threads, when the loop begins.
    pub(crate) filter: Filter,
}

/// The counters of all devices.
pub(crate) struct Metrics {
    pub(crate) event_loop: Arc<LoopMetrics>,
    pub(crate) vsock: Arc<VsockMetrics>,
    pub(crate) blocks: Vec<Arc<BlockMetrics>>,
}

/// Builds everything; nothing runs. `spec` has been checked against the number of `fds`.
pub(crate) fn assemble(
    prepared: Prepared,
    spec: &VmSpec,
    fds: Vec<OwnedFd>,
    control: BorrowedFd<'_>,
    log: &Log,
) -> Result<Machine> {
    let Prepared { kvm, filter, cpu } = prepared;
    let mut fds = Fds(fds.into_iter().map(Some).collect());
    let ending = Arc::new(Ending::new().map_err(AssembleError::EventFd)?);
    let memory = memory(spec, &mut fds)?;
    let (vm, processors) = Vm::new(
        &kvm,
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
        mut event_loop,
        placed,
        ..
    } = devices;
    let console = Arc::new(Console::new(MAX_CONSOLE_TAIL, Some(Box::new(log.clone()))));
    let ports = Arc::new(port_bus(&console, &ending)?);
    let ioapic = Arc::new(Ioapic::new(Arc::new(Routes(vm.routes()))));
    let memory = Arc::new(memory_bus(&ioapic, &placed)?);
    let pagemap = Pagemap::open()?;
    let fresh = Fresh {
        vm: &vm,
        processors: &processors,
        placed: &placed,
        ioapic: &ioapic,
        pagemap: &pagemap,
        cpu: &cpu,
        event_loop: &mut event_loop,
    };
    let watch = Watch::new(control, &ending, log);
    let trial = fresh.trial(spec, log);
    let saved = fresh.begin(spec, &mut fds, watch)?;
    let accounts = Accounts::open(vm.memory().host_ranges()).map_err(AssembleError::Accounts)?;
    // Nothing is opened after this.
    drop(kvm);
    confine(log)?;
    let vcpus = processors
        .into_iter()
        .map(|vcpu| {
            let wiring = Wiring {
                ports: Arc::clone(&ports),
                memory: Arc::clone(&memory),
            };
            spawn(vcpu, wiring, &ending)
        })
        .collect::<Result<_>>()?;
    Ok(Machine {
        event_loop: Some(event_loop),
        vcpus,
        vm,
        ioapic,
        cpu,
        pagemap,
        is_clone: saved.is_some(),
        lazy: known(spec, saved.as_ref()),
        trial,
        saved,
        console,
        ending,
        metrics,
        accounts,
        filter,
    })
}

/// What a machine whose memory a pager brings is known to use.
fn known(spec: &VmSpec, saved: Option<&State>) -> Option<Vec<PageRange>> {
    let lazy = matches!(spec.origin, Origin::Lazy { .. });
    saved
        .filter(|_| lazy)
        .map(|state| state.first.touched.clone())
}

/// The descriptors that came with the spec; each is used once.
pub(crate) struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    pub(crate) fn take(&mut self, index: u8) -> Result<OwnedFd> {
        let slot = self.0.get_mut(usize::from(index)).and_then(Option::take);
        slot.ok_or(AssembleError::Descriptor(index))
    }
}

/// A virtio device in its place.
pub(crate) struct Placed {
    pub(crate) base: u64,
    pub(crate) gsi: u32,
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
        parent: disk
            .parent
            .map(|fd| fds.take(fd))
            .transpose()?
            .map(File::from),
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

fn memory_bus(ioapic: &Arc<Ioapic>, placed: &[Placed]) -> Result<Bus> {
    let ioapic: Arc<dyn BusDevice> = Arc::new(IoapicWindow(Arc::clone(ioapic)));
    let windows = placed.iter().map(|p| {
        let window: Arc<dyn BusDevice> = Arc::new(Window(Arc::clone(&p.window)));
        (p.base, layout::MMIO_WINDOW, window)
    });
    let all = windows.chain([(layout::IOAPIC, layout::IOAPIC_WINDOW, ioapic)]);
    Ok(Bus::new(all)?)
}

/// Gives up what the process does not need any more.
fn confine(log: &Log) -> Result<()> {
    if !confine::process()? {
        log.line(
            "warn",
            "this kernel's Landlock cannot forbid all access to files and network",
        );
    }
    Ok(())
}

fn spawn(vcpu: Vcpu, wiring: Wiring, ending: &Arc<Ending>) -> Result<VcpuThread> {
    let ending = Arc::clone(ending);
    let ended = move |index, exit: Exit| ending.report(Reason::Vcpu { index, exit });
    Ok(VcpuThread::spawn(vcpu, wiring, ended)?)
}
