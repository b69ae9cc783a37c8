//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2.2): one register window per device.
//!
//! vCPU threads read and write registers here; the device itself lives on the event loop's thread.
//! Between the two are a mutex-protected [`WindowState`] and the loop's attention eventfd:
//!
//! ```text
//!  Idle --DRIVER_OK--> Starting --loop took the queues--> Running
//!   ^                     |                                  |
//!   |                     +------- Status = 0 (reset) -------+
//!   +---- loop: I/O has drained, queues dropped ---- Resetting      any --loop ended--> Closed
//! ```
//!
//! A reset of a running device blocks the vCPU that wrote it until the loop has drained the I/O
//! that touches guest memory: Linux does not poll for the end of a reset on this transport. The
//! wait is bounded by [`RESET_TIMEOUT`]; a device that takes longer is marked as needing a reset.

pub(crate) mod state;

use crate::IrqLine;
use crate::interrupt::{CONFIG_CHANGE, Interrupt};
use crate::metrics::Counter;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of one device's register window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// Offset of the `QueueNotify` register, where ioeventfds go.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Offset of the `InterruptACK` register, see [`MmioWindow::acknowledge_eventfd`].
pub const INTERRUPT_ACK: u64 = 0x64;
/// The longest a vCPU waits for a reset.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"htch");
/// Offset of the device's configuration space.
const CONFIG: u64 = 0x100;

/// `VIRTIO_F_VERSION_1` (§6).
const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_INDIRECT_DESC` (§6).
pub(crate) const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX` (§6).
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;

/// Device status bits (§2.1).
mod status {
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const NEEDS_RESET: u32 = 64;
    /// What a driver may set: all but `NEEDS_RESET`.
    pub(super) const BY_DRIVER: u32 = 0x8f;
}

/// A queue's notification: writing `datamatch` (4 bytes) at [`Notifier::offset`] into the window
/// is to signal `eventfd`.
#[derive(Debug)]
pub struct Notifier<'a> {
    /// Offset into the register window, [`QUEUE_NOTIFY`].
    pub offset: u64,
    /// The queue's number.
    pub datamatch: u32,
    /// The non-blocking eventfd that the event loop watches.
    pub eventfd: &'a EventFd,
}

/// What a device is, as its driver sees it.
#[derive(Debug)]
pub struct DeviceIdentity {
    /// Virtio device type (§5).
    pub(crate) device_id: u32,
    /// Feature bits of the device type and the ring; `VERSION_1` is added.
    pub(crate) features: u64,
    /// Maximum size of each queue, powers of two.
    pub(crate) queue_sizes: &'static [u16],
    /// The read-only configuration space.
    pub(crate) config: Box<[u8]>,
}

/// What the driver asks of the device's thread.
#[derive(Debug)]
pub(crate) enum DriverDemand {
    /// Begin to serve these queues. Not validated.
    Start { queues: Vec<QueueState> },
    /// Stop, drain, then call [`MmioWindow::reset_done`].
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WindowPhase {
    Idle,
    Starting,
    Running,
    Resetting,
    Closed,
}

#[derive(Debug)]
struct WindowState {
    phase: WindowPhase,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueState>,
    /// A [`DriverDemand::Reset`] is handed out once.
    reset_taken: bool,
}

/// The register window of one virtio device. Shared by all vCPU threads and the event loop.
#[derive(Debug)]
pub struct MmioWindow {
    identity: DeviceIdentity,
    interrupt: Interrupt,
    notifiers: Vec<EventFd>,
    acknowledged: EventFd,
    attention: Arc<EventFd>,
    state: Mutex<WindowState>,
    phase_changed: Condvar,
    /// Register accesses, for the counters.
    pub(crate) accesses: Counter,
}

impl WindowState {
    /// As no driver has seen it.
    fn new(identity: &DeviceIdentity) -> Self {
        Self {
            phase: WindowPhase::Idle,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: fresh_queues(identity.queue_sizes),
            reset_taken: false,
        }
    }
}

fn fresh_queues(sizes: &[u16]) -> Vec<QueueState> {
    let queue = |&max_size| QueueState {
        max_size,
        size: max_size,
        ..QueueState::default()
    };
    sizes.iter().map(queue).collect()
}

impl MmioWindow {
    pub(crate) fn new(
        mut identity: DeviceIdentity,
        line: Arc<dyn IrqLine>,
        attention: Arc<EventFd>,
    ) -> io::Result<Self> {
        identity.features |= F_VERSION_1;
        let notifiers = identity
            .queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<Result<_, _>>()?;
        let state = WindowState::new(&identity);
        Ok(Self {
            identity,
            interrupt: Interrupt::new(line),
            notifiers,
            acknowledged: EventFd::new(EFD_NONBLOCK)?,
            attention,
            state: Mutex::new(state),
            phase_changed: Condvar::new(),
            accesses: Counter::default(),
        })
    }

    /// The queues' notifications, to be registered as ioeventfds. Without registering, a write to
    /// the register through [`MmioWindow::write`] does the same, at the price of an exit to user
    /// space.
    pub fn notifiers(&self) -> impl Iterator<Item = Notifier<'_>> {
        (0..)
            .zip(&self.notifiers)
            .map(|(datamatch, eventfd)| Notifier {
                offset: QUEUE_NOTIFY,
                datamatch,
                eventfd,
            })
    }

    /// Takes driver's acknowledgements of interrupts off the vCPU's way: an ioeventfd for 4-byte
    /// writes of any value at [`INTERRUPT_ACK`] to this eventfd, which nobody reads, saves one of
    /// the two exits to user space that an interrupt costs. The status register then continues to
    /// say "a used buffer was added" after the first time; drivers look at their queues at each
    /// interrupt anyway, and the line is edge-triggered, so nothing is repeated for it.
    #[must_use]
    pub fn acknowledge_eventfd(&self) -> &EventFd {
        &self.acknowledged
    }

    /// A read at `offset` into the window, on a vCPU's thread. Registers are read 4 bytes at a
    /// time (§4.2.2.2), the configuration space at any width; anything else gives zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.accesses.add(1);
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            let from = usize::try_from(at).unwrap_or(usize::MAX);
            let config = self.identity.config.get(from..).unwrap_or(&[]);
            let n = config.len().min(data.len());
            data[..n].copy_from_slice(&config[..n]);
        } else if data.len() == 4 {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    /// A write at `offset` into the window, on a vCPU's thread. A write that the specification
    /// does not allow at this moment is ignored. May block while the device resets.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.accesses.add(1);
        if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && offset < CONFIG
        {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }

    fn lock(&self) -> MutexGuard<'_, WindowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> u32 {
        // The one register read on every interrupt: no lock.
        if offset == 0x60 {
            return self.interrupt.status();
        }
        let state = self.lock();
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.identity.device_id,
            0x0c => VENDOR,
            0x10 => half(self.identity.features, state.device_features_select),
            0x34 => state.selected().map_or(0, |q| q.max_size.into()),
            0x44 => state.selected().map_or(0, |q| q.ready.into()),
            0x70 => state.status,
            // Shared memory length: no such region (§4.2.2).
            0xb0 | 0xb4 => u32::MAX,
            // ConfigGeneration (0xfc): the configuration never changes.
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            QUEUE_NOTIFY => self.notify(value),
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            0x70 if value == 0 => self.reset(),
            0x70 => self.set_status(value),
            _ => self.lock().write(offset, value),
        }
    }

    fn notify(&self, queue: u32) {
        let eventfd = usize::try_from(queue)
            .ok()
            .and_then(|q| self.notifiers.get(q));
        if let Some(eventfd) = eventfd {
            signal(eventfd);
        }
    }

    fn set_status(&self, value: u32) {
        let mut state = self.lock();
        let mut added = value & status::BY_DRIVER & !state.status;
        if added & status::FEATURES_OK != 0 && !self.acceptable(state.driver_features) {
            added &= !status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 && state.status & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        state.status |= added;
        if added & status::DRIVER_OK != 0 && state.phase == WindowPhase::Idle {
            state.phase = WindowPhase::Starting;
            signal(&self.attention);
        }
    }

    /// §2.2: only offered features, and no legacy drivers.
    fn acceptable(&self, driver_features: u64) -> bool {
        driver_features & !self.identity.features == 0 && driver_features & F_VERSION_1 != 0
    }

    fn reset(&self) {
        let mut state = self.lock();
        match state.phase {
            WindowPhase::Closed => return,
            // Nothing of the device's thread has begun, so nothing has to end.
            WindowPhase::Idle | WindowPhase::Starting => {
                state.clear(self.identity.queue_sizes);
                self.interrupt.reset();
                return;
            }
            WindowPhase::Running => {
                state.phase = WindowPhase::Resetting;
                state.reset_taken = false;
                signal(&self.attention);
            }
            WindowPhase::Resetting => {}
        }
        let waiting = |s: &mut WindowState| s.phase == WindowPhase::Resetting;
        let wait = self
            .phase_changed
            .wait_timeout_while(state, RESET_TIMEOUT, waiting);
        let (mut state, outcome) = wait.unwrap_or_else(PoisonError::into_inner);
        if outcome.timed_out() {
            state.status |= status::NEEDS_RESET;
        }
    }

    /// What the driver asks for since the last call. Called by the event loop on attention.
    pub(crate) fn take_demand(&self) -> Option<DriverDemand> {
        let mut state = self.lock();
        match state.phase {
            WindowPhase::Starting => {
                state.phase = WindowPhase::Running;
                Some(DriverDemand::Start {
                    queues: state.queues.clone(),
                })
            }
            WindowPhase::Resetting if !state.reset_taken => {
                state.reset_taken = true;
                Some(DriverDemand::Reset)
            }
            _ => None,
        }
    }

    /// The device has dropped its queues and touches guest memory no more.
    pub(crate) fn reset_done(&self) {
        let mut state = self.lock();
        if state.phase == WindowPhase::Resetting {
            state.clear(self.identity.queue_sizes);
            self.interrupt.reset();
            self.phase_changed.notify_all();
        }
    }

    /// The driver broke the rules: the device stops and says so (§2.1.2).
    pub(crate) fn fail(&self) {
        self.lock().status |= status::NEEDS_RESET;
        self.interrupt.raise(CONFIG_CHANGE);
    }

    /// The event loop has ended: nobody waits for it any more.
    pub(crate) fn close(&self) {
        self.lock().phase = WindowPhase::Closed;
        self.phase_changed.notify_all();
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    pub(crate) fn notifier(&self, queue: usize) -> Option<&EventFd> {
        self.notifiers.get(queue)
    }
}

/// A full counter also wakes the reader, so the only error of a non-blocking write is no loss.
fn signal(eventfd: &EventFd) {
    let _ = eventfd.write(1);
}

fn half(value: u64, select: u32) -> u32 {
    let bits = match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    };
    u32::try_from(bits).unwrap_or(0)
}

fn set_low(field: &mut u64, value: u32) {
    *field = (*field & !0xffff_ffff) | u64::from(value);
}

fn set_high(field: &mut u64, value: u32) {
    *field = (*field & 0xffff_ffff) | (u64::from(value) << 32);
}

impl WindowState {
    fn clear(&mut self, queue_sizes: &[u16]) {
        *self = Self {
            phase: WindowPhase::Idle,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: fresh_queues(queue_sizes),
            reset_taken: false,
        };
    }

    fn selected(&self) -> Option<&QueueState> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_select = value,
            0x20 if self.status & status::FEATURES_OK == 0 => match self.driver_features_select {
                0 => set_low(&mut self.driver_features, value),
                1 => set_high(&mut self.driver_features, value),
                _ => {}
            },
            0x24 => self.driver_features_select = value,
            0x30 => self.queue_select = value,
            _ => self.write_queue(offset, value),
        }
    }

    /// Queues are set up between `FEATURES_OK` and `DRIVER_OK`; a ready queue does not change.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let open = status::FEATURES_OK | status::DRIVER_OK;
        if self.status & open != status::FEATURES_OK {
            return;
        }
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        let queue = usize::try_from(self.queue_select)
            .ok()
            .and_then(|i| self.queues.get_mut(i));
        let Some(queue) = queue else { return };
        if offset == 0x44 {
            queue.ready = value == 1;
            queue.event_idx_enabled = event_idx;
            return;
        }
        if queue.ready {
            return;
        }
        match offset {
            // A size out of range is refused when the queue starts.
            0x38 => queue.size = u16::try_from(value).unwrap_or(0),
            0x80 => set_low(&mut queue.desc_table, value),
            0x84 => set_high(&mut queue.desc_table, value),
            0x90 => set_low(&mut queue.avail_ring, value),
            0x94 => set_high(&mut queue.avail_ring, value),
            0xa0 => set_low(&mut queue.used_ring, value),
            0xa4 => set_high(&mut queue.used_ring, value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::testing::{line, read32, write32};
    use proptest::prelude::*;

    fn mmio() -> MmioWindow {
        let identity = DeviceIdentity {
            device_id: 42,
            features: F_EVENT_IDX,
            queue_sizes: &[16, 8],
            config: Box::new([1, 2, 3]),
        };
        let attention = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        MmioWindow::new(identity, line(), attention).unwrap()
    }

    fn negotiate(mmio: &MmioWindow) {
        write32(mmio, 0x70, 3);
        write32(mmio, 0x24, 1);
        write32(mmio, 0x20, 1);
        write32(mmio, 0x70, 11);
        assert_eq!(read32(mmio, 0x70), 11);
    }

    #[test]
    fn the_device_introduces_itself() {
        let mmio = mmio();
        assert_eq!(read32(&mmio, 0), 0x7472_6976);
        assert_eq!((read32(&mmio, 4), read32(&mmio, 8)), (2, 42));
        let mut config = [9; 4];
        mmio.read(0x101, &mut config);
        assert_eq!(config, [2, 3, 0, 0]);
        mmio.read(u64::MAX, &mut config);
        assert_eq!(config, [0; 4]);
        mmio.read(0, &mut config[..2]);
        assert_eq!(config, [0; 4], "registers are four bytes wide");
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        let mmio = mmio();
        write32(&mmio, 0x70, 3);
        // Without VERSION_1.
        write32(&mmio, 0x70, 11);
        assert_eq!(read32(&mmio, 0x70), 3);
        write32(&mmio, 0x24, 1);
        write32(&mmio, 0x20, 3);
        write32(&mmio, 0x70, 11);
        assert_eq!(read32(&mmio, 0x70), 3);
        negotiate(&mmio);
        // Too late to change them.
        write32(&mmio, 0x20, 3);
        assert_eq!(mmio.lock().driver_features, F_VERSION_1);
        // And DRIVER_OK without FEATURES_OK is nothing.
        write32(&mmio, 0x70, 0);
        write32(&mmio, 0x70, 7);
        assert_eq!(read32(&mmio, 0x70), 3);
        assert!(mmio.take_demand().is_none());
    }

    #[test]
    fn queues_change_only_before_the_driver_is_ready() {
        let mmio = mmio();
        write32(&mmio, 0x38, 4);
        assert_eq!(mmio.lock().queues[0].size, 16);
        negotiate(&mmio);
        write32(&mmio, 0x38, 4);
        write32(&mmio, 0x80, 0x1000);
        write32(&mmio, 0x84, 1);
        write32(&mmio, 0x44, 1);
        write32(&mmio, 0x38, 8);
        write32(&mmio, 0x30, 7);
        write32(&mmio, 0x38, 8);
        assert_eq!((read32(&mmio, 0x34), read32(&mmio, 0x44)), (0, 0));
        write32(&mmio, 0x70, 15);
        write32(&mmio, 0x30, 0);
        write32(&mmio, 0x44, 0);
        assert_eq!(read32(&mmio, 0x44), 1);
        let Some(DriverDemand::Start { queues }) = mmio.take_demand() else {
            panic!("not started")
        };
        let first = queues[0];
        assert_eq!(
            (first.size, first.desc_table, first.ready),
            (4, 0x1_0000_1000, true)
        );
        assert!(!queues[1].ready && mmio.take_demand().is_none());
    }

    #[test]
    fn a_reset_waits_for_the_device() {
        let mmio = Arc::new(mmio());
        negotiate(&mmio);
        write32(&mmio, 0x70, 15);
        assert!(matches!(
            mmio.take_demand(),
            Some(DriverDemand::Start { .. })
        ));
        let vcpu = std::thread::spawn({
            let mmio = mmio.clone();
            move || write32(&mmio, 0x70, 0)
        });
        crate::testing::wait(|| mmio.take_demand());
        assert!(mmio.take_demand().is_none() && !vcpu.is_finished());
        assert_eq!(read32(&mmio, 0x70), 15);
        mmio.reset_done();
        vcpu.join().unwrap();
        assert_eq!(read32(&mmio, 0x70), 0);
    }

    #[test]
    fn a_closed_device_holds_nobody() {
        let mmio = mmio();
        negotiate(&mmio);
        write32(&mmio, 0x70, 15);
        mmio.take_demand();
        mmio.close();
        write32(&mmio, 0x70, 0);
    }

    proptest! {
        #[test]
        fn any_register_access_is_survived(
            accesses in proptest::collection::vec(
                (0u64..0x200, proptest::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..200),
        ) {
            let mmio = mmio();
            for (offset, mut data, write) in accesses {
                // Keep to one thread: nobody would end the wait for a reset.
                if let Some(DriverDemand::Start { .. }) = mmio.take_demand() {
                    mmio.lock().phase = WindowPhase::Idle;
                }
                if write { mmio.write(offset, &data) } else { mmio.read(offset, &mut data) }
            }
            let state = mmio.lock();
            prop_assert!(state.driver_features & !mmio.identity.features == 0
                || state.status & status::FEATURES_OK == 0);
            prop_assert!(state.queues.iter().all(|q| q.max_size <= 16));
        }
    }
}
