//! The virtio devices of one machine: each made from its spec, given its place in the guest's
//! address space, and wired to KVM.

use crate::error::AssembleError;
use crate::wiring::IrqfdLine;
use control::{
    DeviceReset, DeviceSpec, DiskSpec, FdName, MissingFd, NetDeviceSpec, ReceivedFds, SavedLink,
    VsockSpec,
};
use devices::{
    Attachment, Block, BlockConfig, BlockMetrics, Device, DiskParent, EventLoop, FrameSocket,
    LoopMetrics, MmioWindow, Net, Rng, SavedConnection, Vsock, VsockConfig, VsockLink,
    VsockMetrics,
};
use machine::{Vm, layout};
use std::fs::File;
use std::sync::Arc;

/// The guest's context id on its socket device; it need not differ between machines.
const GUEST_CID: u32 = 3;
/// The port on which the agent calls the service.
const AGENT_PORT: u32 = 1024;

/// The counters of all devices.
pub(crate) struct DeviceMetrics {
    pub(crate) event_loop: Arc<LoopMetrics>,
    pub(crate) vsock: Arc<VsockMetrics>,
    pub(crate) blocks: Vec<Arc<BlockMetrics>>,
}

/// A virtio device in its place.
pub(crate) struct PlacedDevice {
    pub(crate) base: u64,
    pub(crate) gsi: u32,
    pub(crate) window: Arc<MmioWindow>,
}

/// The devices that have been added so far.
pub(crate) struct DeviceList<'a> {
    vm: &'a Vm,
    event_loop: EventLoop,
    placed: Vec<PlacedDevice>,
    metrics: DeviceMetrics,
}

impl<'a> DeviceList<'a> {
    pub(crate) fn new(vm: &'a Vm, event_loop: EventLoop) -> Self {
        let metrics = DeviceMetrics {
            event_loop: event_loop.metrics(),
            vsock: Arc::default(),
            blocks: Vec::new(),
        };
        Self {
            vm,
            event_loop,
            placed: Vec::new(),
            metrics,
        }
    }

    /// Adds one: a new kind of device is one line here.
    pub(crate) fn add(
        &mut self,
        spec: &DeviceSpec,
        fds: &mut ReceivedFds,
    ) -> Result<(), AssembleError> {
        let device: Box<dyn Device> = match spec {
            DeviceSpec::Vsock(vsock) => Box::new(self.vsock(link(vsock, fds)?)),
            DeviceSpec::Block(disk) => Box::new(self.block(disk, fds)?),
            DeviceSpec::Rng => Box::new(Rng::default()),
            DeviceSpec::Net(net) => Box::new(Net::new(frames(net, fds)?)),
        };
        self.place(device)
    }

    fn vsock(&mut self, link: VsockLink) -> Vsock {
        let device = Vsock::new(VsockConfig {
            guest_cid: GUEST_CID,
            port: AGENT_PORT,
            link,
        });
        self.metrics.vsock = device.metrics();
        device
    }

    fn block(&mut self, disk: &DiskSpec, fds: &mut ReceivedFds) -> Result<Block, AssembleError> {
        let serial = format!("disk{}", self.metrics.blocks.len());
        let device = Block::new(BlockConfig {
            base: File::from(fds.take(disk.base)?),
            layer: file(disk.layer, fds)?,
            parent: DiskParent(file(disk.parent, fds)?),
            size: disk.size,
            serial: serial.clone(),
        });
        let device = device.map_err(|source| AssembleError::Disk { serial, source })?;
        self.metrics.blocks.push(device.metrics());
        Ok(device)
    }

    /// Gives a device its place: interrupt line, registers, doorbells.
    fn place(&mut self, device: Box<dyn Device>) -> Result<(), AssembleError> {
        let index = u32::try_from(self.placed.len()).unwrap_or(u32::MAX);
        let (base, gsi) = layout::mmio_device(index).ok_or(AssembleError::TooManyDevices(index))?;
        let line = Arc::new(IrqfdLine(self.vm.irq_line(gsi)?));
        let window = self.event_loop.add(device, line)?;
        for bell in window.notifiers() {
            self.vm
                .doorbell(base + bell.offset, bell.datamatch, bell.eventfd)?;
        }
        let acknowledged = base + devices::INTERRUPT_ACK;
        self.vm.absorb(acknowledged, window.acknowledge_eventfd())?;
        self.placed.push(PlacedDevice { base, gsi, window });
        Ok(())
    }

    pub(crate) fn into_parts(self) -> (EventLoop, Vec<PlacedDevice>, DeviceMetrics) {
        (self.event_loop, self.placed, self.metrics)
    }
}

/// What a device is reset with.
pub(crate) fn attachment(
    reset: &DeviceReset,
    fds: &mut ReceivedFds,
) -> Result<Attachment, MissingFd> {
    Ok(match reset {
        DeviceReset::Vsock(vsock) => link(vsock, fds)?.into(),
        DeviceReset::Block { parent } => DiskParent(file(*parent, fds)?).into(),
        DeviceReset::Rng => Attachment::none(),
        DeviceReset::Net(net) => frames(net, fds)?.into(),
    })
}

fn link(spec: &VsockSpec, fds: &mut ReceivedFds) -> Result<VsockLink, MissingFd> {
    Ok(VsockLink {
        socket: fds.take(spec.link)?,
        connection: match spec.connection {
            SavedLink::Kept => SavedConnection::Kept,
            SavedLink::Broken => SavedConnection::Broken,
        },
    })
}

fn frames(spec: &NetDeviceSpec, fds: &mut ReceivedFds) -> Result<FrameSocket, MissingFd> {
    Ok(FrameSocket(fds.take(spec.frames)?))
}

fn file(name: Option<FdName>, fds: &mut ReceivedFds) -> Result<Option<File>, MissingFd> {
    Ok(name.map(|name| fds.take(name)).transpose()?.map(File::from))
}
