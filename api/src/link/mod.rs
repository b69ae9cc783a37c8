//! The client side of the wire protocol: one link per sandbox, many streams.

use std::collections::BTreeMap;
use tokio::net::UnixStream;

/// What the guest agent says first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The agent's version of the wire protocol.
    pub version: u16,
}

/// Who a fresh guest is to be. Sent once before any tenant code runs.
#[derive(Clone)]
pub struct Identity {
    /// Nanoseconds since 1970, UTC, taken as late as possible.
    pub unix_ns: u64,
    /// The guest's host name: the sandbox's id.
    pub hostname: String,
    /// Fresh random bytes for the guest kernel's pool.
    pub entropy: [u8; 32],
    /// Environment, for agents that want to keep it.
    pub env: BTreeMap<String, String>,
}

/// Why a link could not be made, or a call on it failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end is gone.
    #[error("The guest agent is gone")]
    Closed,
}

/// A cheap handle; clones share the connection.
#[derive(Clone, Debug)]
pub struct Link {}

impl Link {
    /// Waits for the agent's Hello, then drives the connection in a task of its own. The caller
    /// bounds the time.
    ///
    /// # Errors
    /// The stream ended or the peer spoke something else.
    pub async fn connect(stream: UnixStream) -> Result<(Self, Hello), LinkError> {
        drop(stream);
        Err(LinkError::Closed)
    }

    /// Makes the guest this sandbox; returns once the agent has acknowledged.
    ///
    /// # Errors
    /// The link closed or the agent refused.
    pub async fn set_identity(&self, identity: Identity) -> Result<(), LinkError> {
        drop(identity);
        Err(LinkError::Closed)
    }

    /// Completes when the connection has ended for good.
    pub async fn closed(&self) {}

    /// Ends the connection: every open stream fails, [`Link::closed`] completes.
    pub fn close(&self) {}
}
