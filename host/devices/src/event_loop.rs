//! The event loop: every device, the link, the disks, timers and the VM process's own descriptors
//! on one io_uring and one thread.
//!
//! One turn:
//! 1. `io_uring_enter`: submit what the last turn prepared (interrupts included), wait for events
//!    or the nearest deadline, collect. The only system call of a turn.
//! 2. Give each completion to its device or to the [`LoopHost`]. Devices only take note.
//! 3. Start and reset devices whose driver asked for it.
//! 4. Let each device work once, in bounded measure. A device with more to do makes the next
//!    `io_uring_enter` not wait, so that the others get their events in between.
//!
//! Circle: with `host.rs`, as the loop calls its owner and lends it itself for a reset.

mod host;
mod quiesce;
mod reset;
mod save;

use crate::device::{Device, DeviceContext, DeviceFault, NextTurn};
use crate::metrics::LoopMetrics;
use crate::mmio::DriverDemand;
use crate::ring::{ENTRIES, IoRing, OpCompletion, OpTarget, OpToken, borrow};
use crate::{IrqLine, Memory, MmioWindow};
pub use host::{LoopControl, LoopHost, WatchId};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
use std::{io, mem};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most devices, and most watches.
const MAX_DEVICES: usize = 16;

/// Why the loop could not be built, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The ring could not be made.
    #[error(
        "Could not make an io_uring of {entries} entries: is io_uring allowed here \
         (kernel.io_uring_disabled, seccomp, RLIMIT_MEMLOCK) and the kernel 6.1 or newer?"
    )]
    Setup {
        /// Entries asked for.
        entries: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A descriptor could not be made or prepared.
    #[error("Could not {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// More devices or watches than the loop has room for.
    #[error("The event loop has room for {0} devices and as many watches")]
    Full(usize),
}

/// A device and its phase.
#[derive(Debug)]
struct DeviceSlot {
    device: Box<dyn Device>,
    mmio: Arc<MmioWindow>,
    state: SlotState,
    /// An interrupt is to be raised before the first turn.
    interrupt_owed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    /// Not started, or reset.
    Idle,
    Running,
    /// The driver broke the rules; it must reset the device.
    Failed,
    /// I/O drains, then the driver sees that the reset is done.
    Resetting,
}

/// The loop. It must run on the thread that made it (the ring has a single issuer).
#[derive(Debug)]
pub struct EventLoop {
    ring: IoRing,
    memory: Arc<Memory>,
    metrics: Arc<LoopMetrics>,
    attention: Arc<EventFd>,
    slots: Vec<DeviceSlot>,
    watches: Vec<(WatchId, OwnedFd)>,
    peer_closed: bool,
    attended: bool,
    started: bool,
    loaded: bool,
    /// The host waits for the devices to settle, until then.
    quiescing: Option<Instant>,
    /// The host waits for the devices to have nothing in flight, until then.
    clearing: Option<Instant>,
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> LoopError {
    move |source| LoopError::Io { what, source }
}

const RING_FAILED: &str = "enter the io_uring";

impl EventLoop {
    /// A loop over `memory` with no devices.
    ///
    /// # Errors
    /// [`LoopError::Setup`] when the kernel refuses the ring.
    pub fn new(memory: Arc<Memory>) -> Result<Self, LoopError> {
        let ring = IoRing::new(memory.clone()).map_err(|source| LoopError::Setup {
            entries: ENTRIES,
            source,
        })?;
        let attention = EventFd::new(EFD_NONBLOCK).map_err(io_error("make the loop's eventfd"))?;
        Ok(Self {
            ring,
            memory,
            metrics: Arc::default(),
            attention: Arc::new(attention),
            slots: Vec::new(),
            watches: Vec::new(),
            peer_closed: false,
            attended: false,
            started: false,
            loaded: false,
            quiescing: None,
            clearing: None,
        })
    }

    /// Adds a device, whose interrupts go to `line`; its register window. Before
    /// [`EventLoop::run`] only.
    ///
    /// # Errors
    /// Out of descriptors or room.
    pub fn add(
        &mut self,
        device: Box<dyn Device>,
        line: Arc<dyn IrqLine>,
    ) -> Result<Arc<MmioWindow>, LoopError> {
        if self.slots.len() == MAX_DEVICES {
            return Err(LoopError::Full(MAX_DEVICES));
        }
        let mmio = MmioWindow::new(device.identity(), line, self.attention.clone())
            .map_err(io_error("make a device's queue eventfds"))?;
        let mmio = Arc::new(mmio);
        self.slots.push(DeviceSlot {
            device,
            mmio: mmio.clone(),
            state: SlotState::Idle,
            interrupt_owed: false,
        });
        Ok(mmio)
    }

    /// What a device is called in errors.
    fn name(&self, index: usize) -> String {
        let kind = self.slots.get(index).map(|slot| slot.device.kind());
        format!("{} {index}", kind.map_or("device", |kind| kind.name))
    }

    /// Watches a descriptor for [`LoopHost::ready`]; the loop keeps it until it is dropped. Before
    /// [`EventLoop::run`] only.
    ///
    /// # Errors
    /// Out of room.
    pub fn watch(&mut self, fd: OwnedFd, id: WatchId) -> Result<(), LoopError> {
        if self.watches.len() == MAX_DEVICES {
            return Err(LoopError::Full(MAX_DEVICES));
        }
        self.watches.push((id, fd));
        Ok(())
    }

    /// The loop's counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<LoopMetrics> {
        self.metrics.clone()
    }

    /// Serves until the host asks to stop. On return no vCPU waits for a device any more, so
    /// the vCPU threads can be joined.
    ///
    /// # Errors
    /// Only when the ring itself fails; a guest cannot cause that.
    pub fn run(&mut self, host: &mut dyn LoopHost) -> Result<(), LoopError> {
        let result = self.serve(host);
        self.slots.iter().for_each(|slot| slot.mmio.close());
        result
    }

    fn serve(&mut self, host: &mut dyn LoopHost) -> Result<(), LoopError> {
        let mut next = NextTurn::Wait;
        if !mem::replace(&mut self.started, true) {
            self.arm_all()?;
            if self.loaded {
                self.raise_owed()?;
                // The devices have work without an event.
                next = NextTurn::Again;
            }
        }
        let mut control = LoopControl::default();
        let mut done = Vec::new();
        while !control.stop {
            let deadline = self.deadline(host);
            self.metrics.enters.add(1);
            self.ring
                .enter(next == NextTurn::Wait, deadline)
                .map_err(io_error(RING_FAILED))?;
            self.ring.collect(&mut done);
            self.metrics
                .completions
                .add(u64::try_from(done.len()).unwrap_or(0));
            let now = Instant::now();
            for completion in done.drain(..) {
                self.dispatch(completion, now, host, &mut control)?;
            }
            self.begin_quiesce(&mut control, now);
            self.begin_clear(&mut control, now)?;
            if mem::take(&mut self.attended) && self.clearing.is_none() {
                self.serve_demands(now)?;
            }
            next = self.turn(now)?;
            if let Some(until) = self.quiescing {
                next = self.tell_quiesced(until, now, host, &mut control);
            }
            if let Some(until) = self.clearing {
                next = self.tell_cleared(until, now, host, &mut control);
            }
            if mem::take(&mut self.peer_closed) {
                host.peer_closed(&mut control);
            }
            if host.deadline().is_some_and(|at| at <= now) {
                host.tick(now, &mut control);
            }
            if self.begin_quiesce(&mut control, now) {
                next = NextTurn::Again;
            }
        }
        Ok(())
    }

    fn arm_all(&mut self) -> Result<(), LoopError> {
        self.arm(OpTarget::Attention, 0)?;
        for index in 0..self.watches.len() {
            self.arm(OpTarget::Watch(index), 0)?;
        }
        for index in 0..self.slots.len() {
            let queues = self.slots[index].mmio.notifiers().count();
            for queue in 0..u32::try_from(queues).unwrap_or(0) {
                self.arm(OpTarget::Kick(index), queue)?;
            }
        }
        Ok(())
    }

    /// Begins, or begins again, to watch the descriptor of a target.
    fn arm(&mut self, target: OpTarget, key: u32) -> Result<(), LoopError> {
        let token = OpToken { target, key };
        let fd = match target {
            OpTarget::Attention => Some(borrow(&self.attention)),
            OpTarget::Watch(index) => self.watches.get(index).map(|(_, fd)| fd.as_fd()),
            OpTarget::Kick(index) => {
                let queue = usize::try_from(key).unwrap_or(usize::MAX);
                self.slots
                    .get(index)
                    .and_then(|s| s.mmio.notifier(queue))
                    .map(borrow)
            }
            OpTarget::Device(_) => None,
        };
        match fd {
            Some(fd) => self.ring.poll(fd, token).map_err(io_error(RING_FAILED)),
            None => Ok(()),
        }
    }

    /// The nearest of all deadlines.
    fn deadline(&self, host: &dyn LoopHost) -> Option<Instant> {
        let working = |s: &&DeviceSlot| s.state == SlotState::Running && self.quiescing.is_none();
        let running = self.slots.iter().filter(working);
        running
            .filter_map(|s| s.device.deadline())
            .chain(host.deadline())
            .chain(self.quiescing)
            .chain(self.clearing)
            .min()
    }

    fn dispatch(
        &mut self,
        done: OpCompletion,
        now: Instant,
        host: &mut dyn LoopHost,
        control: &mut LoopControl,
    ) -> Result<(), LoopError> {
        let OpToken { target, key } = done.token;
        if !done.more && !matches!(target, OpTarget::Device(_)) {
            self.arm(target, key)?;
        }
        match target {
            OpTarget::Attention => self.attended = true,
            OpTarget::Watch(index) => {
                if let Some(&(id, _)) = self.watches.get(index) {
                    host.ready(id, control);
                }
            }
            OpTarget::Kick(index) => {
                self.metrics.notifications.add(1);
                let queue = usize::try_from(key).unwrap_or(usize::MAX);
                if self
                    .slots
                    .get(index)
                    .is_some_and(|s| s.state == SlotState::Running)
                {
                    self.with(index, now, |device, cx| device.kick(queue, cx))?;
                }
            }
            // Also when it is not running: what is in flight must come home.
            OpTarget::Device(index) => {
                self.with(index, now, |device, cx| device.complete(done, cx))?;
            }
        }
        Ok(())
    }

    /// Calls a device. A driver's fault stops only that device.
    fn with<T>(
        &mut self,
        index: usize,
        now: Instant,
        call: impl FnOnce(&mut dyn Device, &mut DeviceContext<'_>) -> Result<T, DeviceFault>,
    ) -> Result<Option<T>, LoopError> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(None);
        };
        let mut cx = DeviceContext {
            ring: &mut self.ring,
            memory: &self.memory,
            mmio: &slot.mmio,
            index,
            metrics: &self.metrics,
            peer_closed: &mut self.peer_closed,
            now,
        };
        match call(&mut *slot.device, &mut cx) {
            Ok(value) => Ok(Some(value)),
            Err(DeviceFault::IoRing(error)) => Err(io_error(RING_FAILED)(error)),
            Err(DeviceFault::Queue(_)) => {
                if slot.state == SlotState::Running {
                    slot.state = SlotState::Failed;
                    slot.mmio.fail();
                    tracing::warn!(
                        device = index,
                        "The guest broke a virtqueue; device stopped"
                    );
                }
                Ok(None)
            }
        }
    }

    fn serve_demands(&mut self, now: Instant) -> Result<(), LoopError> {
        for index in 0..self.slots.len() {
            match self.slots[index].mmio.take_demand() {
                Some(DriverDemand::Start { queues }) => {
                    self.slots[index].state = SlotState::Running;
                    let memory = self.memory.clone();
                    self.with(index, now, |device, cx| {
                        let queues: Result<Vec<_>, _> =
                            queues.into_iter().map(|q| queue(q, &memory)).collect();
                        device.start(queues?, cx)
                    })?;
                }
                Some(DriverDemand::Reset) => {
                    self.slots[index].state = SlotState::Resetting;
                    self.with(index, now, |device, cx| device.stop(cx))?;
                }
                None => {}
            }
        }
        Ok(())
    }

    fn turn(&mut self, now: Instant) -> Result<NextTurn, LoopError> {
        let mut next = NextTurn::Wait;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            match slot.state {
                SlotState::Running if self.quiescing.is_some() => {
                    self.with(index, now, |device, cx| device.settle(cx))?;
                }
                SlotState::Running => {
                    let wanted = self.with(index, now, |device, cx| device.turn(cx))?;
                    next = if wanted == Some(NextTurn::Again) {
                        NextTurn::Again
                    } else {
                        next
                    };
                }
                SlotState::Resetting if slot.device.drained() => {
                    slot.state = SlotState::Idle;
                    slot.mmio.reset_done();
                }
                _ => {}
            }
        }
        Ok(next)
    }
}

/// The one gate from what the driver wrote to a queue that is served.
fn queue(state: QueueState, memory: &Memory) -> Result<Option<Queue>, virtio_queue::Error> {
    if !state.ready {
        return Ok(None);
    }
    let queue = Queue::try_from(state)?;
    if queue.is_valid(memory) {
        Ok(Some(queue))
    } else {
        Err(virtio_queue::Error::QueueNotReady)
    }
}

#[cfg(test)]
mod test;
