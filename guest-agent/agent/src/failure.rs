//! The kernel's errors in the words of the protocol.

use crate::sys::Errno;
use agent_core::Session;
use wire::ErrorCode;

/// The protocol's code for the kernel's.
pub(crate) fn code(e: Errno) -> ErrorCode {
    match e {
        Errno::NOENT => ErrorCode::NotFound,
        Errno::ACCES | Errno::PERM => ErrorCode::PermissionDenied,
        Errno::EXIST | Errno::NOTEMPTY => ErrorCode::AlreadyExists,
        Errno::NOTDIR => ErrorCode::NotADirectory,
        Errno::ISDIR => ErrorCode::IsADirectory,
        Errno::NXIO => ErrorCode::NotRegular,
        Errno::NOSPC | Errno::DQUOT => ErrorCode::NoSpace,
        Errno::INVAL | Errno::XDEV => ErrorCode::InvalidArgument,
        Errno::SRCH => ErrorCode::NoSuchProcess,
        Errno::BUSY => ErrorCode::Busy,
        Errno::FBIG | Errno::NAMETOOLONG | Errno::TOOBIG => ErrorCode::TooLarge,
        Errno::LOOP => ErrorCode::Loop,
        Errno::ROFS => ErrorCode::ReadOnly,
        Errno::AGAIN | Errno::NOMEM | Errno::NFILE | Errno::MFILE => ErrorCode::OutOfResources,
        Errno::NOTSUP => ErrorCode::Unsupported,
        _ => ErrorCode::Io,
    }
}

/// Ends a stream with what the kernel said to `what`.
pub(crate) fn fail(session: &mut Session, slot: usize, what: &str, e: Errno) {
    session.fail(slot, code(e), e.0, format_args!("{what}: errno {}", e.0));
}
