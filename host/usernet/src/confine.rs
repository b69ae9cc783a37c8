//! What a network process may still do: the only place that knows which system calls ours needs.
//!
//! Everything is given up before a byte of anybody's is read. What is left is sockets of the
//! Internet kinds: no file, no program, no other process, no port to be reached at.

use When::{Always, OneOf, Without};
use control::JailMode;
use jail::{Allowed, Filter, JailError, LANDLOCK_VERSION, Limits, When};

/// Sockets of flows and of questions, and what the process has itself.
const DESCRIPTORS: u64 = control::MAX_NET_FLOWS as u64 + 256;
/// Private memory: all flows with small buffers, and everything else.
const MEMORY: u64 = 768 << 20;
const PROT_EXEC: u64 = 4;
const F_GETFD: u32 = 1;
const FIONBIO: u32 = 0x5421;
const STDERR: u32 = 2;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOL_SOCKET: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const SO_ERROR: u32 = 4;

/// What it needs, and why. TLS asks for two of these: random numbers, and the file of certificates
/// that comes as a descriptor. What a key is made of, and what ring measures of the processor, need
/// no call.
const ALLOWED: &[Allowed] = &[
    (libc::SYS_epoll_create1, Always),                  // the loop
    (libc::SYS_epoll_ctl, Always),                      // the loop
    (libc::SYS_epoll_wait, Always),                     // the loop
    (libc::SYS_epoll_pwait, Always),                    // the loop
    (libc::SYS_epoll_pwait2, Always),                   // the loop
    (libc::SYS_socket, OneOf(0, &[AF_INET, AF_INET6])), // flows, questions
    (libc::SYS_connect, Always),                        // flows, questions
    (libc::SYS_getsockname, Always),                    // whether an address is the host's own
    (libc::SYS_getsockopt, OneOf(2, &[SO_ERROR])),      // whether a connection came about
    (libc::SYS_setsockopt, OneOf(1, &[SOL_SOCKET, IPPROTO_TCP])), // no delay; reset at the end
    (libc::SYS_shutdown, Always),                       // the end of one direction
    (libc::SYS_recvfrom, Always),                       // frames, flows
    (libc::SYS_sendto, Always),                         // frames, flows
    (libc::SYS_sendmmsg, Always),                       // frames
    (libc::SYS_recvmsg, Always),                        // the service's requests
    (libc::SYS_sendmsg, Always),                        // what the service hears; TLS to hosts
    (libc::SYS_pread64, Always),                        // certificates in the service's file
    (libc::SYS_ioctl, OneOf(1, &[FIONBIO])),            // the service's socket does not block
    (libc::SYS_close, Always),                          // ended flows
    (libc::SYS_fcntl, OneOf(1, &[F_GETFD])),            // debug builds check what they close
    (libc::SYS_getrandom, Always),                      // sequence numbers, questions, keys
    (libc::SYS_write, OneOf(0, &[STDERR])),             // last words
    (libc::SYS_writev, OneOf(0, &[STDERR])),            // last words
    (libc::SYS_mmap, Without(2, PROT_EXEC)),            // the allocator
    (libc::SYS_mprotect, Without(2, PROT_EXEC)),        // the allocator
    (libc::SYS_mremap, Always),                         // the allocator
    (libc::SYS_munmap, Always),                         // the allocator
    (libc::SYS_madvise, Always),                        // the allocator
    (libc::SYS_brk, Always),                            // the allocator
    (libc::SYS_clock_gettime, Always),                  // where the vDSO has no usable clock
    (libc::SYS_futex, Always),                          // locks of the standard library
    (libc::SYS_rt_sigreturn, Always),                   // a signal that was handled
    (libc::SYS_rt_sigprocmask, Always),                 // the end
    (libc::SYS_sigaltstack, Always),                    // the end
    (libc::SYS_restart_syscall, Always),                // waits that a signal interrupted
    (libc::SYS_exit_group, Always),                     // the end
];

/// The user that the process is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetUser {
    /// Its user's number, not 0.
    pub user: u32,
    /// Its group's number. The host's `net.ipv4.ping_group_range` says which groups may send echo
    /// requests.
    pub group: u32,
}

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A wall could not be put up.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The process is root and would stay it.
    #[error("It is root: start it with --uid and --gid of a user of its own")]
    Root,
    /// The kernel knows less than is required.
    #[error(
        "The kernel's Landlock has version {0} or is off, {LANDLOCK_VERSION} is needed: run Linux \
         6.7 or later with `landlock` in lsm=, or start it with --jail degraded"
    )]
    Landlock(u32),
}

/// Confines the process, which has one thread and its two sockets, for ever. A network process
/// that is root without a user to become is not confined in any mode.
///
/// # Errors
/// [`ConfineError`]. The process must end then.
pub fn confine(user: Option<NetUser>, mode: JailMode) -> Result<(), ConfineError> {
    Limits {
        descriptors: DESCRIPTORS,
        memory: Some(MEMORY),
    }
    .apply()?;
    if rustix::process::geteuid().is_root() {
        match user {
            Some(NetUser { user, group }) if user != 0 => {
                jail::become_user_of_group(user, group)?;
            }
            _ => return Err(ConfineError::Root),
        }
    }
    jail::seal()?;
    let holds = jail::forbid_files_and_servers()?;
    let version = jail::landlock_version();
    if mode == JailMode::Required && (!holds || version < LANDLOCK_VERSION) {
        return Err(ConfineError::Landlock(version));
    }
    Ok(Filter::new(ALLOWED)?.apply()?)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_list_makes_a_filter() {
        Filter::new(ALLOWED).unwrap();
    }

    #[test]
    fn nothing_that_reaches_a_file_a_program_or_a_process_is_on_the_list() {
        for (name, call) in [
            ("openat", libc::SYS_openat),
            ("open", libc::SYS_open),
            ("execve", libc::SYS_execve),
            ("clone3", libc::SYS_clone3),
            ("clone", libc::SYS_clone),
            ("fork", libc::SYS_fork),
            ("ptrace", libc::SYS_ptrace),
            ("process_vm_readv", libc::SYS_process_vm_readv),
            ("bind", libc::SYS_bind),
            ("listen", libc::SYS_listen),
            ("accept4", libc::SYS_accept4),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("kill", libc::SYS_kill),
            ("socketpair", libc::SYS_socketpair),
        ] {
            assert!(
                ALLOWED.iter().all(|(allowed, _)| *allowed != call),
                "{name}"
            );
        }
    }
}
