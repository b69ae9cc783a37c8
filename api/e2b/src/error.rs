//! Errors as clients see them. The only place that picks statuses, codes and their words.

use crate::budget::BodyRefusal;
use crate::{Body, body};
use engine::error::EngineError;
use engine::quota::LimitKind;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

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
    /// There is no memory for the body.
    #[error("{0}")]
    BodyMemory(#[from] BodyRefusal),
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
    /// The engine refuses or has failed.
    #[error("{}", words(.0))]
    Engine(#[from] EngineError),
    /// It contradicts what there is.
    #[error("{0}")]
    Conflict(String),
    /// Part of the E2B API that this version does not have.
    #[error("{0} is not available in this version of Hatchery yet")]
    NotYet(&'static str),
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
            Self::NoRoute { .. } => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict(_) | Self::IdempotencyMismatch => StatusCode::CONFLICT,
            Self::NotYet(_) => StatusCode::NOT_IMPLEMENTED,
            Self::BodyMemory(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Engine(error) => engine_status(error),
        }
    }

    /// A word for programs, where the status alone is ambiguous.
    #[must_use]
    pub fn error_code(&self) -> Option<&'static str> {
        match self {
            Self::NotYet(_) => Some("not_available_yet"),
            Self::BodyMemory(_) => Some("body_memory_full"),
            Self::IdempotencyMismatch => Some("idempotency_key_mismatch"),
            Self::Engine(error) => engine_code(error),
            _ => None,
        }
    }

    /// Whether the same request is worth to be made again, and after how many seconds.
    #[must_use]
    pub fn retry(&self) -> (Option<bool>, Option<u32>) {
        match self {
            // Another server is most often about to start in its place; nothing has been made.
            Self::Engine(EngineError::ShuttingDown) => (Some(true), Some(2)),
            // Nothing has been made, and the next body may find memory.
            Self::BodyMemory(_) => (Some(true), Some(1)),
            // Time alone does not help, but a sandbox that ends does.
            Self::Engine(EngineError::TooManySandboxes { .. }) => (Some(false), Some(1)),
            // Here time alone does help.
            Self::Engine(EngineError::LimitReached(reached)) if reached.again.is_some() => {
                let wait = reached.again.unwrap_or_default().as_secs();
                let wait = u32::try_from(wait).unwrap_or(u32::MAX).saturating_add(1);
                (Some(true), Some(wait))
            }
            Self::Engine(EngineError::LimitReached(_)) => (Some(false), Some(1)),
            Self::Engine(EngineError::NoMemory { .. }) => (Some(false), Some(5)),
            Self::Engine(EngineError::NoDisk { .. }) => (Some(false), Some(30)),
            _ if self.status().is_server_error() => (Some(false), None),
            _ => (None, None),
        }
    }

    /// What clients read of it: the body of a response, or an entry of a list.
    #[must_use]
    pub fn view(&self) -> Value {
        let mut view = json!({ "code": self.status().as_u16(), "message": self.to_string() });
        if let Some(code) = self.error_code() {
            view["error_code"] = code.into();
        }
        view
    }

    /// The whole response. `Should-Retry: false` stops the SDKs from repeating what would fail
    /// again (api/PROTOCOL.md §3.5).
    #[must_use]
    pub fn response(&self) -> Response<Body> {
        let mut response = json_response(self.status(), &self.view());
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

/// The engine's words, or E2B's where its clients know them.
fn words(error: &EngineError) -> String {
    match error {
        EngineError::TooManySandboxes { max } => format!(
            "You have reached the maximum number of concurrent E2B sandboxes ({max}). Kill one, or \
             raise limits.max_sandboxes"
        ),
        EngineError::LimitReached(reached) if reached.kind == LimitKind::Running => format!(
            "You have reached the maximum number of concurrent E2B sandboxes ({}). {reached}",
            reached.max
        ),
        other => other.to_string(),
    }
}

fn engine_status(error: &EngineError) -> StatusCode {
    match error {
        EngineError::Invalid(_) => StatusCode::BAD_REQUEST,
        EngineError::SandboxNotFound(_)
        | EngineError::TemplateNotFound(_)
        | EngineError::CheckpointNotFound { .. } => StatusCode::NOT_FOUND,
        EngineError::Conflict(_) | EngineError::TooManyCheckpoints { .. } => StatusCode::CONFLICT,
        EngineError::TooManySandboxes { .. } | EngineError::LimitReached(_) => {
            StatusCode::TOO_MANY_REQUESTS
        }
        EngineError::ShuttingDown | EngineError::NoMemory { .. } | EngineError::NoDisk { .. } => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        EngineError::StartFailed(_)
        | EngineError::PauseFailed(_)
        | EngineError::EndedMeanwhile(_)
        | EngineError::ResumeFailed(_)
        | EngineError::KillFailed(_)
        | EngineError::DeleteFailed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn engine_code(error: &EngineError) -> Option<&'static str> {
    match error {
        EngineError::TooManySandboxes { .. } => Some("sandbox_limit_reached"),
        EngineError::LimitReached(reached) => match reached.kind {
            LimitKind::Running => Some("sandbox_limit_reached"),
            LimitKind::Paused => Some("paused_limit_reached"),
            LimitKind::Snapshots => Some("snapshot_limit_reached"),
            LimitKind::StoredBytes => Some("stored_bytes_limit_reached"),
            LimitKind::Creations => Some("creation_rate_limit_reached"),
        },
        EngineError::NoMemory { .. } => Some("host_memory_low"),
        EngineError::NoDisk { .. } => Some("host_disk_low"),
        EngineError::TemplateNotFound(_) => Some("template_not_found"),
        EngineError::CheckpointNotFound { .. } => Some("checkpoint_not_found"),
        EngineError::TooManyCheckpoints { .. } => Some("checkpoint_limit_reached"),
        EngineError::StartFailed(_) => Some("sandbox_start_failed"),
        EngineError::PauseFailed(_) => Some("sandbox_pause_failed"),
        EngineError::EndedMeanwhile(_) => Some("sandbox_ended"),
        EngineError::ResumeFailed(_) => Some("sandbox_resume_failed"),
        _ => None,
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
    /// Its ports ask for a token, which the request does not show.
    #[error(
        "The ports of this sandbox ask for its traffic token, and the request shows none or \
         another one: send trafficAccessToken of its creation as the header \
         e2b-traffic-access-token"
    )]
    TrafficToken {
        /// The sandbox.
        id: String,
    },
    /// As many connections to its ports are open as there may be.
    #[error(
        "No more than {most} connections to the ports of a sandbox may be open, and so many are: \
         close some, or raise limits.max_port_connections"
    )]
    TooManyPorts {
        /// The sandbox.
        id: String,
        /// The limit.
        most: usize,
    },
    /// The program did not answer as HTTP has it.
    #[error("The sandbox is running, but the program on port {port} did not answer: {why}")]
    PortBroken {
        /// The sandbox.
        id: String,
        /// The port.
        port: u16,
        /// What was noticed.
        why: String,
    },
    /// The program has said nothing for too long.
    #[error(
        "The sandbox is running, but for {seconds} s (limits.idle_timeout) no byte has gone to or \
         from the program on port {port}"
    )]
    PortSilent {
        /// The sandbox.
        id: String,
        /// The port.
        port: u16,
        /// How long.
        seconds: u64,
    },
    /// A request for a tunnel to somewhere.
    #[error("CONNECT is not for sandboxes: send the request itself, or an Upgrade")]
    NoTunnel,
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
    /// A signed file URL that no sandbox's token has signed.
    #[error("invalid signature")]
    Signature,
    /// A signed file URL whose time is over.
    #[error("signature is already expired")]
    SignatureOver,
    /// Too many signed file URLs that no sandbox's token has signed came before it.
    #[error(
        "Too many signed URLs without a sandbox were invalid of late: send it again in a second, \
         or name the sandbox by E2b-Sandbox-Id and E2b-Sandbox-Port"
    )]
    TooManySignatures,
    /// A sandbox without a token, under a name that is not this server's.
    #[error(
        "This sandbox has no token, and the server, which listens on a loopback address, does not \
         answer for it under this host name: use localhost, set `domain`, or create it with secure"
    )]
    ForeignHost,
    /// A port without a token, under a name that is not this server's.
    #[error(
        "The ports of this sandbox ask for no token, and the server, which listens on a loopback \
         address, does not answer for them under this host name: use localhost, set `domain`, or \
         create it with network.allowPublicTraffic: false"
    )]
    ForeignPortHost,
}

impl ProxyError {
    /// [`ProxyError::PortBroken`], with what was noticed.
    #[must_use]
    pub fn broken(id: &str, port: u16, why: &str) -> Self {
        let (id, why) = (id.to_owned(), why.to_owned());
        Self::PortBroken { id, port, why }
    }

    /// The HTTP status, which is also the body's code.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::NotFound { .. }
            | Self::Ended { .. }
            | Self::PortClosed { .. }
            | Self::PortBroken { .. } => StatusCode::BAD_GATEWAY,
            Self::PortSilent { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Pausing { .. } => StatusCode::CONFLICT,
            Self::NotResumed { status, .. } => *status,
            Self::Host | Self::Id | Self::Port | Self::MissingHeader(_) => StatusCode::BAD_REQUEST,
            Self::Signature | Self::SignatureOver => StatusCode::UNAUTHORIZED,
            Self::ForeignHost | Self::ForeignPortHost | Self::TrafficToken { .. } => {
                StatusCode::FORBIDDEN
            }
            Self::TooManySignatures | Self::TooManyPorts { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NoTunnel => StatusCode::METHOD_NOT_ALLOWED,
            Self::Reserved(_) => StatusCode::NOT_FOUND,
        }
    }

    /// The sandbox, and the port, that it is about.
    const fn about(&self) -> (Option<&String>, Option<u16>) {
        match self {
            Self::NotFound { id }
            | Self::Ended { id, .. }
            | Self::Pausing { id }
            | Self::NotResumed { id, .. }
            | Self::TrafficToken { id }
            | Self::TooManyPorts { id, .. } => (Some(id), None),
            Self::PortClosed { id, port }
            | Self::PortBroken { id, port, .. }
            | Self::PortSilent { id, port, .. } => (Some(id), Some(*port)),
            _ => (None, None),
        }
    }

    /// The whole response.
    #[must_use]
    pub fn response(&self) -> Response<Body> {
        let (status, message) = (self.status(), self.to_string());
        if let Self::Reserved(_) = self {
            let mut response = Response::new(body::full(message));
            *response.status_mut() = status;
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
            return response;
        }
        let mut view = json!({ "message": message, "code": status.as_u16() });
        let (id, port) = self.about();
        if let Some(id) = id {
            view["sandboxId"] = id.as_str().into();
        }
        if let Some(port) = port {
            view["port"] = port.into();
        }
        let mut response = json_response(status, &view);
        if matches!(self, Self::TooManySignatures | Self::TooManyPorts { .. }) {
            response.headers_mut().insert(RETRY_AFTER, 1.into());
        }
        response
    }
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

    async fn parts(response: Response<Body>) -> (u16, Option<String>, Value) {
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
        let (status, retry, body) =
            parts(ApiError::from(EngineError::TooManySandboxes { max: 3 }).response()).await;
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
