//! Why a request was not done, in words that name what it was about.

use crate::clone_hook::IdentityError;
use crate::failure::fail;
use crate::launch::{LaunchError, LaunchSubject};
use agent_core::Session;
use wire::{ErrorCode, ProcessExit, StartProcess};

/// Why there is no process, and of what that is so.
pub(crate) fn tell_not_started(
    session: &mut Session,
    slot: usize,
    failed: &LaunchError,
    start: &StartProcess<'_>,
    cwd: &[u8],
) {
    const SHOWN: usize = 256;
    let LaunchError {
        code, errno, what, ..
    } = failed;
    let of = match failed.of {
        LaunchSubject::Program => start.argv.iter().next().unwrap_or(b""),
        LaunchSubject::Cwd => cwd,
        LaunchSubject::User => start.user,
    };
    let of = core::str::from_utf8(&of[..of.len().min(SHOWN)]).unwrap_or("");
    session.fail(
        slot,
        *code,
        *errno,
        format_args!("{what}: {of}: errno {errno}"),
    );
}

/// Why the guest is not who it is to be.
pub(crate) fn tell_failed(session: &mut Session, slot: usize, failed: &IdentityError) {
    let (how, number) = match failed {
        IdentityError::Change(e) => return fail(session, slot, "take an identity", *e),
        IdentityError::Run(e) => {
            return fail(session, slot, "run the template's clone hook in time", *e);
        }
        IdentityError::Ended(ProcessExit::Code(code)) => ("status", *code),
        IdentityError::Ended(ProcessExit::Signal(signal)) => ("signal", *signal),
    };
    let text = format_args!("the template's clone hook ended with {how} {number}");
    session.fail(slot, ErrorCode::Io, 0, text);
}

/// There is no such user.
pub(crate) fn unknown_user(session: &mut Session, slot: usize) {
    let text = format_args!("unknown user");
    session.fail(slot, ErrorCode::UnknownUser, 0, text);
}
