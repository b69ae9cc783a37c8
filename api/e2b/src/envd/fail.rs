//! What a failed call on the link means to a client: Connect codes, and HTTP statuses for `/files`.

use crate::connect::{ConnectCode, ConnectError};
use crate::envd::http::HttpError;
use engine::process::{ProcessError, settle};
use engine::sandbox::Sandbox;
use hyper::StatusCode;
use link::{AgentRefusal, LinkError};
use wire::ErrorCode;

/// The Connect error of a failed call.
pub(super) async fn connect(sandbox: &Sandbox, error: LinkError) -> ConnectError {
    settle(sandbox.gone(), &error).await;
    let code = match &error {
        LinkError::Closed(_) => ConnectCode::Unavailable,
        LinkError::Busy
        | LinkError::PortsBusy(_)
        | LinkError::TooMany(_)
        | LinkError::TooLarge(_) => ConnectCode::ResourceExhausted,
        LinkError::OldAgent(_) => ConnectCode::Unimplemented,
        LinkError::Unsendable(_) => ConnectCode::InvalidArgument,
        LinkError::Refused(refusal) => refused(refusal.code),
        LinkError::Version { .. } | LinkError::Reset { .. } | LinkError::Unexpected { .. } => {
            ConnectCode::Internal
        }
    };
    ConnectError::new(code, words(&error))
}

/// The Connect error when a user was looked up or used.
pub(super) async fn user(sandbox: &Sandbox, error: LinkError, name: &str) -> ConnectError {
    let unknown = error
        .refusal()
        .is_some_and(|refusal| refusal.code == ErrorCode::UnknownUser);
    // A name that the protocol cannot carry is no user's.
    if unknown || name.contains('\0') || name.len() > wire::MAX_NAME {
        return unknown_user(name);
    }
    connect(sandbox, error).await
}

/// `unauthenticated`, in envd's words.
pub(super) fn unknown_user(name: &str) -> ConnectError {
    ConnectError::new(
        ConnectCode::Unauthenticated,
        format!("invalid username: '{name}'"),
    )
}

/// The Connect error of a process that does not do what it is asked, in envd's words.
pub(super) fn process(error: &ProcessError) -> ConnectError {
    let words = match error {
        ProcessError::NoPid(_) | ProcessError::NoTag(_) | ProcessError::HasEnded(_) => {
            return ConnectError::not_found(error.to_string());
        }
        ProcessError::NoSelector => {
            return ConnectError::invalid("The request selects no process by pid or tag");
        }
        ProcessError::TooManyListeners { .. } => {
            return ConnectError::new(ConnectCode::ResourceExhausted, error.to_string());
        }
        ProcessError::HasTerminal => {
            "error writing to stdin: the process has a tty; send the input to its pty"
        }
        ProcessError::NoStdin => {
            "error writing to stdin: stdin not enabled or closed; start the process with stdin"
        }
        ProcessError::NoTerminal => "error writing to tty: tty not assigned to process",
        ProcessError::StdinClosed => "error writing to stdin: stdin is closed",
        ProcessError::TerminalStaysOpen => {
            "error closing stdin: cannot close stdin of a PTY process, send Ctrl+D (0x04) instead"
        }
    };
    ConnectError::internal(words)
}

/// Any failure to start a process is the caller's argument, save those that are not.
pub(super) async fn start(sandbox: &Sandbox, error: LinkError, user_name: &str) -> ConnectError {
    let too_long = match &error {
        LinkError::Unsendable(_) => true,
        LinkError::Refused(refusal) => refusal.code == ErrorCode::TooLarge,
        _ => false,
    };
    let mut failure = user(sandbox, error, user_name).await;
    if too_long && failure.code == ConnectCode::InvalidArgument {
        failure
            .message
            .push_str("; write what is long to a file and have the command read that");
    }
    if matches!(
        failure.code,
        ConnectCode::NotFound | ConnectCode::PermissionDenied | ConnectCode::FailedPrecondition
    ) {
        failure.code = ConnectCode::InvalidArgument;
    }
    failure
}

fn refused(code: ErrorCode) -> ConnectCode {
    match code {
        ErrorCode::NotFound | ErrorCode::NoSuchProcess => ConnectCode::NotFound,
        ErrorCode::PermissionDenied => ConnectCode::PermissionDenied,
        ErrorCode::AlreadyExists => ConnectCode::AlreadyExists,
        ErrorCode::NotADirectory
        | ErrorCode::IsADirectory
        | ErrorCode::NotRegular
        | ErrorCode::InvalidArgument
        | ErrorCode::BadCwd
        | ErrorCode::NotExecutable
        | ErrorCode::TooLarge
        | ErrorCode::Loop => ConnectCode::InvalidArgument,
        ErrorCode::NoSpace | ErrorCode::Busy | ErrorCode::OutOfResources => {
            ConnectCode::ResourceExhausted
        }
        ErrorCode::UnknownUser => ConnectCode::Unauthenticated,
        ErrorCode::ReadOnly => ConnectCode::FailedPrecondition,
        ErrorCode::Unsupported => ConnectCode::Unimplemented,
        ErrorCode::Io => ConnectCode::Internal,
    }
}

/// The error with its causes on one line.
fn words(error: &LinkError) -> String {
    match error {
        LinkError::Refused(refusal) if refusal.code == ErrorCode::NoSpace => {
            format!("not enough disk space: {}", kernels_words(refusal))
        }
        LinkError::Refused(refusal) => kernels_words(refusal),
        LinkError::Unsendable(why) => format!("{error}: {why}"),
        other => other.to_string(),
    }
}

/// The agent's message with the kernel's name for the error rather than its number.
fn kernels_words(refusal: &AgentRefusal) -> String {
    let number = format!("errno {}", refusal.errno);
    let Some(what) = refusal.message.strip_suffix(&number) else {
        return refusal.message.clone();
    };
    let name = std::io::Error::from_raw_os_error(refusal.errno).to_string();
    let name = name.split(" (os error").next().unwrap_or_default();
    format!("{what}{name}")
}

/// The Connect error of a failed call about a path.
pub(super) async fn path(
    sandbox: &Sandbox,
    error: LinkError,
    path: &str,
    user_name: &str,
) -> ConnectError {
    let mut failure = user(sandbox, error, user_name).await;
    if failure.code != ConnectCode::Unauthenticated {
        failure.message = format!("path '{path}': {}", failure.message);
    }
    failure
}

/// The HTTP error of a failed file transfer of `path` as `user_name`.
pub(super) async fn file(
    sandbox: &Sandbox,
    error: LinkError,
    path: &str,
    user_name: &str,
) -> HttpError {
    settle(sandbox.gone(), &error).await;
    let (status, message) = match &error {
        LinkError::Refused(refusal) => match refusal.code {
            ErrorCode::NotFound => (
                StatusCode::NOT_FOUND,
                format!("path '{path}' does not exist"),
            ),
            ErrorCode::IsADirectory => (
                StatusCode::BAD_REQUEST,
                format!("path '{path}' is a directory"),
            ),
            ErrorCode::UnknownUser => return unknown_user(user_name).into(),
            ErrorCode::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, words(&error)),
            code => (refused(code).http_status(), words(&error)),
        },
        LinkError::Unsendable(_) => (StatusCode::BAD_REQUEST, words(&error)),
        LinkError::Closed(_) => (StatusCode::SERVICE_UNAVAILABLE, words(&error)),
        LinkError::Busy => (StatusCode::TOO_MANY_REQUESTS, words(&error)),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, words(&error)),
    };
    HttpError { status, message }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn numbers_of_the_kernel_become_words() {
        let refusal = |errno, message: &str| AgentRefusal {
            code: ErrorCode::Io,
            errno,
            message: message.into(),
        };
        assert_eq!(
            kernels_words(&refusal(28, "write: errno 28")),
            "write: No space left on device"
        );
        assert_eq!(
            kernels_words(&refusal(2, "write: errno 28")),
            "write: errno 28"
        );
        assert_eq!(kernels_words(&refusal(0, "unknown user")), "unknown user");
    }
}
