//! A sandbox's network, as far as the service has to do with it: the frame socket between its VM
//! process and a network process of its own, which is started when a first frame comes.
//!
//! ```text
//!  VM process ═══ frames ═══> frame socket: looked at only while nobody serves it
//!                              └─ a frame for the gateway ──> hatchery-net, with the socket
//! ```
//!
//! A machine that sends nothing has no network process.

mod frames;
mod host;
mod network_process;
mod service;

pub use control::{AllowTarget, IpRange, NetPolicy, NetPolicyError};
pub use frames::FrameSocket;
pub use host::host_name_servers;
pub use service::{NetworkService, NetworkSettings};
