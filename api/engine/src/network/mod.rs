//! A sandbox's network, as far as the service has to do with it: the wire between its VM process and
//! a network process of its own, which is started when there is something on the wire.
//!
//! ```text
//!  VM process ═══ frames ═══> wire: looked at only while nobody serves it
//!                              └─ a frame for the gateway ──> hatchery-net, with the wire's end
//! ```
//!
//! A machine that sends nothing has no network process.

mod host;
mod network_process;
mod service;
mod wire;

pub use control::{AllowTarget, IpRange, NetPolicy, NetPolicyError};
pub use service::{NetworkService, NetworkSettings};
pub use wire::FrameWire;
