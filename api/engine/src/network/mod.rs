//! A sandbox's network, as far as the service has to do with it: the frame socket between its VM
//! process and a network process of its own, which is started when a first frame comes.
//!
//! ```text
//!  VM process ═══ frames ═══> frame socket: looked at only while nobody serves it
//!                              └─ a frame for the gateway ──> hatchery-net, with the socket
//! ```
//!
//! A machine that sends nothing has no network process.

mod egress;
#[cfg(test)]
pub(crate) use egress::test as egress_test;
mod frames;
mod guest_trust;
mod host;
mod network_process;
mod roots;
mod service;

pub use authority::CertifiedKey;
pub use control::{
    AllowTarget, HostHeaders, IpRange, NetPolicy, NetPolicyError, SecretBytes, SecretHeader,
    check_hosts,
};
pub use egress::EgressPolicy;
pub use frames::FrameSocket;
pub(crate) use guest_trust::{add_variables, trust};
pub use host::host_name_servers;
pub use service::{NetworkService, NetworkSettings};
