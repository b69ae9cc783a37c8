//! A fork whose child is its sibling.
#![expect(
    unsafe_code,
    reason = "no library has a fork with CLONE_PARENT; the C library's thread id is kept true"
)]

use std::io;

/// Who one is after a fork.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fork {
    Parent,
    Child,
}

/// Forks. The child's parent is this process's parent, which gets its exit signal and reaps it.
/// To be called by a process that has one thread.
pub(super) fn fork_sibling() -> io::Result<Fork> {
    let tid = tid_address();
    let flags = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    let args = libc::clone_args {
        // The exit signal is the zygote's own: with CLONE_PARENT none may be given.
        flags: u64::try_from(flags).unwrap_or(0),
        child_tid: tid as u64,
        pidfd: 0,
        parent_tid: 0,
        exit_signal: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
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
