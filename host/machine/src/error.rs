//! What can go wrong with a machine.

use vmm_sys_util::errno;

/// Why a machine could not be made, wired or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` does not open.
    #[error("/dev/kvm does not open: load kvm_amd or kvm_intel, and give this user access to it")]
    Open(#[source] errno::Error),
    /// The host's KVM speaks another interface.
    #[error("KVM API version is {0}, needed is 12")]
    ApiVersion(i32),
    /// The host's KVM lacks something we need.
    #[error("KVM lacks {}: a newer host kernel is needed", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A KVM call failed.
    #[error("{call} failed ({with})")]
    Ioctl {
        /// The ioctl's name.
        call: &'static str,
        /// With which values.
        with: String,
        /// What the kernel said.
        #[source]
        source: errno::Error,
    },
    /// Guest memory could not be mapped.
    #[error("Mapping {bytes} bytes of guest memory at {base:#x} failed")]
    Map {
        /// Guest-physical start.
        base: u64,
        /// Length.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// Guest memory could not be arranged.
    #[error("{0} bytes of guest memory cannot be laid out")]
    Layout(u64),
    /// Pages could not be made the base memory's again, or the machine's own.
    #[error("madvise {advice:?} of {bytes} bytes of guest memory at {offset:#x} failed")]
    Advise {
        /// What was asked.
        advice: rustix::mm::Advice,
        /// Offset in the whole memory.
        offset: u64,
        /// How many.
        bytes: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Pages could not be overwritten with the base memory's.
    #[error("Reading {bytes} bytes at {offset:#x} of the base memory into guest memory failed")]
    Restore {
        /// Offset in the whole memory.
        offset: u64,
        /// How many.
        bytes: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A write into guest memory failed.
    #[error("Writing {what} at guest address {address:#x} failed: is guest memory too small?")]
    Write {
        /// What was written.
        what: &'static str,
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// The kernel image is not loadable.
    #[error("The kernel is not an x86-64 ELF vmlinux that fits into guest memory")]
    Kernel(#[source] linux_loader::loader::Error),
    /// The kernel image has no readable header.
    #[error("The kernel's ELF header cannot be read: is the file complete?")]
    KernelHeader(#[source] std::io::Error),
    /// The command line is too long.
    #[error("Kernel command line of {0} bytes is over {max}", max = crate::layout::CMDLINE_MAX - 1)]
    Cmdline(usize),
    /// The initrd does not fit behind the kernel.
    #[error("An initrd of {bytes} bytes does not fit at {start:#x} into {ram} bytes of low memory")]
    Initrd {
        /// Its length.
        bytes: u64,
        /// Where it would start.
        start: u64,
        /// Low memory.
        ram: u64,
    },
    /// The ACPI tables outgrow their place.
    #[error("ACPI tables of {0} bytes do not fit")]
    Acpi(usize),
    /// Two devices claim one address.
    #[error("Bus range {base:#x}+{len:#x} overlaps another, is empty or wraps")]
    BusOverlap {
        /// Start.
        base: u64,
        /// Length.
        len: u64,
    },
    /// No such interrupt line.
    #[error("Interrupt line {0} is not below {max}", max = crate::layout::GSI_COUNT)]
    Gsi(u32),
    /// A vCPU thread could not be started or signalled.
    #[error("vCPU {index} thread: {what}")]
    Thread {
        /// Which vCPU.
        index: u8,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A vCPU was to be looked at while its thread has it, or after its end.
    #[error("vCPU {index} is not parked")]
    NotParked {
        /// Which vCPU.
        index: u8,
    },
    /// A saved state does not belong into this machine, or is damaged.
    #[error("Saved state of {of}: {what} is {found}, this machine takes {wanted}")]
    State {
        /// Of what: a vCPU, the machine.
        of: String,
        /// Which part.
        what: &'static str,
        /// What the state has.
        found: String,
        /// What would do.
        wanted: String,
    },
}

/// `Result` with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the call and its values beside the kernel's error number.
pub(crate) fn ioctl(
    call: &'static str,
    with: impl Into<String>,
) -> impl FnOnce(errno::Error) -> Error {
    let with = with.into();
    move |source| Error::Ioctl { call, with, source }
}
