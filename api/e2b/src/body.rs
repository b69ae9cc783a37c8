//! The one response body type, and the ways to make it.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};

/// Why a response body broke off. Hyper drops the connection (HTTP/1.1) or resets the stream (h2)
/// when a body yields one: that is how a client learns that its sandbox is gone.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Every response body of this server.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// No body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
