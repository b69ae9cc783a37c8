//! What a VM process may still do once its machine is built: the only place that knows which
//! system calls ours needs.
//!
//! The process gives up everything it no longer needs before it is told anything ([`process`]): who
//! reads a snapshot's state is already nobody. All threads take one filter before the guest runs.
//! One for all: they share their memory, so whoever has one of them has them all, and each filter
//! more is compiled to machine code in every VM process. A call that is not listed ends the
//! process, which the service sees as a host fault.

use crate::{ioctls, ring_check};
use When::{Always, OneOf, Without};
use control::{JailMode, MissingWall, VmSpec, Wall};
use jail::{Allowed, Filter, JailError, LANDLOCK_VERSION, Limits, When};
use snapshot_memory::Pagemap;
use std::fs::File;

/// Descriptors: three standard ones, the machine's and its vCPUs', at most 5 per device and 4 per
/// disk, the ring. 19 devices are possible; this leaves room for all.
const DESCRIPTORS: u64 = 256;

/// Users of VM processes are numbered from here by process, so that no two are one user. Far from
/// the numbers of people, services and their subordinate ranges.
const FIRST_USER: u32 = 0x7000_0000;

/// More than the state of a machine is, bytes.
const MOST_STATE: u64 = 64 << 20;

const PROT_EXEC: u64 = 4;
const PR_SET_NAME: u32 = 15;
const F_GETFD: u32 = 1;
const AT_EMPTY_PATH: u32 = 0x1000;
/// `O_CLOEXEC`, and `UFFD_USER_MODE_ONLY`: it cannot make the kernel itself wait.
const UFFD_FLAGS: u32 = 0x8_0001;
const IORING_REGISTER_SYNC_CANCEL: u32 = 24;

/// What every thread needs to be born, to live and to die.
const COMMON: &[Allowed] = &[
    (libc::SYS_futex, Always),                   // locks, waiting, joining
    (libc::SYS_write, Always),                   // eventfds, log lines
    (libc::SYS_close, Always),                   // taking the machine apart
    (libc::SYS_fcntl, OneOf(1, &[F_GETFD])),     // debug builds check what they close
    (libc::SYS_mmap, Without(2, PROT_EXEC)),     // the allocator
    (libc::SYS_mprotect, Without(2, PROT_EXEC)), // the allocator
    (libc::SYS_mremap, Always),                  // the allocator
    (libc::SYS_munmap, Always),                  // the allocator, guest memory at the end
    (libc::SYS_madvise, Always),                 // the allocator, stacks of ended threads
    (libc::SYS_brk, Always),                     // the allocator
    (libc::SYS_clock_gettime, Always),           // where the vDSO has no usable clock
    (libc::SYS_sched_yield, Always),             // locks
    (libc::SYS_rt_sigreturn, Always),            // return from the kick's handler
    (libc::SYS_rt_sigprocmask, Always),          // starting and ending threads
    (libc::SYS_sigaltstack, Always),             // ending threads
    (libc::SYS_restart_syscall, Always),         // waits that a signal interrupted
    (libc::SYS_rseq, Always),                    // threads that begin and end
    (libc::SYS_set_robust_list, Always),         // threads that begin
    (libc::SYS_sched_getaffinity, Always),       // threads that begin: where their stack is
    (libc::SYS_prctl, OneOf(0, &[PR_SET_NAME])), // threads that begin
    (libc::SYS_gettid, Always),                  // threads that begin, kicking vCPUs
    (libc::SYS_exit, Always),                    // end of a thread
    (libc::SYS_exit_group, Always),              // end of the process
];

/// The vCPUs' threads, the event loop and the service's requests.
const WORK: &[Allowed] = &[
    // Running the guest; where an internal error happened; the IOAPIC's redirection entries. Saving
    // a machine; its clock, when one that has waited is let go; loading its processors and its
    // interrupt routes, when it is reset.
    (libc::SYS_ioctl, OneOf(1, ioctls::WORK)),
    (libc::SYS_userfaultfd, OneOf(0, &[UFFD_FLAGS])), // memory that is copied ahead
    (libc::SYS_copy_file_range, Always),              // a disk's layer
    (libc::SYS_pwrite64, Always),                     // a disk's layer
    (libc::SYS_ftruncate, Always),                    // a disk's layer, also to empty it
    (libc::SYS_statx, OneOf(2, &[AT_EMPTY_PATH])),    // sizes of the files of a restore point
    (libc::SYS_io_uring_enter, Always),               // all device I/O
    (
        libc::SYS_io_uring_register,
        OneOf(1, &[IORING_REGISTER_SYNC_CANCEL]),
    ), // end of the loop
    (libc::SYS_getrandom, Always),                    // the entropy device
    (libc::SYS_recvmsg, Always),                      // requests
    (libc::SYS_sendmsg, Always),                      // answers
    (libc::SYS_poll, Always),                         // the last word
    (libc::SYS_ppoll, Always),                        // the last word
    (libc::SYS_pread64, Always),                      // exit counters, a disk's layer
    (libc::SYS_lseek, Always),                        // memory accounts, a disk's layer
    (libc::SYS_read, Always),                         // memory accounts
    (libc::SYS_getpid, Always),                       // kicking vCPUs
    (libc::SYS_tgkill, Always),                       // kicking vCPUs
    (libc::SYS_nanosleep, Always), // before the last word, when the pager is gone
    (libc::SYS_clock_nanosleep, Always), // before the last word, when the pager is gone
];

/// Compiles the filter.
pub(crate) fn filter() -> Result<Filter, JailError> {
    Filter::new(&[COMMON, WORK].concat())
}

/// Empties the view of the system of the calling thread, which must own no path that it still
/// needs, and of the processes that it forks; tells which walls cannot be had on this host.
#[expect(unsafe_code, reason = "jail::enter_empty_namespaces has conditions")]
pub(crate) fn begin() -> Vec<MissingWall> {
    let mut missing = Vec::new();
    let mut lacks = |wall, why: String, remedy: &str| {
        let remedy = remedy.to_owned();
        missing.push(MissingWall { wall, why, remedy });
    };
    // A user is a thread's own, and so is the view of groups.
    let tries = || {
        let (view, user) = (jail::see_own_group_only(), become_user());
        // As the user that VM processes are: some hosts give a ring to others only.
        (view, user, ring_check::check())
    };
    let why = |tried: Result<(), JailError>| tried.err().map(|error| crate::error::chain(&error));
    let (no_view, no_user, no_ring) = match std::thread::spawn(tries).join() {
        Ok((view, user, ring)) => (view, why(user), ring.err()),
        Err(_) => (Ok(()), Some("the attempt broke off".to_owned()), None),
    };
    if let Some(why) = no_user {
        let remedy = "run `hatchery serve` as root; in a container, with CAP_SETUID and \
                      CAP_SETGID and all users, not a part of them";
        lacks(Wall::User, why, remedy);
    }
    // SAFETY: a zygote has no other thread, the one above has ended; the probe calls this in a
    // thread that shares nothing which this takes away; all paths of either that are needed later
    // are in /proc.
    if let Err(error) = unsafe { jail::enter_empty_namespaces() }.and(no_view) {
        let why = crate::error::chain(&error);
        let remedy = "run `hatchery serve` as root; in a container, with CAP_SYS_ADMIN and \
                      without a system call filter that forbids unshare, mount and pivot_root";
        lacks(Wall::Namespaces, why, remedy);
    }
    if let Some(why) = no_ring {
        let remedy = "set kernel.io_uring_disabled=0; in a container, allow io_uring_setup in its \
                      system call filter; run Linux 6.1 or later";
        lacks(Wall::Ring, why, remedy);
    }
    let version = jail::landlock_version();
    if version < LANDLOCK_VERSION {
        let why =
            format!("the kernel's Landlock has version {version}, {LANDLOCK_VERSION} is needed");
        let remedy = "run Linux 6.7 or later, with CONFIG_SECURITY_LANDLOCK and `landlock` in lsm=";
        lacks(Wall::Landlock, why, remedy);
    }
    missing
}

/// What a VM process knows of itself, opened while that was possible.
#[derive(Debug)]
pub(crate) struct OwnFiles {
    /// Its page tables. Opened by a user without rights, they show no physical addresses.
    pub(crate) pagemap: Pagemap,
    /// Its mappings.
    pub(crate) smaps: File,
}

/// Why the process cannot be what a VM process has to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error("Its page tables do not open")]
    Pagemap(#[from] snapshot_memory::MemoryError),
    #[error("/proc/thread-self/smaps does not open")]
    Mappings(#[source] std::io::Error),
    #[error("It is root, or its Landlock holds nothing, and all walls are required")]
    Open,
}

/// Makes the calling thread, and all that it starts, the user of this process.
fn become_user() -> Result<(), JailError> {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    jail::become_user(FIRST_USER + process.unsigned_abs())
}

/// Confines the calling thread and all that it starts, before it has started any and before it has
/// read a byte from anybody. Nothing can be opened afterwards. What it opens of itself is the
/// thread's, which may be another user than the process's first thread.
pub(crate) fn process(mode: JailMode) -> Result<OwnFiles, ConfineError> {
    Limits {
        descriptors: DESCRIPTORS,
        memory: None, // a guest's is counted by who gave it
    }
    .apply()?;
    let alone = jail::see_own_group_only();
    let user = become_user();
    match (alone.and(user), mode) {
        (Err(error), JailMode::Required) => return Err(error.into()),
        (Err(_), JailMode::Degraded) | (Ok(()), _) => {}
    }
    let own = OwnFiles {
        pagemap: Pagemap::open()?,
        smaps: File::open("/proc/thread-self/smaps").map_err(ConfineError::Mappings)?,
    };
    jail::seal()?;
    let holds = jail::forbid_files_and_network()?;
    let open = rustix::process::geteuid().is_root() || !holds;
    match mode {
        JailMode::Required if open => Err(ConfineError::Open),
        JailMode::Required | JailMode::Degraded => Ok(own),
    }
}

/// Bounds the files of a process that is told what machine to be: its layer of a disk, and what it
/// is saved to.
pub(crate) fn files(spec: &VmSpec) -> Result<(), JailError> {
    let memory = u64::from(spec.memory_mib) << 20;
    let disk = spec.disks().map(|disk| disk.size).max().unwrap_or(0);
    // A layer of memory has its pages, what says which they are, and the machine's state.
    let saved = memory + memory / 8 + MOST_STATE;
    jail::limit_file_size(saved.max(disk))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_list_makes_a_filter() {
        filter().unwrap();
    }
}
