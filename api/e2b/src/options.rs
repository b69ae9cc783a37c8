//! What an operator decides about the server.

use crate::auth::ApiKeys;
use std::time::Duration;

/// Bounds and names, with every default filled in.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The sandboxes' domain.
    pub domain: Option<String>,
    /// Who may use the control plane.
    pub keys: ApiKeys,
    /// Longest time to live that a client may ask for.
    pub max_timeout: Duration,
    /// Most client connections.
    pub max_connections: usize,
    /// Longest wait for a request's head.
    pub header_timeout: Duration,
    /// Longest wait for the next request on a connection.
    pub idle_timeout: Duration,
    /// Most bytes of a control-plane body.
    pub max_json_bytes: usize,
}
