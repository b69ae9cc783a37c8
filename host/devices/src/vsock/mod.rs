//! The socket device (virtio 1.2 §5.10): one byte stream between the guest's agent and the link.
//!
//! ```text
//!  guest tx queue --> packet --> Muxer/Connection --> Outbox --sendmsg--> link socket
//!  guest rx queue <-- packet <-- Muxer/Connection <-- Inbox <--recv------ link socket
//! ```

mod config;
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

pub use config::{SavedConnection, VsockConfig, VsockLink};
pub use device::Vsock;
#[cfg(test)]
pub(crate) use state::VsockV1;
