//! The messages.

use crate::spec::{ResetSpec, SaveSpec, VmSpec};
use serde::{Deserialize, Serialize};

/// Most bytes of console output in an [`ExitReport`].
pub const MAX_CONSOLE_TAIL: usize = 8 * 1024;

/// From the service to a VM process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Build the machine. Answered by [`Event::Configured`] or [`Event::Failed`]. Once only.
    Configure(Box<VmSpec>),
    /// Run the vCPUs, for the first time or on after a [`Request::Save`]. Not answered, but by
    /// [`Event::Failed`] where there is nothing to run: the guest is heard soon enough, and a claim
    /// would pay for waking the service.
    Start,
    /// Pause the machine and write all of its state. Answered by [`Event::Saved`], after
    /// which it is paused until [`Request::Start`] or [`Request::Stop`]; or by
    /// [`Event::SaveFailed`], after which it runs on as before. With [`SaveSpec::ahead`] it first
    /// answers [`Event::CopiedAhead`], and is not paused before [`Request::Pause`].
    Save(SaveSpec),
    /// Go on with a save whose memory was copied ahead.
    Pause,
    /// Reset the machine to a restore point over the same base memory, with another link. Answered
    /// by [`Event::Reset`], after which it is paused as one that has just been configured is; or by
    /// [`Event::ResetFailed`], after which it is as it was before. When it fails half way the
    /// machine ends.
    Reset(ResetSpec),
    /// Ask for counters. Answered by [`Event::Stats`].
    Stats,
    /// End the machine at once. Answered by [`Event::Exited`], then end-of-file.
    Stop,
}

/// What was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Copying ahead while the machine ran, nanoseconds; 0 where that was not asked for, or not
    /// possible.
    pub ahead_ns: u64,
    /// From there, or from the request's arrival, to the vCPUs being paused, nanoseconds.
    pub park_ns: u64,
    /// From there to everything being written, nanoseconds.
    pub write_ns: u64,
    /// Pages of memory that were written, 4 KiB each.
    pub memory_pages: u64,
    /// How many pages of memory were looked at while the machine was paused.
    pub quiesced_pages: u64,
    /// Blocks of all disks that were written, 4 KiB each.
    pub disk_blocks: u64,
}

/// What a reset did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// From the request's arrival to everything being paused, nanoseconds.
    pub park_ns: u64,
    /// From there to the machine being reset, nanoseconds.
    pub reset_ns: u64,
    /// Pages of memory that are the base memory's again, 4 KiB each.
    pub dropped_pages: u64,
    /// Pages of memory that were written from the layer.
    pub written_pages: u64,
}

/// From a VM process to the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The machine is built and has not run.
    Configured(Configured),
    /// Counters, as asked.
    Stats(VmStats),
    /// What can be copied of the machine's memory while it runs has been, or nothing can; it runs
    /// on until [`Request::Pause`].
    CopiedAhead,
    /// The machine is saved and paused.
    Saved(Saved),
    /// The machine could not be saved and runs on.
    SaveFailed {
        /// What was tried, with which values, and why it failed.
        message: String,
    },
    /// The machine is reset and paused.
    Reset(Reset),
    /// The machine could not be reset and is as it was.
    ResetFailed {
        /// What was tried, with which values, and why it failed.
        message: String,
    },
    /// The machine has ended; the process follows.
    Exited(ExitReport),
    /// A request could not be done; the process ends after [`Request::Configure`] failed.
    Failed {
        /// What was tried, with which values, and why it failed.
        message: String,
    },
}

/// What building took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// From the request's arrival to the machine being ready to run, nanoseconds.
    pub build_ns: u64,
}

/// Counters of one VM process since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// Exits from the guest, all vCPUs, most of which the kernel handles by itself; where KVM does
    /// not count them, those that reached the VM process.
    pub vm_exits: u64,
    /// Port and memory-mapped accesses that reached the VM process.
    pub io_exits: u64,
    /// `io_uring_enter` calls of the event loop.
    pub ring_enters: u64,
    /// Other system calls of the event loop.
    pub loop_syscalls: u64,
    /// Bytes from the guest over vsock.
    pub vsock_rx_bytes: u64,
    /// Bytes to the guest over vsock.
    pub vsock_tx_bytes: u64,
    /// Blocks of the private disk layers that hold data, in 4 KiB units.
    pub layer_blocks: u64,
    /// Host CPU time of the VM process, nanoseconds.
    pub cpu_ns: u64,
    /// Guest memory that has been touched, KiB.
    pub guest_resident_kib: u64,
    /// Unique memory of the VM process outside guest memory, KiB.
    pub overhead_kib: u64,
    /// CLOCK_MONOTONIC nanoseconds when the first vCPU entered the guest; 0 before.
    pub first_run_ns: u64,
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    /// [`Request::Stop`], or the service went away.
    Stopped,
    /// The guest powered off or rebooted in an orderly way.
    GuestShutdown,
    /// The guest kernel panicked.
    GuestPanic,
    /// PID 1 in the guest ended, which panics the kernel.
    AgentDied,
    /// The guest's processor reset itself (triple fault).
    TripleFault,
    /// KVM could not run the guest any further.
    KvmInternalError {
        /// KVM's suberror number, `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// The host or the VM process failed; the guest is not to blame.
    HostFault {
        /// What failed.
        message: String,
    },
}

/// The last word of a VM process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Why it ended.
    pub cause: ExitCause,
    /// The end of the guest's console output, at most [`MAX_CONSOLE_TAIL`] bytes, not trusted.
    pub console_tail: Vec<u8>,
    /// Counters at the end.
    pub stats: VmStats,
}
