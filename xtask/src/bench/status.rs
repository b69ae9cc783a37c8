//! Exit statuses of programs that are passed on.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

/// A program's exit status as our own; a signal as a shell shows it.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or(status.signal().map(|s| 128 + s))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
