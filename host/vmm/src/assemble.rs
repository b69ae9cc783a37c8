//! Builds a machine with its devices from a [`VmSpec`]: the only place that knows them all.
//!
//! The order is that of the KVM calls that stay cheap: memory slots, irqchip and vCPUs in one step
//! ([`Vm::new`]), then interrupt lines and doorbells, then everything in guest memory, and vCPU
//! threads last, parked.

use crate::begin::{Fresh, Trial, memory};
use crate::confine;
use crate::device_list::{DeviceList, Metrics, Placed};
use crate::ending::{Ending, Reason};
use crate::lazy::Watch;
use crate::log::Log;
use crate::prepared::Prepared;
use crate::save::{SaveError, State};
use crate::stats::Accounts;
use crate::wiring::{ConsolePorts, IoapicWindow, Reset, Routes, Window};
use control::{BootSource, DeviceSpec, MAX_CONSOLE_TAIL, MissingFd, ReceivedFds, VmSpec};
use devices::{Console, EventLoop, Ioapic, LoopError, ResetPort};
use jail::{Filter, JailError};
use machine::{
    Bus, BusDevice, CpuContract, Exit, MachineSpec, Vcpu, VcpuThread, Vm, Wiring, layout,
};
use snapshot_memory::{Pagemap, Range};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

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
    #[error(transparent)]
    Descriptor(#[from] MissingFd),
    #[error("Could not make block device {serial:?}")]
    Disk {
        serial: String,
        #[source]
        source: devices::BlockError,
    },
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
    pub(crate) lazy: Option<Vec<Range>>,
    /// If its working set is to be learned.
    pub(crate) trial: Option<Trial>,
    /// Where it goes on when it first runs.
    pub(crate) saved: Option<State>,
    pub(crate) console: Arc<Console>,
    pub(crate) ending: Arc<Ending>,
    /// Its virtio devices, in the order in which their state is saved.
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) metrics: Metrics,
    pub(crate) accounts: Accounts,
    /// For all threads, when the loop begins.
    pub(crate) filter: Filter,
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
    let mut fds = ReceivedFds::from(fds);
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
    let mut devices = DeviceList::new(&vm, event_loop);
    for device in &spec.devices {
        devices.add(device, &mut fds)?;
    }
    let (mut event_loop, placed, metrics) = devices.into_parts();
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
        devices: spec.devices.clone(),
        metrics,
        accounts,
        filter,
    })
}

/// What a machine whose memory a pager brings is known to use.
fn known(spec: &VmSpec, saved: Option<&State>) -> Option<Vec<Range>> {
    let lazy = matches!(spec.boot_source, BootSource::DemandPaged { .. });
    saved
        .filter(|_| lazy)
        .map(|state| state.first.touched.clone())
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
