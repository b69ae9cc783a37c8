//! A machine: KVM objects, guest memory, processors, address buses, and what a Linux guest finds
//! at its start.
//!
//! ```text
//! Kvm::open ─> Vm::new ─> boot::load_linux ─> irq_line, doorbell ─> VcpuThread::spawn ─> run
//!              slots,      kernel, initrd,     last: nothing may
//!              irqchip,    ACPI tables         touch slots now
//!              vCPUs
//! ```
//!
//! **Architecture invariant:** this crate never names a device. A device reaches it as a
//! [`BusDevice`], an eventfd, or a line of an ACPI table. It holds no policy: what an exit means
//! for the sandbox is decided by its caller.

pub mod acpi;
pub mod boot;
mod bus;
mod contract;
mod cpuid;
mod error;
mod exit;
mod irq;
mod keep;
mod kvm;
mod kvm_stats;
pub mod layout;
mod memory;
mod msr;
mod prefault;
pub mod probe;
mod save;
mod state;
mod thread;
mod vcpu;
mod vm;

pub use bus::{Bus, BusDevice};
pub use contract::{CpuContract, CpuContractV2, CpuMismatch, XsavePart};
pub use error::{Error, Result};
pub use exit::Exit;
pub use irq::{IrqRoutes, Msi};
pub use kvm::{API_VERSION, Kvm, OPTIONAL, REQUIRED};
pub use memory::{Backing, GuestRam, HugePages, Memory, MemorySpec};
pub use state::{VcpuStateV1, VmStateV1};
pub use thread::{VcpuCounters, VcpuThread, Wiring, monotonic_ns};
pub use vcpu::Vcpu;
pub use vm::{MachineSpec, Vm};
