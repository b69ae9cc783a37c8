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
use crate::mmio::Identity;
use crate::ring::{Completion, Piece, Ring, Target, Token};
use crate::state::{Kind, Refused};
use crate::{Contents, Memory, Mmio, interrupt};
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
pub enum Trouble {
    /// The driver broke the rules.
    Queue(BrokenQueue),
    /// The ring cannot take operations: the host's fault.
    Ring(io::Error),
}

impl From<BrokenQueue> for Trouble {
    fn from(broken: BrokenQueue) -> Self {
        Self::Queue(broken)
    }
}

impl From<virtio_queue::Error> for Trouble {
    fn from(_: virtio_queue::Error) -> Self {
        Self::Queue(BrokenQueue)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Ring(error)
    }
}

/// Whether a device has more to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for an event.
    Wait,
    /// The budget of this turn is used up; take another turn without waiting.
    Again,
}

/// A device on the event loop.
///
/// A device that needs nothing but its queues implements the methods without a body here; the others
/// are for devices with operations in flight, saved state, attachments or contents.
pub trait Device: std::fmt::Debug {
    /// What it is called, and how its saved state is told from that of other kinds.
    fn kind(&self) -> Kind;

    /// What the driver finds in the registers.
    fn identity(&self) -> Identity;

    /// The driver is ready. `queues` are as many as the device's identity says and valid;
    /// `None` for those the driver did not make ready.
    fn start(&mut self, queues: Vec<Option<Queue>>, cx: &mut Context<'_>) -> Result<(), Trouble>;

    /// The driver notified a queue.
    fn kick(&mut self, queue: usize, cx: &mut Context<'_>) -> Result<(), Trouble>;

    /// An operation of this device completed.
    fn complete(&mut self, _done: Completion, _cx: &mut Context<'_>) -> Result<(), Trouble> {
        Ok(())
    }

    /// All events of this turn have been told: do the work, in bounded measure.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Next, Trouble>;

    /// When [`Device::turn`] should be called even without an event.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The driver resets the device: drop the queues, begin nothing new.
    fn stop(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble>;

    /// No operation in flight touches guest memory.
    fn drained(&self) -> bool {
        true
    }

    /// The machine is about to be reset: as [`Device::stop`], and lets go of its attachment.
    fn clear(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble> {
        self.stop(cx)
    }

    /// Nothing of what was begun before [`Device::clear`] is left.
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

    /// Takes the place of [`Device::turn`] when the machine is about to be saved: goes on with what
    /// was taken from the driver and reports what is done, takes nothing new.
    fn settle(&mut self, _cx: &mut Context<'_>) -> Result<(), Trouble> {
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
    fn load(&mut self, _saved: &mut &[u8]) -> Result<(), Refused> {
        Ok(())
    }

    /// Refuses a loaded state that only a running device can have.
    ///
    /// # Errors
    /// It is one.
    fn check_idle(&self) -> Result<(), Refused> {
        Ok(())
    }

    /// What it holds besides its state and has to be copied to a file, as a disk's changed blocks.
    fn contents(&self) -> Option<Box<dyn Contents>> {
        None
    }

    /// As [`Device::load`], but takes over only what [`Device::contents`] were, for a machine that
    /// boots with the contents of another one.
    ///
    /// # Errors
    /// As [`Device::load`].
    fn load_contents(&mut self, _saved: &mut &[u8]) -> Result<(), Refused> {
        Ok(())
    }
}

/// What the loop lends to a device for one call.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) ring: &'a mut Ring,
    pub(crate) memory: &'a Memory,
    pub(crate) mmio: &'a Mmio,
    pub(crate) index: usize,
    pub(crate) metrics: &'a LoopMetrics,
    /// Set by a device whose attachment's other end is gone.
    pub(crate) peer_closed: &'a mut bool,
    /// When this turn began.
    pub(crate) now: Instant,
}

/// What became of an operation on guest memory.
pub(crate) type Pushed = Result<Result<(), Vec<Piece>>, io::Error>;

impl Context<'_> {
    fn token(&self, key: u32) -> Token {
        Token {
            target: Target::Device(self.index),
            key,
        }
    }

    /// Tells the driver to look at its queues, by the ring's next system call if possible.
    pub(crate) fn interrupt(&mut self) -> Result<(), Trouble> {
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
    pub(crate) fn interrupt_if_needed(&mut self, queue: &mut Queue) -> Result<(), Trouble> {
        if queue.needs_notification(self.memory)? {
            self.interrupt()?;
        }
        Ok(())
    }

    /// Begins to receive from a socket again and again.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, key: u32) -> Result<(), Trouble> {
        let token = self.token(key);
        Ok(self.ring.receive(fd, token)?)
    }

    /// See [`Ring::send`]; the inner error returns the pieces of which one is not guest memory.
    pub(crate) fn send(&mut self, fd: BorrowedFd<'_>, pieces: Vec<Piece>, key: u32) -> Pushed {
        let token = self.token(key);
        Ok(self
            .ring
            .send(fd, pieces, token)?
            .map_err(|(_, pieces)| pieces))
    }

    /// See [`Ring::read`].
    pub(crate) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        pieces: Vec<Piece>,
        offset: u64,
        key: u32,
    ) -> Pushed {
        let token = self.token(key);
        Ok(self
            .ring
            .read(fd, pieces, offset, token)?
            .map_err(|(_, pieces)| pieces))
    }

    /// See [`Ring::write`].
    pub(crate) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        pieces: Vec<Piece>,
        offset: u64,
        key: u32,
    ) -> Pushed {
        let token = self.token(key);
        Ok(self
            .ring
            .write(fd, pieces, offset, token)?
            .map_err(|(_, pieces)| pieces))
    }

    /// Cancels this device's operation `key`, whose completion will tell.
    pub(crate) fn cancel(&mut self, key: u32) -> Result<(), Trouble> {
        let token = self.token(key);
        Ok(self.ring.cancel(token)?)
    }

    /// See [`Ring::punch_hole`].
    pub(crate) fn punch_hole(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        key: u32,
    ) -> Result<(), Trouble> {
        let token = self.token(key);
        Ok(self.ring.punch_hole(fd, offset, len, token)?)
    }
}
