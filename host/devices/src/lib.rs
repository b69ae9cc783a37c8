//! The devices of one sandbox, and the one thread that serves them.
//!
//! ```text
//!  vCPU threads                         event loop thread (one io_uring)
//!  ------------                         --------------------------------
//!  register access --> [MmioWindow] --attention --> activate / reset
//!  queue kick ------------------ ioeventfd --------> device: vsock | block | rng | net
//!  interrupt  <----------------- [IrqLine] ---------   |        |           |
//!  port I/O --> [Console], [ResetPort]              link sock  base + layer  frame socket
//!  IOAPIC   --> [Ioapic] --> [IrqRoutes]            [LoopHost]: control socket, VM's own eventfds
//! ```
//!
//! A [`Device`] is added to an [`EventLoop`], which gives its register window ([`MmioWindow`]). The
//! window goes to the address map of the vCPUs; its [`Notifier`]s become ioeventfds. Everything
//! else happens on the thread that calls [`EventLoop::run`].
//!
//! **Architecture invariant:** this crate never names KVM. An interrupt is a one-method trait,
//! guest memory is `vm-memory`, a queue notification is an eventfd.

mod attachment;
mod block;
mod chain;
mod console;
mod device;
mod event_loop;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod interrupt;
mod ioapic;
mod memory;
mod metrics;
mod mmio;
mod net;
mod queue_pair;
mod reset;
mod ring;
mod rng;
mod state;
#[cfg(test)]
mod sum_device;
#[cfg(any(test, feature = "fuzz"))]
mod testing;
mod vsock;

pub use attachment::{Attachment, Contents};
pub use block::{Block, BlockConfig, BlockError, DiskParent};
pub use console::{Console, LineSink};
pub use device::Device;
pub use event_loop::{EventLoop, LoopControl, LoopError, LoopHost, WatchId};
pub use interrupt::IrqLine;
pub use ioapic::{IOAPIC_PINS, IOAPIC_WINDOW, Ioapic, IrqRoutes, MsiRoute};
pub use memory::Memory;
pub use metrics::{BlockMetrics, Counter, LoopMetrics, NetMetrics, VsockMetrics};
pub use mmio::{INTERRUPT_ACK, MMIO_WINDOW, MmioWindow, Notifier, QUEUE_NOTIFY};
pub use net::{FrameSocket, Net};
pub use reset::ResetPort;
pub use rng::Rng;
pub use state::{LoadError, SaveError, SavedDevices};
pub use vsock::{SavedConnection, Vsock, VsockConfig, VsockLink};
