//! Builds a machine with its devices from a [`VmSpec`]: the only place that knows them all.
//!
//! The order is that of the KVM calls that stay cheap: memory slots, irqchip and vCPUs in one step
//! ([`Vm::new`]), then interrupt lines and doorbells, then everything in guest memory, and vCPU
//! threads last, parked.

use crate::boot_source::{NewMachine, memory};
use crate::confine::OwnFiles;
use crate::demand_paging::PagerWatch;
use crate::device_list::{DeviceList, PlacedDevice};
use crate::ending::{EndReason, MachineEnding};
use crate::error::AssembleError;
use crate::log::SandboxLog;
use crate::parts::Machine;
use crate::prepared::PreparedHost;
use crate::state_file::SavedState;
use crate::stats::ProcessAccounts;
use crate::wiring::{ConsolePorts, DeviceWindow, IoapicWindow, KvmIrqRoutes, ResetPortWindow};
use control::{BootSource, MAX_CONSOLE_TAIL, ReceivedFds, VmSpec};
use devices::{Console, EventLoop, Ioapic, ResetPort};
use machine::{Bus, BusDevice, Exit, MachineSpec, Vcpu, VcpuThread, Vm, Wiring, layout};
use snapshot_memory::PageRange;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Builds everything; nothing runs. `spec` has been checked against the number of `fds`.
pub(crate) fn assemble(
    (own, prepared): (OwnFiles, PreparedHost),
    spec: &VmSpec,
    fds: Vec<OwnedFd>,
    control: BorrowedFd<'_>,
    log: &SandboxLog,
) -> Result<Machine, AssembleError> {
    let PreparedHost {
        kvm, filter, cpu, ..
    } = prepared;
    let OwnFiles { pagemap, smaps } = own;
    let mut fds = ReceivedFds::from(fds);
    let ending = Arc::new(MachineEnding::new().map_err(AssembleError::EventFd)?);
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
    let ioapic = Arc::new(Ioapic::new(Arc::new(KvmIrqRoutes(vm.routes()))));
    let memory = Arc::new(memory_bus(&ioapic, &placed)?);
    let new = NewMachine {
        vm: &vm,
        processors: &processors,
        placed: &placed,
        ioapic: &ioapic,
        pagemap: &pagemap,
        cpu: &cpu,
        event_loop: &mut event_loop,
    };
    let watch = PagerWatch::new(control, &ending, log);
    let trial = new.trial(spec, log);
    let saved = new.load(spec, &mut fds, watch)?;
    let accounts = ProcessAccounts::new(smaps, vm.memory().host_ranges());
    drop(kvm);
    let vcpus = processors
        .into_iter()
        .map(|vcpu| {
            let wiring = Wiring {
                ports: Arc::clone(&ports),
                memory: Arc::clone(&memory),
            };
            spawn(vcpu, wiring, &ending)
        })
        .collect::<Result<_, AssembleError>>()?;
    Ok(Machine {
        event_loop: Some(event_loop),
        vcpus,
        vm,
        ioapic,
        cpu,
        pagemap,
        is_clone: saved.is_some(),
        demand_paged: demand_paged(spec, saved.as_ref()),
        trial,
        restore_point: saved,
        console,
        ending,
        devices: spec.devices.clone(),
        metrics,
        accounts,
        filter,
    })
}

/// The known working set of a demand-paged machine.
fn demand_paged(spec: &VmSpec, saved: Option<&SavedState>) -> Option<Vec<PageRange>> {
    let is_demand_paged = matches!(spec.boot_source, BootSource::DemandPaged { .. });
    saved
        .filter(|_| is_demand_paged)
        .map(|state| state.working_set.touched.clone())
}

fn port_bus(console: &Arc<Console>, ending: &Arc<MachineEnding>) -> Result<Bus, AssembleError> {
    let ending = Arc::clone(ending);
    let reset = ResetPortWindow(ResetPort::new(move || ending.report(EndReason::Reset)));
    let console: Arc<dyn BusDevice> = Arc::new(ConsolePorts(Arc::clone(console)));
    Ok(Bus::new([
        (Console::BASE.into(), Console::PORTS.into(), console),
        (ResetPort::PORT.into(), 1, Arc::new(reset) as _),
    ])?)
}

fn memory_bus(ioapic: &Arc<Ioapic>, placed: &[PlacedDevice]) -> Result<Bus, AssembleError> {
    let ioapic: Arc<dyn BusDevice> = Arc::new(IoapicWindow(Arc::clone(ioapic)));
    let windows = placed.iter().map(|p| {
        let window: Arc<dyn BusDevice> = Arc::new(DeviceWindow(Arc::clone(&p.window)));
        (p.base, layout::MMIO_WINDOW, window)
    });
    let all = windows.chain([(layout::IOAPIC, layout::IOAPIC_WINDOW, ioapic)]);
    Ok(Bus::new(all)?)
}

fn spawn(
    vcpu: Vcpu,
    wiring: Wiring,
    ending: &Arc<MachineEnding>,
) -> Result<VcpuThread, AssembleError> {
    let ending = Arc::clone(ending);
    let ended = move |index, exit: Exit| ending.report(EndReason::Vcpu { index, exit });
    Ok(VcpuThread::spawn(vcpu, wiring, ended)?)
}
