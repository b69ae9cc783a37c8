//! What a VM process may still do once its machine is built: the only place that knows which
//! system calls ours needs.
//!
//! The process gives up everything it no longer needs before the first thread is started
//! ([`process`]), and all threads take one filter before the guest runs. One for all: they share
//! their memory, so whoever has one of them has them all, and each filter more is compiled to
//! machine code in every VM process. A call that is not listed ends the process, which the service
//! sees as a host fault.

use crate::ioctls;
use When::{Always, OneOf, Without};
use jail::{Allowed, Filter, JailError, Limits, When};

/// Descriptors: three standard ones, the machine's and its vCPUs', at most 5 per device and 4 per
/// disk, the ring. 19 devices are possible; this leaves room for all.
const DESCRIPTORS: u64 = 256;

/// Users of VM processes are numbered from here by process, so that no two are one user. Far from
/// the numbers of people, services and their subordinate ranges.
const FIRST_USER: u32 = 0x7000_0000;

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

/// Empties the process's view of the system, and that of those which it forks. Without root, or
/// where that is forbidden, it says so and what holds nevertheless is the rest of this file.
#[expect(unsafe_code, reason = "jail::enter_empty_namespaces has conditions")]
pub(crate) fn namespaces() -> Result<(), JailError> {
    // SAFETY: a zygote calls this before it starts a thread, and all its paths are in /proc.
    unsafe { jail::enter_empty_namespaces() }
}

/// Confines the whole process, as far as that goes before its threads have started. Everything that
/// is to be opened must be open. Tells whether the kernel's Landlock could enforce all of it.
pub(crate) fn process() -> Result<bool, JailError> {
    Limits {
        descriptors: DESCRIPTORS,
    }
    .apply()?;
    give_up()
}

/// Confines the thread that follows the pager, which begins before the rest is confined.
pub(crate) fn watch() -> Result<(), JailError> {
    give_up().map(drop)
}

/// What a thread, and those that it starts, can give up by itself.
fn give_up() -> Result<bool, JailError> {
    if rustix::process::geteuid().is_root() {
        let process = rustix::process::getpid().as_raw_nonzero().get();
        jail::become_user(FIRST_USER + process.unsigned_abs())?;
    }
    jail::seal()?;
    jail::forbid_files_and_network()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_list_makes_a_filter() {
        filter().unwrap();
    }
}
