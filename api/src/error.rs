//! Errors as clients see them. The only place that picks statuses, codes and their words.

use crate::{Body, body};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::json;

/// What went wrong with a control-plane request. The body is `{"code": <status>, "message": …}`;
/// the JavaScript SDK decides by the body's code, not by the status (api/PROTOCOL.md §3.3).
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No key, or a wrong one.
    #[error("The X-API-KEY header is missing or holds no valid API key")]
    Unauthorized,
    /// The request cannot be understood or asks for something out of range.
    #[error("{0}")]
    Invalid(String),
    /// The body is larger than is read.
    #[error("The request body is over {0} bytes")]
    BodyTooLarge(usize),
    /// The body did not arrive in time.
    #[error("The request body did not arrive within {0} s")]
    BodyTooSlow(u64),
    /// No such sandbox, now.
    #[error("Sandbox {0:?} was not found")]
    SandboxNotFound(String),
    /// No such template.
    #[error("Template {0:?} was not found")]
    TemplateNotFound(String),
    /// No such endpoint.
    #[error("There is no {method} {path}")]
    NoRoute {
        /// The method.
        method: String,
        /// The path, shortened.
        path: String,
    },
    /// The endpoint exists with another method.
    #[error("{path} does not take {method}")]
    Method {
        /// The method.
        method: String,
        /// The path, shortened.
        path: String,
    },
    /// An Idempotency-Key was used with another request.
    #[error("This Idempotency-Key was used with another request body")]
    IdempotencyMismatch,
    /// The limit of sandboxes is reached.
    #[error(
        "You have reached the maximum number of concurrent E2B sandboxes ({max}). Kill one, or \
         raise limits.max_sandboxes"
    )]
    TooManySandboxes {
        /// The limit.
        max: usize,
    },
    /// The host is short of memory.
    #[error(
        "The host has {available} MiB of memory left, and {needed} have to be for this to begin \
         (limits.min_memory_mb, and what is to be loaded). Kill a sandbox, or come again later"
    )]
    NoMemory {
        /// What is left, MiB.
        available: u64,
        /// What has to be, MiB.
        needed: u64,
    },
    /// No such checkpoint, now.
    #[error("Sandbox {sandbox_id:?} has no checkpoint {checkpoint:?}")]
    CheckpointNotFound {
        /// The sandbox.
        sandbox_id: String,
        /// The id or name, shortened.
        checkpoint: String,
    },
    /// The limit of checkpoints is reached.
    #[error(
        "The sandbox has {max} checkpoints, the most that are kept. Delete one, or raise \
         limits.max_checkpoints"
    )]
    TooManyCheckpoints {
        /// The limit.
        max: usize,
    },
    /// The sandbox is in another state than this needs.
    #[error("{0}")]
    Conflict(String),
    /// A sandbox could not be saved, and runs on; the message says why.
    #[error("The sandbox was not paused and runs on: {0}")]
    PauseFailed(String),
    /// A sandbox ended when it was to be saved; the message says what was noticed.
    #[error("The sandbox ended while it was being saved: {0}")]
    EndedMeanwhile(String),
    /// A paused sandbox could not be resumed, and stays paused; the message says why.
    #[error("The sandbox was not resumed: {0}")]
    ResumeFailed(String),
    /// A sandbox's stored state could not be removed.
    #[error("The sandbox was not killed: {0}")]
    KillFailed(String),
    /// A stored moment of a sandbox could not be removed.
    #[error("It was not deleted: {0}")]
    DeleteFailed(String),
    /// Part of the E2B API that this version does not have.
    #[error("{0} is not available in this version of Hatchery yet")]
    NotYet(&'static str),
    /// The server is shutting down.
    #[error("The server is shutting down")]
    ShuttingDown,
    /// A sandbox could not be started; the message says at which step and why.
    #[error("{0}")]
    StartFailed(String),
}

impl ApiError {
    /// The HTTP status, which is also the body's code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::SandboxNotFound(_)
            | Self::TemplateNotFound(_)
            | Self::CheckpointNotFound { .. }
            | Self::NoRoute { .. } => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::IdempotencyMismatch | Self::Conflict(_) | Self::TooManyCheckpoints { .. } => {
                StatusCode::CONFLICT
            }
            Self::TooManySandboxes { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotYet(_) => StatusCode::NOT_IMPLEMENTED,
            Self::ShuttingDown | Self::NoMemory { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::StartFailed(_)
            | Self::PauseFailed(_)
            | Self::EndedMeanwhile(_)
            | Self::ResumeFailed(_)
            | Self::KillFailed(_)
            | Self::DeleteFailed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// A word for programs, where the status alone is ambiguous.
    #[must_use]
    pub fn error_code(&self) -> Option<&'static str> {
        match self {
            Self::TooManySandboxes { .. } => Some("sandbox_limit_reached"),
            Self::NoMemory { .. } => Some("host_memory_low"),
            Self::TemplateNotFound(_) => Some("template_not_found"),
            Self::CheckpointNotFound { .. } => Some("checkpoint_not_found"),
            Self::TooManyCheckpoints { .. } => Some("checkpoint_limit_reached"),
            Self::NotYet(_) => Some("not_available_yet"),
            Self::StartFailed(_) => Some("sandbox_start_failed"),
            Self::PauseFailed(_) => Some("sandbox_pause_failed"),
            Self::EndedMeanwhile(_) => Some("sandbox_ended"),
            Self::ResumeFailed(_) => Some("sandbox_resume_failed"),
            Self::IdempotencyMismatch => Some("idempotency_key_mismatch"),
            _ => None,
        }
    }

    /// Whether the same request is worth to be made again, and after how many seconds.
    #[must_use]
    pub fn retry(&self) -> (Option<bool>, Option<u32>) {
        match self {
            // Another server is most often about to start in its place; nothing has been made.
            Self::ShuttingDown => (Some(true), Some(2)),
            // Time alone does not help, but a sandbox that ends does.
            Self::TooManySandboxes { .. } => (Some(false), Some(1)),
            Self::NoMemory { .. } => (Some(false), Some(5)),
            _ if self.status().is_server_error() => (Some(false), None),
            _ => (None, None),
        }
    }

    /// The whole response. `Should-Retry: false` stops the SDKs from repeating what would fail again
    /// (api/PROTOCOL.md §3.5).
    #[must_use]
    pub fn response(&self) -> Response<Body> {
        let status = self.status();
        let mut body = json!({ "code": status.as_u16(), "message": self.to_string() });
        if let Some(code) = self.error_code() {
            body["error_code"] = code.into();
        }
        let mut response = json_response(status, &body);
        let headers = response.headers_mut();
        let (should, after) = self.retry();
        if let Some(should) = should {
            let text = if should { "true" } else { "false" };
            headers.insert("should-retry", HeaderValue::from_static(text));
        }
        if let Some(seconds) = after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// What went wrong before a request reached a sandbox. The SDKs look for the words "was not found"
/// and "port is not open" in a 502 (api/PROTOCOL.md §2.3).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Unknown, killed or ended.
    #[error("The sandbox was not found")]
    NotFound {
        /// The sandbox.
        id: String,
    },
    /// It ended by itself while the request was under way. Begins with the words above.
    #[error("The sandbox was not found any more: {how}")]
    Ended {
        /// The sandbox.
        id: String,
        /// What the host saw.
        how: String,
    },
    /// It is being paused.
    #[error("The sandbox is being paused")]
    Pausing {
        /// The sandbox.
        id: String,
    },
    /// It could not be resumed for this request.
    #[error("{message}")]
    NotResumed {
        /// The sandbox.
        id: String,
        /// The status of the attempt.
        status: StatusCode,
        /// What it says.
        message: String,
    },
    /// Nothing listens there.
    #[error("The sandbox is running but port is not open")]
    PortClosed {
        /// The sandbox.
        id: String,
        /// The port.
        port: u16,
    },
    /// A host name that names a sandbox but not well.
    #[error("Invalid host")]
    Host,
    /// An id with other characters than `[a-z0-9]`.
    #[error("Invalid sandbox ID")]
    Id,
    /// A port that is not 1 to 65535.
    #[error("Invalid sandbox port")]
    Port,
    /// One of the two routing headers without the other.
    #[error("missing header: {0}")]
    MissingHeader(&'static str),
    /// A path of envd that only its control plane may use.
    #[error("{0} is reserved for the control plane")]
    Reserved(&'static str),
    /// A signed file URL that no running sandbox's token has signed.
    #[error("invalid signature")]
    Signature,
}

impl ProxyError {
    /// The whole response.
    #[must_use]
    pub fn response(&self) -> Response<Body> {
        let message = self.to_string();
        match self {
            Self::NotFound { id } | Self::Ended { id, .. } => json_response(
                StatusCode::BAD_GATEWAY,
                &json!({ "sandboxId": id, "message": message, "code": 502 }),
            ),
            Self::Pausing { id } => json_response(
                StatusCode::CONFLICT,
                &json!({ "sandboxId": id, "message": message, "code": 409 }),
            ),
            Self::NotResumed { id, status, .. } => json_response(
                *status,
                &json!({ "sandboxId": id, "message": message, "code": status.as_u16() }),
            ),
            Self::PortClosed { id, port } => json_response(
                StatusCode::BAD_GATEWAY,
                &json!({ "sandboxId": id, "message": message, "port": port, "code": 502 }),
            ),
            Self::Host | Self::Id | Self::Port | Self::MissingHeader(_) => json_response(
                StatusCode::BAD_REQUEST,
                &json!({ "message": message, "code": 400 }),
            ),
            Self::Signature => json_response(
                StatusCode::UNAUTHORIZED,
                &json!({ "code": 401, "message": message }),
            ),
            Self::Reserved(_) => {
                let mut response = Response::new(body::full(message));
                *response.status_mut() = StatusCode::NOT_FOUND;
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, text);
                response
            }
        }
    }
}

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// A JSON response.
pub fn json_response(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    // Our response types have string keys and no failing serializers.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod test {
    use super::*;
    use http_body_util::BodyExt;

    async fn parts(response: Response<Body>) -> (u16, Option<String>, serde_json::Value) {
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let retry = head
            .headers
            .get("should-retry")
            .map(|v| v.to_str().unwrap().to_owned());
        (
            head.status.as_u16(),
            retry,
            serde_json::from_slice(&bytes).unwrap(),
        )
    }

    #[tokio::test]
    async fn the_body_repeats_the_status_as_an_integer() {
        let (status, retry, body) = parts(ApiError::Unauthorized.response()).await;
        assert_eq!((status, retry, &body["code"]), (401, None, &json!(401)));
        let (status, retry, body) = parts(ApiError::TooManySandboxes { max: 3 }.response()).await;
        assert_eq!((status, retry.as_deref()), (429, Some("false")));
        assert_eq!(body["error_code"], "sandbox_limit_reached");
    }

    #[tokio::test]
    async fn the_sdks_find_their_words() {
        let (status, _, body) = parts(ProxyError::NotFound { id: "i1".into() }.response()).await;
        assert_eq!(status, 502);
        assert_eq!(
            body,
            json!({ "sandboxId": "i1", "message": "The sandbox was not found", "code": 502 })
        );
        let ended = ProxyError::Ended {
            id: "i1".into(),
            how: "signal 9".into(),
        };
        let (status, _, body) = parts(ended.response()).await;
        let message = body["message"].as_str().unwrap();
        assert_eq!(status, 502);
        assert!(
            message.contains("was not found") && message.contains("signal 9"),
            "{message}"
        );
        let closed = ProxyError::PortClosed {
            id: "i1".into(),
            port: 8080,
        };
        let (_, _, body) = parts(closed.response()).await;
        assert_eq!(
            body["message"],
            "The sandbox is running but port is not open"
        );
        assert_eq!(body["port"], 8080);
    }
}
