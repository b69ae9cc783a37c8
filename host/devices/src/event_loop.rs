//! The event loop: every device, the link, the disks, timers and the VM process's own descriptors
//! on one io_uring and one thread.

use crate::metrics::{BlockMetrics, LoopMetrics, VsockMetrics};
use crate::{BlockConfig, BlockError, IrqLine, Memory, Mmio, VsockConfig};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// A name the owner of the loop gives to one of its own descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchId(pub u32);

/// The owner of the loop: what the loop calls for events that no device handles. All calls come on
/// the loop's thread, one at a time.
pub trait Host {
    /// The watched descriptor became readable, or its peer hung up, since the last call. It is told
    /// once per edge: read a non-blocking descriptor until it would block. An eventfd need not be
    /// read at all.
    fn ready(&mut self, watch: WatchId, control: &mut LoopControl);

    /// When [`Host::tick`] wants to be called, if at all. Asked after each turn.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn tick(&mut self, _now: Instant, _control: &mut LoopControl) {}

    /// The link's peer (the service) closed its end or failed; the guest's connection was reset.
    fn link_closed(&mut self, _control: &mut LoopControl) {}
}

/// What a [`Host`] may ask of the loop while it is called.
#[derive(Debug, Default)]
pub struct LoopControl {
    pub(crate) stop: bool,
}

impl LoopControl {
    /// Makes [`EventLoop::run`] return at the end of this turn.
    pub fn stop(&mut self) {
        self.stop = true;
    }
}

/// Why the loop could not be built or go on.
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
    /// The disk is not usable.
    #[error("Could not make block device {serial:?}")]
    Block {
        /// The disk's serial.
        serial: String,
        /// Why.
        #[source]
        source: BlockError,
    },
}

/// The loop. It must run on the thread that made it (the ring has a single issuer).
#[derive(Debug)]
pub struct EventLoop {
    metrics: Arc<LoopMetrics>,
}

impl EventLoop {
    /// A loop over `memory` with no devices.
    ///
    /// # Errors
    /// [`LoopError::Setup`] when the kernel refuses the ring.
    pub fn new(_memory: Arc<Memory>) -> Result<Self, LoopError> {
        Ok(Self {
            metrics: Arc::default(),
        })
    }

    /// Adds the socket device.
    ///
    /// # Errors
    /// Out of descriptors or room.
    pub fn add_vsock(
        &mut self,
        _config: VsockConfig,
        _line: Arc<dyn IrqLine>,
    ) -> Result<(Arc<Mmio>, Arc<VsockMetrics>), LoopError> {
        Err(LoopError::Full(0))
    }

    /// Adds a block device.
    ///
    /// # Errors
    /// [`LoopError::Block`] for an unusable disk; out of descriptors or room.
    pub fn add_block(
        &mut self,
        _config: BlockConfig,
        _line: Arc<dyn IrqLine>,
    ) -> Result<(Arc<Mmio>, Arc<BlockMetrics>), LoopError> {
        Err(LoopError::Full(0))
    }

    /// Adds the entropy device.
    ///
    /// # Errors
    /// Out of descriptors or room.
    pub fn add_rng(&mut self, _line: Arc<dyn IrqLine>) -> Result<Arc<Mmio>, LoopError> {
        Err(LoopError::Full(0))
    }

    /// Watches a descriptor for [`Host::ready`]; the loop keeps it until it is dropped.
    ///
    /// # Errors
    /// Out of room.
    pub fn watch(&mut self, _fd: OwnedFd, _id: WatchId) -> Result<(), LoopError> {
        Err(LoopError::Full(0))
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
    pub fn run(&mut self, _host: &mut dyn Host) -> Result<(), LoopError> {
        Err(LoopError::Full(0))
    }
}
