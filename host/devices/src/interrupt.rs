//! How a device says "look at your queues" (virtio 1.2 §4.2.3.4).

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// An edge-triggered interrupt line into the guest.
pub trait IrqLine: Send + Sync {
    /// Raises one edge.
    fn raise(&self);

    /// The eventfd whose counter being increased raises the line, if there is one. It must be
    /// non-blocking. With it the event loop raises the line in the same system call that submits
    /// the rest of its work; without it each interrupt costs one call of [`IrqLine::raise`].
    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// `InterruptStatus` bit: a used buffer was added to a queue.
pub(crate) const USED_BUFFER: u32 = 1;
/// `InterruptStatus` bit: the device's configuration changed.
pub(crate) const CONFIG_CHANGE: u32 = 2;

/// The interrupt of one virtio-mmio device: its status register and its line.
pub(crate) struct Interrupt {
    status: AtomicU32,
    line: Arc<dyn IrqLine>,
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Interrupt {
    pub(crate) fn new(line: Arc<dyn IrqLine>) -> Self {
        Self {
            status: AtomicU32::new(0),
            line,
        }
    }

    /// What the driver reads from `InterruptStatus`.
    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver wrote `bits` to `InterruptACK`.
    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
    }

    /// Sets `bits` without raising the line: the caller raises it.
    pub(crate) fn set(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// Sets `bits` and raises the line by the slow way.
    pub(crate) fn raise(&self, bits: u32) {
        self.set(bits);
        self.line.raise();
    }

    pub(crate) fn line(&self) -> &dyn IrqLine {
        &*self.line
    }
}
