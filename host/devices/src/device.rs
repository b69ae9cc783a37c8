//! What the event loop expects of a device, and what it lends to it.
//!
//! Life of a device: `start` (the driver is ready) → any of `kick`, `complete`, `tick`, each turn
//! closed by `turn` → `stop` (the driver resets it) → `complete` until `drained`. After `stop` and
//! before `drained` a device starts nothing that touches guest memory. A device can be started
//! again after a reset.
//!
//! The loop knows no kind of device. What only one kind has, its saved state, its files and sockets
//! ([`Attachment`]) and its contents ([`Contents`]), passes through it unseen. So a new kind is one
//! folder of this crate and one line where machines are assembled.

use crate::attachment::Attachment;
use crate::metrics::LoopMetrics;
use crate::mmio::DeviceIdentity;
use crate::ring::{IoPiece, IoRing, OpCompletion, OpTarget, OpToken};
use crate::state::{DeviceKind, StateRefusal};
use crate::{Contents, Memory, MmioWindow, interrupt};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;
use virtio_queue::{Queue, QueueT};

/// The queue or a chain on it cannot be served any more: the device must be reset by its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenQueue;

impl From<virtio_queue::Error> for BrokenQueue {
    fn from(_: virtio_queue::Error) -> Self {
        Self
    }
}

/// What stops a device, or everything.
#[derive(Debug)]
pub enum DeviceFault {
    /// The driver broke the rules.
    Queue(BrokenQueue),
    /// The ring cannot take operations: the host's fault.
    IoRing(io::Error),
}

impl From<BrokenQueue> for DeviceFault {
    fn from(broken: BrokenQueue) -> Self {
        Self::Queue(broken)
    }
}

impl From<virtio_queue::Error> for DeviceFault {
    fn from(_: virtio_queue::Error) -> Self {
        Self::Queue(BrokenQueue)
    }
}

impl From<io::Error> for DeviceFault {
    fn from(error: io::Error) -> Self {
        Self::IoRing(error)
    }
}

/// Whether a device has more to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextTurn {
    /// Wait for an event.
    Wait,
    /// The budget of this turn is used up; take another turn without waiting.
    Again,
}

/// A device on the event loop.
///
/// A device that needs nothing but its queues implements the methods without a body here; the
/// others are for devices with operations in flight, saved state, attachments or contents.
pub trait Device: std::fmt::Debug {
    /// What it is called, and the tag that its saved state begins with.
    fn kind(&self) -> DeviceKind;

    /// What the driver finds in the registers.
    fn identity(&self) -> DeviceIdentity;

    /// The driver is ready. `queues` are as many as the device's identity says and valid;
    /// `None` for those the driver did not make ready.
    fn start(
        &mut self,
        queues: Vec<Option<Queue>>,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault>;

    /// The driver notified a queue.
    fn kick(&mut self, queue: usize, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault>;

    /// An operation of this device completed.
    fn complete(
        &mut self,
        _done: OpCompletion,
        _cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        Ok(())
    }

    /// All events of this turn have been delivered: do the work, in bounded measure.
    fn turn(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault>;

    /// When [`Device::turn`] should be called even without an event.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The driver resets the device: drop the queues, begin nothing new.
    fn stop(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault>;

    /// No operation in flight touches guest memory.
    fn drained(&self) -> bool {
        true
    }

    /// The machine is about to be reset: as [`Device::stop`], and lets go of its attachment.
    fn clear(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.stop(cx)
    }

    /// Nothing that was in flight at [`Device::clear`] is left.
    fn cleared(&self) -> bool {
        self.drained()
    }

    /// Makes a cleared device like a new one, with an attachment of its own kind.
    ///
    /// # Errors
    /// The attachment is of another kind, or cannot be used.
    fn reset(&mut self, attachment: Attachment) -> io::Result<()> {
        attachment.take::<()>()
    }

    /// Takes the place of [`Device::turn`] when the machine is about to be saved: finishes what
    /// was taken from the driver and reports what is done, takes nothing new.
    fn settle(&mut self, _cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        Ok(())
    }

    /// All that was taken from the driver is done and reported.
    fn settled(&self) -> bool {
        self.drained()
    }

    /// The queues by number, as far as they are served.
    fn queues(&self) -> Vec<Option<&Queue>>;

    /// Appends what is to be saved besides registers and queues. A device that is not `running` has
    /// nothing to say to its driver.
    ///
    /// # Errors
    /// The state does not become bytes.
    fn save(&self, _running: bool, into: Vec<u8>) -> postcard::Result<Vec<u8>> {
        Ok(into)
    }

    /// Takes over what another device of its kind saved, off the head of `saved`. It has not been
    /// started; it will be if the saved one was running.
    ///
    /// # Errors
    /// The bytes are no state that this device can have.
    fn load(&mut self, _saved: &mut &[u8]) -> Result<(), StateRefusal> {
        Ok(())
    }

    /// Whether a state may say nothing of it: one that was saved before there was this kind. The
    /// device is then as if no driver had found it, which is so: the saved guest knows of none.
    fn may_be_missing(&self) -> bool {
        false
    }

    /// Refuses a loaded state that only a running device can have.
    ///
    /// # Errors
    /// It is one.
    fn check_idle(&self) -> Result<(), StateRefusal> {
        Ok(())
    }

    /// What it holds besides its state and has to be copied to a file, as a disk's changed blocks.
    /// A device that has any loads it by [`Device::load`], also for a machine that boots.
    fn contents(&self) -> Option<Box<dyn Contents>> {
        None
    }
}

/// What the loop lends to a device for one call.
#[derive(Debug)]
pub struct DeviceContext<'a> {
    pub(crate) ring: &'a mut IoRing,
    pub(crate) memory: &'a Memory,
    pub(crate) mmio: &'a MmioWindow,
    pub(crate) index: usize,
    pub(crate) metrics: &'a LoopMetrics,
    /// Set by a device whose attachment's other end is gone.
    pub(crate) peer_closed: &'a mut bool,
    /// When this turn began.
    pub(crate) now: Instant,
}

/// What became of an operation on guest memory.
pub(crate) type PushResult = Result<Result<(), Vec<IoPiece>>, io::Error>;

impl DeviceContext<'_> {
    fn token(&self, key: u32) -> OpToken {
        OpToken {
            target: OpTarget::Device(self.index),
            key,
        }
    }

    /// Notifies the driver to look at its queues, by the ring's next system call if possible.
    pub(crate) fn interrupt(&mut self) -> Result<(), DeviceFault> {
        self.metrics.interrupts.add(1);
        let interrupt = self.mmio.interrupt();
        interrupt.set(interrupt::USED_BUFFER);
        match interrupt.line().eventfd() {
            Some(eventfd) => self.ring.signal(eventfd)?,
            None => {
                self.metrics.syscalls.add(1);
                interrupt.line().raise();
            }
        }
        Ok(())
    }

    /// Interrupts if the driver wants to know what was added to `queue` since the last time.
    pub(crate) fn interrupt_if_needed(&mut self, queue: &mut Queue) -> Result<(), DeviceFault> {
        if queue.needs_notification(self.memory)? {
            self.interrupt()?;
        }
        Ok(())
    }

    /// Begins to receive from a socket again and again.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, key: u32) -> Result<(), DeviceFault> {
        let token = self.token(key);
        Ok(self.ring.receive(fd, token)?)
    }

    /// See [`IoRing::send`]; the inner error returns the pieces of which one is not guest memory.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        pieces: Vec<IoPiece>,
        key: u32,
    ) -> PushResult {
        let token = self.token(key);
        Ok(self
            .ring
            .send(fd, pieces, token)?
            .map_err(|(_, pieces)| pieces))
    }

    /// See [`IoRing::read`].
    pub(crate) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        pieces: Vec<IoPiece>,
        offset: u64,
        key: u32,
    ) -> PushResult {
        let token = self.token(key);
        Ok(self
            .ring
            .read(fd, pieces, offset, token)?
            .map_err(|(_, pieces)| pieces))
    }

    /// See [`IoRing::write`].
    pub(crate) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        pieces: Vec<IoPiece>,
        offset: u64,
        key: u32,
    ) -> PushResult {
        let token = self.token(key);
        Ok(self
            .ring
            .write(fd, pieces, offset, token)?
            .map_err(|(_, pieces)| pieces))
    }

    /// Cancels this device's operation `key`, whose completion says what became of it.
    pub(crate) fn cancel(&mut self, key: u32) -> Result<(), DeviceFault> {
        let token = self.token(key);
        Ok(self.ring.cancel(token)?)
    }

    /// See [`IoRing::punch_hole`].
    pub(crate) fn punch_hole(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        key: u32,
    ) -> Result<(), DeviceFault> {
        let token = self.token(key);
        Ok(self.ring.punch_hole(fd, offset, len, token)?)
    }
}
