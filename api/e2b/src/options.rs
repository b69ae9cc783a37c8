//! What an operator decides about the server.

use crate::auth::ApiKeys;
use engine::environment::IdentityVariables;
use std::time::Duration;

/// The variables by which E2B's clients know that they are in a sandbox, and in which
/// (api/PROTOCOL.md §7).
pub const VARIABLES: IdentityVariables = IdentityVariables {
    marker: "E2B_SANDBOX",
    sandbox_id: "E2B_SANDBOX_ID",
    template_id: "E2B_TEMPLATE_ID",
};

/// Bounds and names, with every default filled in.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The sandboxes' domain.
    pub domain: Option<String>,
    /// Whether only this machine reaches the plain listener: then sandboxes without a token are not
    /// for requests under other names that come there.
    pub on_loopback: bool,
    /// Whether every creation gets a token, also one that asks for none.
    pub require_token: bool,
    /// Who may use the control plane.
    pub keys: ApiKeys,
    /// Longest time to live that a client may ask for.
    pub max_timeout: Duration,
    /// Most client connections.
    pub max_connections: usize,
    /// Most of them from one address; 0: as many as there are.
    pub max_peer_connections: usize,
    /// Most connections to ports of one sandbox.
    pub max_port_connections: usize,
    /// Longest wait for a request's head.
    pub header_timeout: Duration,
    /// Longest wait for the next request on a connection, and for the next byte either way on one
    /// to a port of a sandbox.
    pub idle_timeout: Duration,
    /// Most bytes of a control-plane body.
    pub max_json_bytes: usize,
    /// Memory of all request bodies together, MiB.
    pub body_memory_mb: usize,
}
