//! Connect's status codes, and the error that carries one (api/PROTOCOL.md §7.4).

use hyper::StatusCode;
use serde_json::json;

/// A Connect status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectCode {
    /// The caller gave up.
    Canceled,
    /// Nobody knows better.
    Unknown,
    /// The request is wrong whatever the state of the system.
    InvalidArgument,
    /// Time ran out.
    DeadlineExceeded,
    /// What was named does not exist.
    NotFound,
    /// What was to be made exists.
    AlreadyExists,
    /// The caller may not.
    PermissionDenied,
    /// A quota or a limit is used up.
    ResourceExhausted,
    /// The system is not in the state that the request needs.
    FailedPrecondition,
    /// A conflict with another call.
    Aborted,
    /// Past the valid range.
    OutOfRange,
    /// No such method, or not built.
    Unimplemented,
    /// A broken invariant, or an error of the guest that has no code of its own.
    Internal,
    /// Not now.
    Unavailable,
    /// Data is lost for good.
    DataLoss,
    /// Credentials are missing or wrong.
    Unauthenticated,
}

impl ConnectCode {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Canceled => "canceled",
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalid_argument",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PermissionDenied => "permission_denied",
            Self::ResourceExhausted => "resource_exhausted",
            Self::FailedPrecondition => "failed_precondition",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out_of_range",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data_loss",
            Self::Unauthenticated => "unauthenticated",
        }
    }

    /// The HTTP status of a unary error.
    #[must_use]
    pub fn http_status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => {
                StatusCode::BAD_REQUEST
            }
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists | Self::Aborted => StatusCode::CONFLICT,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Canceled => {
                StatusCode::from_u16(499).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::Unknown | Self::Internal | Self::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// An error as the client sees it: a code for programs and a message for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct ConnectError {
    /// What kind of error.
    pub code: ConnectCode,
    /// What happened, with the values involved.
    pub message: String,
}

impl ConnectError {
    /// An error with this code and message.
    pub fn new(code: ConnectCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// `invalid_argument`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ConnectCode::InvalidArgument, message)
    }

    /// `not_found`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ConnectCode::NotFound, message)
    }

    /// `unimplemented`.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(ConnectCode::Unimplemented, message)
    }

    /// `internal`.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ConnectCode::Internal, message)
    }

    /// The error as a JSON value: `{"code", "message"}`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "code": self.code.as_str(), "message": self.message })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn codes_map_to_the_statuses_of_the_specification() {
        let table = [
            (ConnectCode::Canceled, "canceled", 499),
            (ConnectCode::Unknown, "unknown", 500),
            (ConnectCode::InvalidArgument, "invalid_argument", 400),
            (ConnectCode::DeadlineExceeded, "deadline_exceeded", 504),
            (ConnectCode::NotFound, "not_found", 404),
            (ConnectCode::AlreadyExists, "already_exists", 409),
            (ConnectCode::PermissionDenied, "permission_denied", 403),
            (ConnectCode::ResourceExhausted, "resource_exhausted", 429),
            (ConnectCode::FailedPrecondition, "failed_precondition", 400),
            (ConnectCode::Aborted, "aborted", 409),
            (ConnectCode::OutOfRange, "out_of_range", 400),
            (ConnectCode::Unimplemented, "unimplemented", 501),
            (ConnectCode::Internal, "internal", 500),
            (ConnectCode::Unavailable, "unavailable", 503),
            (ConnectCode::DataLoss, "data_loss", 500),
            (ConnectCode::Unauthenticated, "unauthenticated", 401),
        ];
        for (code, name, status) in table {
            assert_eq!(code.as_str(), name);
            assert_eq!(code.http_status().as_u16(), status, "{name}");
        }
    }
}
