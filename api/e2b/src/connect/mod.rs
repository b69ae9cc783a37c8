//! The Connect protocol with JSON, as E2B's SDKs speak it (api/PROTOCOL.md §7.2): unary calls,
//! server streams, client streams. Knows nothing of sandboxes.
//!
//! One message is bounded by [`MAX_MESSAGE`]; streams are never buffered beyond one message.
//! Nothing is ever compressed, which every client accepts.

mod code;
pub mod envelope;
pub mod json;
pub mod request;
pub mod stream;

pub use code::{ConnectCode, ConnectError};

/// The longest message a client may send, bytes of JSON text.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Content type of unary calls.
pub const UNARY_TYPE: &str = "application/json";

/// Content type of streams.
pub const STREAM_TYPE: &str = "application/connect+json";
