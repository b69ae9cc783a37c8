//! The template's own part of becoming somebody else: a program that is run, and waited for,
//! whenever the guest takes an identity.
//!
//! The kernel's randomness is fresh by then. What programs have drawn from it before and keep, such
//! as the state of Python's `random` or of OpenSSL, only they can renew: the hook tells them to.

use crate::cgroups::CgroupTable;
use crate::sys::file::{O_RDWR, PathBase, open, stat};
use crate::sys::spawn::{SpawnPlan, SpawnStack, spawn, wait_at_most};
use crate::sys::{Errno, Fd};
use agent_core::FixedText;
use core::ffi::CStr;
use wire::{ProcessExit, ProcessLimits};

/// Run as root when it is there; anything but success makes the identity void.
const HOOK: &CStr = c"/etc/hatchery/clone-hook";
/// Its time, milliseconds.
const LIMIT_MS: u32 = 10_000;
const PATH: &CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is no new identity.
pub(crate) enum IdentityError {
    /// Something of the machine could not be changed.
    Change(Errno),
    /// The hook could not be run, or took too long (`TIMEDOUT`).
    Run(Errno),
    /// It ended so.
    Ended(ProcessExit),
}

/// Runs the hook, if there is one, in a cgroup as commands have. The agent waits for it and does
/// nothing else meanwhile: nobody is served before the guest is who it is to be.
pub(crate) fn run(cgroups: &mut CgroupTable, generation: u64) -> Result<(), IdentityError> {
    if stat(PathBase::Cwd, HOOK, true).is_err() {
        return Ok(());
    }
    let cgroup = cgroups.take().map_err(IdentityError::Run)?;
    let done = run_it(cgroups.dir(cgroup), generation);
    cgroups.release(cgroup, true, false);
    match done.map_err(IdentityError::Run)? {
        ProcessExit::Code(0) => Ok(()),
        other => Err(IdentityError::Ended(other)),
    }
}

#[inline(never)] // its buffers shall not be in the stack of every claim
fn run_it(cgroup: Option<&Fd>, generation: u64) -> Result<ProcessExit, Errno> {
    let generation = FixedText::<48>::of(format_args!("HATCHERY_GENERATION={generation}\0"));
    let argv = [HOOK.as_ptr().cast(), core::ptr::null()];
    let env = [
        PATH.as_ptr().cast(),
        generation.as_str().as_ptr(),
        core::ptr::null(),
    ];
    let null = open(PathBase::Cwd, c"/dev/null", O_RDWR, 0)?;
    let mut plan = SpawnPlan {
        argv: &argv,
        env: &env,
        program: HOOK,
        path: None,
        cwd: c"/",
        ids: None,
        stdio: [&null; 3],
        terminal: false,
        limits: ProcessLimits::default(),
        cgroup,
        scratch: &mut [0; 4096],
    };
    let pid = spawn(&mut plan, &mut SpawnStack::new()).map_err(|(_, e)| e)?;
    wait_at_most(pid, LIMIT_MS)
}
