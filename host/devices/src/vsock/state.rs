//! The saved form of the socket device, besides its registers and queues.

use serde::{Deserialize, Serialize};

/// The socket device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VsockV1 {
    pub(super) guest_cid: u64,
    pub(super) port: u32,
    pub(super) connection: Option<ConnectionV1>,
    /// Oldest first.
    pub(super) resets: Vec<ResetV1>,
}

/// The connection: all that [`super::connection::VsockConnection`] counts. What came from the guest
/// has reached the link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ConnectionV1 {
    pub(super) guest_port: u32,
    pub(super) peer_buf_alloc: u32,
    pub(super) peer_fwd_cnt: u32,
    pub(super) sent: u32,
    pub(super) received: u32,
    pub(super) forwarded: u32,
    pub(super) advertised: u32,
    pub(super) guest_shutdown: u32,
    pub(super) answer: bool,
    pub(super) tell_credit: bool,
}

/// A reset packet that the guest has not taken yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ResetV1 {
    pub(super) local_port: u32,
    pub(super) guest_port: u32,
    pub(super) kind: u16,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}
