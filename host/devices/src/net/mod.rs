//! virtio-net (virtio 1.2 §5.1): Ethernet frames between the guest and one socket.
//!
//! ```text
//!  guest tx ring ──sendmsg, out of guest memory──> frame socket ──> whoever has the other end
//!  guest rx ring <──readv, into guest memory────── frame socket <──
//! ```
//!
//! A frame is one message of a sequential-packet socket, without the header that virtio puts before
//! it. The device looks at no frame: what may pass is decided at the socket's other end, in another
//! process.

mod config;
mod device;
mod spec;

pub use config::FrameSocket;
pub use device::Net;

#[cfg(test)]
mod test;
