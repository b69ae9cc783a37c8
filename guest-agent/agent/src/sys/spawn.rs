//! Starting, signalling and reaping processes.
//!
//! A child is made by `clone3(CLONE_VM | CLONE_VFORK)`: it runs on a stack of its own in the
//! agent's memory while the agent waits, so nothing is copied and a failure is reported through
//! memory. It touches only its [`SpawnPlan`] and that stack until `execve` gives it a memory of its
//! own.

use super::event::{Epoll, EpollEvent};
use super::{Errno, Fd, Result, call, fd, nr, plain, signed};
use core::arch::asm;
use core::ffi::CStr;
use wire::{ProcessExit, ProcessLimits};

const STACK: usize = 32 * 1024;

/// The child's stack.
#[repr(C, align(16))]
pub(crate) struct SpawnStack([u8; STACK]);

impl SpawnStack {
    pub(crate) const fn new() -> Self {
        Self([0; STACK])
    }
}

/// At what a child failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpawnStage {
    /// Making the process.
    Clone,
    /// Session, terminal, descriptors.
    Setup,
    /// User and groups.
    User,
    /// Working directory.
    Cwd,
    /// The program.
    Exec,
}

/// What a child is to become. The pointers are into buffers that outlive [`spawn`].
pub(crate) struct SpawnPlan<'a> {
    /// Pointers to terminated strings, then a null pointer.
    pub(crate) argv: &'a [*const u8],
    /// As `argv`.
    pub(crate) env: &'a [*const u8],
    /// The program, or a name to look up in `path`.
    pub(crate) program: &'a CStr,
    /// Directories to search, separated by colons; `None` when `program` has a slash.
    pub(crate) path: Option<&'a [u8]>,
    /// Working directory.
    pub(crate) cwd: &'a CStr,
    /// Its user, group and groups; `None` keeps the agent's.
    pub(crate) ids: Option<(u32, u32, &'a [u32])>,
    /// Descriptors to become 0, 1 and 2; none of them below 3.
    pub(crate) stdio: [&'a Fd; 3],
    /// Descriptor 0 is to be the controlling terminal.
    pub(crate) terminal: bool,
    /// Resource limits.
    pub(crate) limits: ProcessLimits,
    /// The cgroup to be born in.
    pub(crate) cgroup: Option<&'a Fd>,
    /// Room to build paths.
    pub(crate) scratch: &'a mut [u8; 4096],
}

/// The plan and the report of the child.
struct SpawnShared<'p, 'a> {
    plan: &'p mut SpawnPlan<'a>,
    failed: Option<(SpawnStage, Errno)>,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Starts a process and returns its id once it runs its program.
pub(crate) fn spawn(
    plan: &mut SpawnPlan<'_>,
    stack: &mut SpawnStack,
) -> core::result::Result<u32, (SpawnStage, Errno)> {
    const CLONE_VM: u64 = 0x100;
    const CLONE_VFORK: u64 = 0x4000;
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    const SIGCHLD: u64 = 17;
    let mut args = CloneArgs {
        flags: CLONE_VM | CLONE_VFORK,
        exit_signal: SIGCHLD,
        stack: address(stack.0.as_mut_ptr().expose_provenance()),
        stack_size: address(STACK),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = plan.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = address(signed(cgroup.raw()));
    }
    let mut shared = SpawnShared { plan, failed: None };
    let ret: isize;
    // SAFETY: the child runs `child` on its own stack and never returns; the parent is stopped
    // until the child has its own memory or is gone, so `shared` and the stack are used by one at a
    // time.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call {child}",
            "ud2",
            "2:",
            child = sym child,
            inlateout("rax") nr::CLONE3 => ret,
            in("rdi") &raw mut args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") &raw mut shared,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    let pid = u32::try_from(ret).map_err(|_| {
        (
            SpawnStage::Clone,
            Errno(i32::try_from(-ret).unwrap_or(Errno::IO.0)),
        )
    })?;
    // SAFETY: `shared` is a live local; volatile because the child wrote it behind the compiler.
    match unsafe { (&raw const shared.failed).read_volatile() } {
        None => Ok(pid),
        Some(failed) => {
            let _ = wait_for(pid);
            Err(failed)
        }
    }
}

fn address(v: usize) -> u64 {
    u64::try_from(v).unwrap_or(u64::MAX)
}

/// The child, from here to `execve`.
extern "C" fn child(shared: *mut SpawnShared<'_, '_>) -> ! {
    // SAFETY: the parent's `shared` lives while the parent waits.
    let shared = unsafe { &mut *shared };
    let failed = match become_user(shared.plan) {
        Err(failed) => failed,
        Ok(()) => (SpawnStage::Exec, execute(shared.plan)),
    };
    // SAFETY: a plain store; volatile because the parent reads it behind the compiler.
    unsafe { (&raw mut shared.failed).write_volatile(Some(failed)) };
    exit(127)
}

fn become_user(plan: &SpawnPlan<'_>) -> core::result::Result<(), (SpawnStage, Errno)> {
    const TIOCSCTTY: usize = 0x540e;
    let setup = |e| (SpawnStage::Setup, e);
    numbers(nr::SETSID, [0; 3]).map_err(setup)?;
    for (to, from) in plan.stdio.iter().enumerate() {
        numbers(nr::DUP2, [from.arg(), to, 0]).map_err(setup)?;
    }
    if plan.terminal {
        numbers(nr::IOCTL, [0, TIOCSCTTY, 0]).map_err(setup)?;
    }
    limit(&plan.limits).map_err(setup)?;
    if let Some((uid, gid, groups)) = plan.ids {
        let user = |e| (SpawnStage::User, e);
        let (uid, gid) = (index(uid), index(gid));
        numbers(
            nr::SETGROUPS,
            [groups.len(), groups.as_ptr().expose_provenance(), 0],
        )
        .map_err(user)?;
        numbers(nr::SETRESGID, [gid, gid, gid]).map_err(user)?;
        numbers(nr::SETRESUID, [uid, uid, uid]).map_err(user)?;
    }
    numbers(nr::CHDIR, [plan.cwd.as_ptr().expose_provenance(), 0, 0])
        .map_err(|e| (SpawnStage::Cwd, e))?;
    let none = 0u64;
    // SAFETY: the kernel reads one 8-byte set.
    unsafe {
        call(
            nr::SIGPROCMASK,
            [2, (&raw const none).expose_provenance(), 0, 8, 0, 0],
        )
    }
    .map_err(setup)?;
    Ok(())
}

/// A call of the child; pointers among the arguments are to the plan.
fn numbers(n: usize, a: [usize; 3]) -> Result<()> {
    // SAFETY: callers pass numbers, or addresses of terminated strings and slices of the plan.
    unsafe { call(n, [a[0], a[1], a[2], 0, 0, 0]) }.map(drop)
}

fn index(v: u32) -> usize {
    usize::try_from(v).unwrap_or(usize::MAX)
}

fn limit(limits: &ProcessLimits) -> Result<()> {
    const RLIMIT_CPU: usize = 0;
    const RLIMIT_FSIZE: usize = 1;
    const RLIMIT_NOFILE: usize = 7;
    let wanted = [
        (RLIMIT_NOFILE, u64::from(limits.open_files)),
        (RLIMIT_CPU, u64::from(limits.cpu_seconds)),
        (RLIMIT_FSIZE, limits.file_size),
    ];
    for (which, value) in wanted {
        if value != 0 {
            let pair = [value, value];
            // SAFETY: the kernel reads one `struct rlimit`.
            unsafe {
                call(
                    nr::PRLIMIT64,
                    [0, which, pair.as_ptr().expose_provenance(), 0, 0, 0],
                )
            }?;
        }
    }
    Ok(())
}

/// Runs the program; returns only why it could not.
fn execute(plan: &mut SpawnPlan<'_>) -> Errno {
    let Some(path) = plan.path else {
        return exec(plan.program, plan);
    };
    let name = plan.program.to_bytes_with_nul();
    let mut worst = Errno::NOENT;
    for dir in path.split(|&b| b == b':') {
        let dir = if dir.is_empty() { b"." } else { dir };
        let Some(room) = plan.scratch.get_mut(..dir.len() + 1 + name.len()) else {
            continue;
        };
        room[..dir.len()].copy_from_slice(dir);
        room[dir.len()] = b'/';
        room[dir.len() + 1..].copy_from_slice(name);
        let Ok(candidate) = CStr::from_bytes_until_nul(&plan.scratch[..]) else {
            continue;
        };
        match exec(candidate, plan) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCES => worst = Errno::ACCES,
            other => return other,
        }
    }
    worst
}

fn exec(program: &CStr, plan: &SpawnPlan<'_>) -> Errno {
    let (argv, env) = (
        plan.argv.as_ptr().expose_provenance(),
        plan.env.as_ptr().expose_provenance(),
    );
    // SAFETY: a terminated path and two null-terminated tables of terminated strings.
    match unsafe {
        call(
            nr::EXECVE,
            [program.as_ptr().expose_provenance(), argv, env, 0, 0, 0],
        )
    } {
        Ok(_) => Errno::IO,
        Err(e) => e,
    }
}

/// Ends this process at once.
pub(crate) fn exit(status: u8) -> ! {
    loop {
        let _ = numbers(nr::EXIT_GROUP, [usize::from(status), 0, 0]);
    }
}

/// Sends a signal to one process.
pub(crate) fn kill(pid: u32, signal: u8) -> Result<()> {
    numbers(nr::KILL, [index(pid), usize::from(signal), 0])
}

/// Sends a signal to the processes of a group, which its leader's id names.
pub(crate) fn kill_group(leader: u32, signal: u8) -> Result<()> {
    numbers(
        nr::KILL,
        [index(leader).wrapping_neg(), usize::from(signal), 0],
    )
}

/// Kills every process but the first. For the end of the guest.
pub(crate) fn kill_all() {
    const SIGKILL: usize = 9;
    let _ = numbers(nr::KILL, [usize::MAX, SIGKILL, 0]);
}

/// What there was to reap.
pub(crate) enum Reaped {
    /// This child, which ended so.
    One(u32, ProcessExit),
    /// None that has ended.
    NoMore {
        /// There is no child at all.
        alone: bool,
    },
}

/// Reaps a child that has ended, if there is one. Orphans are children of PID 1, so this reaps
/// them.
pub(crate) fn reap() -> Reaped {
    const P_ALL: usize = 0;
    const WNOHANG: usize = 1;
    // Whatever signal a child ends with: none is overlooked.
    const WALL: usize = 0x4000_0000;
    match wait(P_ALL, 0, WNOHANG | WALL) {
        Ok(Some((pid, exit))) => Reaped::One(pid, exit),
        Ok(None) => Reaped::NoMore { alone: false },
        Err(e) => Reaped::NoMore {
            alone: e == Errno::CHILD,
        },
    }
}

/// Waits for a child to end and reaps it; kills it when it has not ended within the time.
pub(crate) fn wait_at_most(pid: u32, timeout_ms: u32) -> Result<ProcessExit> {
    const SIGKILL: u8 = 9;
    let child = plain(nr::PIDFD_OPEN, &[index(pid), 0]).map(fd)?;
    let epoll = Epoll::new()?;
    epoll.add(&child, 0, false, true)?;
    let ended = epoll.wait(&mut [EpollEvent::default()], Some(timeout_ms)) > 0;
    if !ended {
        kill(pid, SIGKILL)?;
    }
    match wait_for(pid) {
        Some((_, exit)) if ended => Ok(exit),
        _ => Err(Errno::TIMEDOUT),
    }
}

fn wait_for(pid: u32) -> Option<(u32, ProcessExit)> {
    const P_PID: usize = 1;
    wait(P_PID, index(pid), 0).ok()?
}

fn wait(which: usize, id: usize, flags: usize) -> Result<Option<(u32, ProcessExit)>> {
    const WEXITED: usize = 4;
    const CLD_EXITED: i32 = 1;
    // signo, errno, code, padding, pid, uid, status, and room for the rest of `siginfo_t`
    let mut info = [0i32; 32];
    let at = info.as_mut_ptr().expose_provenance();
    // SAFETY: the kernel writes one 128-byte `siginfo_t`.
    unsafe { call(nr::WAITID, [which, id, at, flags | WEXITED, 0, 0]) }?;
    let [_, _, code, _, pid, _, status, ..] = info;
    let value = u8::try_from(status & 0xff).unwrap_or(0);
    let exit = if code == CLD_EXITED {
        ProcessExit::Code(value)
    } else {
        ProcessExit::Signal(value)
    };
    let pid = u32::try_from(pid).ok().filter(|&pid| pid != 0);
    Ok(pid.map(|pid| (pid, exit)))
}
