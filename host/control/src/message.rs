//! The messages, and the one gate that makes a [`VmSpec`] valid.

use serde::{Deserialize, Serialize};

/// Most vCPUs a sandbox may have.
pub const MAX_VCPUS: u8 = 8;
/// Least guest memory, MiB.
pub const MIN_MEMORY_MIB: u32 = 128;
/// Most guest memory, MiB.
pub const MAX_MEMORY_MIB: u32 = 16 * 1024;
/// Most disks of one sandbox.
pub const MAX_DISKS: usize = 4;
/// Most bytes of console output in an [`ExitReport`].
pub const MAX_CONSOLE_TAIL: usize = 8 * 1024;
const MAX_ID: usize = 64;
const MAX_CMDLINE: usize = 1024;

/// Position of a descriptor among those that came with the same packet.
pub type FdIndex = u8;

/// From the service to a VM process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Build the machine. Answered by [`Event::Configured`] or [`Event::Failed`]. Once only.
    Configure(Box<VmSpec>),
    /// Run the vCPUs, for the first time or on after a [`Request::Save`]. Not answered, but by
    /// [`Event::Failed`] where there is nothing to run: the guest is heard soon enough, and a claim would
    /// pay for waking the service.
    Start,
    /// Bring the machine to a halt and write all of its state. Answered by [`Event::Saved`], after
    /// which it stands still until [`Request::Start`] or [`Request::Stop`]; or by
    /// [`Event::SaveFailed`], after which it runs on as before.
    Save(SaveSpec),
    /// Put the machine back to a moment at which a machine over the same golden file was saved, with
    /// another link. Answered by [`Event::Reset`], after which it stands still as one that has just
    /// been configured does; or by [`Event::ResetFailed`], after which it is as it was before. When it
    /// fails half way the machine ends.
    Reset(ResetSpec),
    /// Ask for counters. Answered by [`Event::Stats`].
    Stats,
    /// End the machine at once. Answered by [`Event::Exited`], then end-of-file.
    Stop,
}

/// Everything a VM process needs to build a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The sandbox's id, for logs: `[a-z0-9]`, at most 64 bytes.
    pub sandbox_id: String,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// Where its memory and processors begin.
    pub origin: Origin,
    /// A connected stream socket: the byte stream between the service and the agent.
    pub link: FdIndex,
    /// Disks in the order the guest sees them (`vda`, `vdb`, …).
    pub disks: Vec<DiskSpec>,
}

/// Where a machine begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// At a kernel's entry, with empty memory.
    Boot {
        /// An ELF `vmlinux`, open for reading.
        kernel: FdIndex,
        /// The agent's ELF, open for reading; the VM process puts it into the guest as `/init`.
        agent: FdIndex,
        /// Added to the kernel command line that the VM process composes.
        cmdline_extra: String,
        /// The section file of another machine with the same disks: it says which blocks the
        /// disks' parents hold. `None`: they have no parents.
        disks: Option<FdIndex>,
    },
    /// Where another machine of the same shape was saved.
    Snapshot {
        /// The golden file: all of its memory, sealed. Mapped, never written.
        memory: FdIndex,
        /// Its section file.
        state: FdIndex,
        /// A layer file with memory that differs from the golden file; copied in.
        layer: Option<FdIndex>,
        /// What becomes of the agent's connection that was open then.
        link: SavedLink,
        /// Its state, when it is saved, names exactly the pages that it has used and written.
        trial: bool,
    },
    /// The same with memory that is not resident: a pager brings it while the machine runs.
    Lazy {
        /// The machine's end of a socket to the pager, which has been told whose memory it is.
        pager: FdIndex,
        /// `/dev/userfaultfd`, open for reading and writing.
        userfaultfd: FdIndex,
        /// Its section file.
        state: FdIndex,
        /// What becomes of the agent's connection that was open then.
        link: SavedLink,
    },
}

/// What becomes of a saved connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedLink {
    /// It goes on over the new link: both sides know that nothing was under way.
    Kept,
    /// The guest is told that it broke; the agent calls again and says Hello.
    Broken,
}

/// Where the parts of a machine are to be written: empty files, open for reading and writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveSpec {
    /// For the layer of memory that is not the golden file's (all of it, if the machine booted).
    pub memory: FdIndex,
    /// For the section file.
    pub state: FdIndex,
    /// For each disk's flat layer, in the order of the disks: what is not the base image's, each
    /// block at its place.
    pub disks: Vec<FdIndex>,
    /// Whether memory is to be copied ahead while the machine runs, so that it stands still only for
    /// what it writes meanwhile. All in all that is more work.
    pub ahead: bool,
}

/// What was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Copying ahead while the machine ran, nanoseconds; 0 where that was not asked for, or not possible.
    pub ahead_ns: u64,
    /// From there, or from the request's arrival, to the vCPUs standing still, nanoseconds.
    pub park_ns: u64,
    /// From there to everything being written, nanoseconds.
    pub write_ns: u64,
    /// Pages of memory that were written, 4 KiB each.
    pub memory_pages: u64,
    /// How many pages of memory were looked at while the machine stood still.
    pub still_pages: u64,
    /// Blocks of all disks that were written, 4 KiB each.
    pub disk_blocks: u64,
}

/// The moment a machine is put back to. Its golden file is the one it was configured with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetSpec {
    /// The section file.
    pub state: FdIndex,
    /// A layer file with memory that differs from the golden file; copied in.
    pub layer: Option<FdIndex>,
    /// A connected stream socket that takes the place of the link.
    pub link: FdIndex,
    /// What becomes of the agent's connection that was open then.
    pub after: SavedLink,
    /// Each disk's flat layer, in the order of the disks: see [`DiskSpec::parent`].
    pub disks: Vec<Option<FdIndex>>,
}

/// What was put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// From the request's arrival to everything standing still, nanoseconds.
    pub park_ns: u64,
    /// From there to the machine being back, nanoseconds.
    pub reset_ns: u64,
    /// Pages of memory that are the golden file's again, 4 KiB each.
    pub dropped_pages: u64,
    /// Pages of memory that were written from the layer.
    pub written_pages: u64,
}

/// One virtio block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The shared image, open for reading; never written.
    pub base: FdIndex,
    /// The flat layer of a saved machine's disk, open for reading; never written. The section file
    /// in the [`Origin`] says which blocks it holds.
    pub parent: Option<FdIndex>,
    /// The private layer that takes writes: an empty file, open for reading and writing. `None`
    /// makes the disk read-only.
    pub layer: Option<FdIndex>,
    /// The size the guest sees, bytes, a multiple of 4096 and not less than the base image.
    pub size: u64,
}

/// Why a [`VmSpec`] is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// The id is empty, too long or has other characters than `[a-z0-9]`.
    #[error("Sandbox id {0:?} is not 1 to {MAX_ID} characters of [a-z0-9]")]
    Id(String),
    /// vCPU count out of range.
    #[error("{0} vCPUs asked, 1 to {MAX_VCPUS} are possible")]
    Vcpus(u8),
    /// Memory size out of range.
    #[error("{0} MiB of memory asked, {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} are possible")]
    Memory(u32),
    /// Kernel command line too long or not printable ASCII.
    #[error("Extra kernel command line of {0} bytes is over {MAX_CMDLINE} or not printable ASCII")]
    Cmdline(usize),
    /// Too many disks.
    #[error("{0} disks asked, at most {MAX_DISKS} are possible")]
    Disks(usize),
    /// A descriptor index has no descriptor, or two uses share one.
    #[error("Descriptor index {index} is used twice or is not among the {count} that came along")]
    Fd {
        /// The index.
        index: FdIndex,
        /// How many descriptors came with the packet.
        count: usize,
    },
    /// A disk size that is zero or not a multiple of 4096.
    #[error("Disk size {0} is not a positive multiple of 4096")]
    DiskSize(u64),
}

impl VmSpec {
    /// Checks every field, with `fds` descriptors having come along.
    ///
    /// # Errors
    /// The first field that is out of bounds.
    pub fn check(&self, fds: usize) -> Result<(), SpecError> {
        let id = &self.sandbox_id;
        let id_ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(id_ok) {
            return Err(SpecError::Id(id.chars().take(MAX_ID).collect()));
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(SpecError::Vcpus(self.vcpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        if let Origin::Boot { cmdline_extra, .. } = &self.origin {
            let printable = |b: u8| (0x20..0x7f).contains(&b);
            if cmdline_extra.len() > MAX_CMDLINE || !cmdline_extra.bytes().all(printable) {
                return Err(SpecError::Cmdline(cmdline_extra.len()));
            }
        }
        if self.disks.len() > MAX_DISKS {
            return Err(SpecError::Disks(self.disks.len()));
        }
        if let Some(d) = self
            .disks
            .iter()
            .find(|d| d.size == 0 || d.size % 4096 != 0)
        {
            return Err(SpecError::DiskSize(d.size));
        }
        self.check_fds(fds)
    }

    /// Layers and the link are private; base images, kernels and snapshots may be shared by
    /// several uses, but here each index is used once so that each use owns its descriptor.
    fn check_fds(&self, count: usize) -> Result<(), SpecError> {
        let mut used = [false; u8::MAX as usize + 1];
        let origin = match self.origin {
            Origin::Boot {
                kernel,
                agent,
                disks,
                ..
            } => [Some(kernel), Some(agent), disks],
            Origin::Snapshot {
                memory,
                state,
                layer,
                ..
            } => [Some(memory), Some(state), layer],
            Origin::Lazy {
                pager,
                userfaultfd,
                state,
                ..
            } => [Some(pager), Some(userfaultfd), Some(state)],
        };
        let disks = self
            .disks
            .iter()
            .flat_map(|d| [Some(d.base), d.parent, d.layer]);
        let all = origin.into_iter().chain([Some(self.link)]).chain(disks);
        for index in all.flatten() {
            let slot = &mut used[usize::from(index)];
            if *slot || usize::from(index) >= count {
                return Err(SpecError::Fd { index, count });
            }
            *slot = true;
        }
        Ok(())
    }
}

/// From a VM process to the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The machine is built and has not run.
    Configured(Configured),
    /// Counters, as asked.
    Stats(VmStats),
    /// The machine is saved and stands still.
    Saved(Saved),
    /// The machine could not be saved and goes on.
    SaveFailed {
        /// What was tried, with which values, and why it failed.
        message: String,
    },
    /// The machine is back and stands still.
    Reset(Reset),
    /// The machine could not be put back and is as it was.
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
    /// KVM could not go on with the guest.
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

#[cfg(test)]
mod test {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            sandbox_id: "i1".into(),
            vcpus: 1,
            memory_mib: 512,
            origin: Origin::Boot {
                kernel: 0,
                agent: 1,
                cmdline_extra: String::new(),
                disks: None,
            },
            link: 2,
            disks: vec![DiskSpec {
                base: 3,
                parent: None,
                layer: Some(4),
                size: 4096,
            }],
        }
    }

    fn boot(spec: &mut VmSpec) -> &mut String {
        match &mut spec.origin {
            Origin::Boot { cmdline_extra, .. } => cmdline_extra,
            _ => panic!("not a boot"),
        }
    }

    #[test]
    fn a_good_spec_passes() {
        assert_eq!(spec().check(5), Ok(()));
        let mut from_snapshot = spec();
        from_snapshot.origin = Origin::Snapshot {
            memory: 0,
            state: 1,
            layer: Some(5),
            link: SavedLink::Kept,
            trial: false,
        };
        from_snapshot.disks[0].parent = Some(6);
        assert_eq!(from_snapshot.check(7), Ok(()));
        let missing = SpecError::Fd { index: 6, count: 6 };
        assert_eq!(from_snapshot.check(6), Err(missing));
        let lazy = |pager, userfaultfd| VmSpec {
            origin: Origin::Lazy {
                pager,
                userfaultfd,
                state: 1,
                link: SavedLink::Kept,
            },
            ..spec()
        };
        assert_eq!(lazy(0, 5).check(6), Ok(()));
        let twice = SpecError::Fd { index: 1, count: 6 };
        assert_eq!(lazy(0, 1).check(6), Err(twice));
    }

    #[test]
    fn each_bound_is_checked() {
        let refuse = |change: fn(&mut VmSpec), fds| {
            let mut s = spec();
            change(&mut s);
            s.check(fds).expect_err("must be refused")
        };
        assert_eq!(refuse(|s| s.vcpus = 0, 5), SpecError::Vcpus(0));
        assert_eq!(refuse(|s| s.vcpus = 9, 5), SpecError::Vcpus(9));
        assert_eq!(refuse(|s| s.memory_mib = 127, 5), SpecError::Memory(127));
        assert_eq!(refuse(|s| s.disks[0].size = 1, 5), SpecError::DiskSize(1));
        assert_eq!(
            refuse(|s| s.link = 1, 5),
            SpecError::Fd { index: 1, count: 5 }
        );
        assert_eq!(refuse(|_| (), 4), SpecError::Fd { index: 4, count: 4 });
        assert!(matches!(
            refuse(|s| s.sandbox_id = "../x".into(), 5),
            SpecError::Id(_)
        ));
        assert!(matches!(
            refuse(|s| boot(s).push_str("a\nb"), 5),
            SpecError::Cmdline(3)
        ));
    }
}
