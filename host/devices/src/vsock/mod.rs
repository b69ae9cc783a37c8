//! The socket device (virtio 1.2 §5.10): one byte stream between the guest's agent and the link.
//!
//! ```text
//!  guest tx queue --> packet --> Muxer/Connection --> Outbox --sendmsg--> link socket
//!  guest rx queue <-- packet <-- Muxer/Connection <-- Inbox <--recv------ link socket
//! ```

mod connection;
mod device;
mod inbox;
mod muxer;
mod outbox;
pub(crate) mod packet;
pub(crate) mod spec;
mod state;
#[cfg(test)]
mod test;

pub(crate) use device::Vsock;
pub(crate) use state::VsockV1;
use std::os::fd::OwnedFd;

/// What the socket device needs.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub guest_cid: u32,
    /// The host port on which a guest connection is joined to `link`.
    pub port: u32,
    /// A connected stream socket; it stays open when the guest reconnects.
    pub link: OwnedFd,
}
