//! A fork whose child is its sibling.
#![expect(
    unsafe_code,
    reason = "no library has a fork with CLONE_PARENT; the C library's thread id is kept true"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `CLONE_INTO_CGROUP` (Linux 5.7), wider than the C library's type for flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Who one is after a fork.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fork {
    Parent,
    Child,
}

/// Forks. The child's parent is this process's parent, which gets its exit signal and reaps it.
/// It is born in `group`, a folder of the control groups' file system: to move a process later has
/// the kernel wait until no processor is in the middle of a fork or an end.
/// To be called by a process that has one thread.
pub(super) fn fork_sibling(group: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let tid = tid_address();
    let flags = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    let args = libc::clone_args {
        // The exit signal is the zygote's own: with CLONE_PARENT none may be given.
        flags: u64::try_from(flags).unwrap_or(0) | group.map_or(0, |_| CLONE_INTO_CGROUP),
        child_tid: tid as u64,
        pidfd: 0,
        parent_tid: 0,
        exit_signal: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: group
            .map_or(Ok(0), |group| u64::try_from(group.as_raw_fd()))
            .map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    let size = size_of::<libc::clone_args>();
    // SAFETY: as fork(): no memory is shared, the stack is the same address in the child's copy,
    // and there is no other thread that could hold a lock in it. `child_tid` is where the C library
    // keeps the thread's number, so that it is the child's own there.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Fork::Child),
        Ok(1..) => Ok(Fork::Parent),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the C library keeps this thread's number: it told the kernel so at the start.
fn tid_address() -> usize {
    let mut address: usize = 0;
    // SAFETY: the call writes one word. A kernel without it leaves 0, which clone3 takes for
    // "nowhere".
    let done = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) };
    if done == 0 { address } else { 0 }
}
