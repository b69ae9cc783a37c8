//! What a VM process may still do once its machine is built: the only place that knows which
//! system calls ours needs.
//!
//! The process gives up everything it no longer needs before the first thread is started
//! ([`process`]), and all threads take one filter before the guest runs. One for all: they share their
//! memory, so whoever has one of them has them all, and each filter more is compiled to machine code
//! in every VM process. A call that is not listed ends the process, which the service sees as a host
//! fault.

use jail::{Allowed, Filter, JailError, Limits, When};

use When::{Always, OneOf, Without};

/// Descriptors: three standard ones, the machine's and its vCPUs', at most 5 per device and 4 per
/// disk, the ring. 19 devices are possible; this leaves room for all.
const DESCRIPTORS: u64 = 256;

/// Users of VM processes are numbered from here by process, so that no two are one user. Far from the
/// numbers of people, services and their subordinate ranges.
const FIRST_USER: u32 = 0x7000_0000;

const PROT_EXEC: u64 = 4;
const PR_SET_NAME: u32 = 15;
const F_GETFD: u32 = 1;
const KVM_RUN: u32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_SET_REGS: u32 = 0x4090_ae82;
const KVM_SET_SREGS: u32 = 0x4138_ae84;
const KVM_SET_LAPIC: u32 = 0x4400_ae8f;
const KVM_SET_MP_STATE: u32 = 0x4004_ae99;
const KVM_SET_VCPU_EVENTS: u32 = 0x4040_aea0;
const KVM_SET_DEBUGREGS: u32 = 0x4080_aea2;
const KVM_SET_TSC_KHZ: u32 = 0xaea2;
const KVM_SET_XSAVE: u32 = 0x5000_aea5;
const KVM_SET_XCRS: u32 = 0x4188_aea7;
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
const AT_EMPTY_PATH: u32 = 0x1000;
const KVM_GET_CLOCK: u32 = 0x8030_ae7c;
const KVM_SET_CLOCK: u32 = 0x4030_ae7b;
const KVM_GET_SREGS: u32 = 0x8138_ae83;
const KVM_GET_MSRS: u32 = 0xc008_ae88;
const KVM_SET_MSRS: u32 = 0x4008_ae89;
const KVM_GET_LAPIC: u32 = 0x8400_ae8e;
const KVM_GET_MP_STATE: u32 = 0x8004_ae98;
const KVM_GET_VCPU_EVENTS: u32 = 0x8040_ae9f;
const KVM_GET_DEBUGREGS: u32 = 0x8080_aea1;
const KVM_GET_TSC_KHZ: u32 = 0xaea3;
const KVM_GET_XSAVE: u32 = 0x9000_aea4;
const KVM_GET_XCRS: u32 = 0x8188_aea6;
const PAGEMAP_SCAN: u32 = 0xc060_6610;
const UFFDIO_COPY: u32 = 0xc028_aa03;
const UFFDIO_API: u32 = 0xc018_aa3f;
const UFFDIO_REGISTER: u32 = 0xc020_aa00;
/// `O_CLOEXEC`, and `UFFD_USER_MODE_ONLY`: it cannot make the kernel itself wait.
const UFFD_FLAGS: u32 = 0x8_0001;
const UFFDIO_WAKE: u32 = 0x8010_aa02;
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
    // Running the guest; where an internal error happened; the IOAPIC's redirection entries. Saving a
    // machine; its clock, when one that has waited is let go; loading its processors and its
    // interrupt routes, when it goes back.
    (
        libc::SYS_ioctl,
        OneOf(
            1,
            &[
                KVM_RUN,
                KVM_SET_GSI_ROUTING,
                KVM_GET_REGS,
                KVM_GET_SREGS,
                KVM_GET_MSRS,
                KVM_GET_LAPIC,
                KVM_GET_MP_STATE,
                KVM_GET_VCPU_EVENTS,
                KVM_GET_DEBUGREGS,
                KVM_GET_TSC_KHZ,
                KVM_GET_XSAVE,
                KVM_GET_XCRS,
                KVM_GET_CLOCK,
                KVM_SET_MSRS,
                KVM_SET_CLOCK,
                KVM_SET_REGS,
                KVM_SET_SREGS,
                KVM_SET_LAPIC,
                KVM_SET_MP_STATE,
                KVM_SET_VCPU_EVENTS,
                KVM_SET_DEBUGREGS,
                KVM_SET_TSC_KHZ,
                KVM_SET_XSAVE,
                KVM_SET_XCRS,
                KVM_KVMCLOCK_CTRL,
                PAGEMAP_SCAN,
                UFFDIO_COPY,
                UFFDIO_WAKE,
                UFFDIO_API,
                UFFDIO_REGISTER,
            ],
        ),
    ),
    (libc::SYS_userfaultfd, OneOf(0, &[UFFD_FLAGS])), // memory that is copied ahead
    (libc::SYS_copy_file_range, Always),              // a disk's layer
    (libc::SYS_pwrite64, Always),                     // a disk's layer
    (libc::SYS_ftruncate, Always),                    // a disk's layer, also to empty it
    (libc::SYS_statx, OneOf(2, &[AT_EMPTY_PATH])),    // sizes of the files a machine goes back to
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

/// Empties the process's view of the system, and that of those which it forks. Without root, or where
/// that is forbidden, it says so and what holds nevertheless is the rest of this file.
#[expect(unsafe_code, reason = "jail::empty_rooms has conditions")]
pub(crate) fn rooms() -> Result<(), JailError> {
    // SAFETY: a zygote calls this before it starts a thread, and all its paths are in /proc.
    unsafe { jail::empty_rooms() }
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
    fn the_numbers_are_the_kernels() {
        // _IO(0xae, 0x80), _IOR(0xae, 0x81, struct kvm_regs), _IOW(0xae, 0x6a, 8 bytes of header).
        let ior = |nr: u32, size: usize| 2 << 30 | u32::try_from(size).unwrap() << 16 | 0xae00 | nr;
        assert_eq!(KVM_RUN, 0xae00 | 0x80);
        assert_eq!(KVM_GET_REGS, ior(0x81, 18 * 8));
        assert_eq!(KVM_SET_GSI_ROUTING, 1 << 30 | 8 << 16 | 0xae00 | 0x6a);
        assert_eq!(KVM_GET_SREGS, ior(0x83, 312));
        assert_eq!(KVM_GET_LAPIC, ior(0x8e, 1024));
        assert_eq!(KVM_GET_XSAVE, ior(0xa4, 4096));
        let iow = |nr: u32, size: usize| ior(nr, size) ^ 3 << 30;
        assert_eq!(KVM_SET_REGS, iow(0x82, 18 * 8));
        assert_eq!(KVM_SET_SREGS, iow(0x84, 312));
        assert_eq!(KVM_SET_LAPIC, iow(0x8f, 1024));
        assert_eq!(KVM_SET_MP_STATE, iow(0x99, 4));
        assert_eq!(KVM_SET_VCPU_EVENTS, iow(0xa0, 64));
        assert_eq!(KVM_SET_DEBUGREGS, iow(0xa2, 128));
        assert_eq!(KVM_SET_XSAVE, iow(0xa5, 4096));
        assert_eq!(KVM_SET_XCRS, iow(0xa7, 392));
        assert_eq!(KVM_SET_TSC_KHZ, 0xae00 | 0xa2);
        assert_eq!(KVM_KVMCLOCK_CTRL, 0xae00 | 0xad);
    }

    #[test]
    fn the_list_makes_a_filter() {
        filter().unwrap();
    }
}
