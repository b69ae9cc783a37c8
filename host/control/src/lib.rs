//! What the service and one VM process say to each other.
//!
//! The service starts a VM process by [`spawn()`], with one end of a `SOCK_SEQPACKET` socket pair
//! as its standard input ([`CONTROL_FD`]). One packet is one message: a version byte, then the
//! postcard encoding of a [`Request`] (service to VM process) or an [`Event`] (VM process to
//! service). Descriptors travel with the packet, and the message has a name for each ([`FdName`]).
//!
//! ```text
//! service                               VM process
//!   | -- Configure(VmSpec) + fds ------->  |   builds KVM objects and devices, runs nothing
//!   | <------------------ Configured ----  |
//!   | -- Start ------------------------->  |   lets the vCPUs go
//!   | -- Stats ------------------------->  |
//!   | <---------------- Stats(VmStats) --  |
//!   | -- Stop -------------------------->  |
//!   | <------- Exited(ExitReport), EOF --  |   also unasked for: panic, triple fault, host fault
//! ```
//!
//! Either side may vanish: end-of-file on the socket means the peer is gone. A VM process whose
//! service is gone ends itself, so that a crashed service leaves no process behind.
//!
//! Messages with a network process are [`NetRequest`] and [`NetEvent`], in the same frames.
//!
//! **Architecture invariant:** this crate knows neither KVM nor HTTP.
//!
//! ```
//! use control::{Descriptors, Event, Request};
//!
//! let (service, vm_process) = control::pair()?;
//! control::send(&service, &Request::Start, &Descriptors::default().borrow())?;
//! let (request, descriptors) = control::recv::<Request>(&vm_process)?.ok_or("it is gone")?;
//! assert_eq!((request, descriptors.len()), (Request::Start, 0));
//! drop(service);
//! assert!(control::recv::<Request>(&vm_process)?.is_none(), "the peer is gone");
//! # let _ = std::marker::PhantomData::<Event>;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cgroup;
mod descriptors;
mod device;
mod error_chain;
mod frame;
mod header_rules;
mod message;
mod net;
mod net_policy;
mod spawn;
mod spec;
mod walls;
mod zygote;

pub use cgroup::{CONTROLLERS, CgroupMode, CgroupSite, NoCgroups};
pub use descriptors::{Descriptors, FdName, MissingFd, ReceivedFds};
pub use device::{DeviceReset, DeviceSpec, DiskSpec, NetDeviceSpec, SavedLink, VsockSpec};
pub use error_chain::chain;
pub use frame::{ChannelError, MAX_FDS, MAX_MESSAGE, fuzz_messages, pair, recv, send};
pub use header_rules::{
    HeaderRules, HeaderRulesError, HostHeaders, MAX_RULE_BYTES, MAX_RULE_HEADERS, MAX_RULE_HOSTS,
    SecretBytes, SecretHeader, check_hosts,
};
pub use message::{
    Configured, Event, ExitCause, ExitReport, MAX_CONSOLE_TAIL, Request, Reset, Saved, VmStats,
};
pub use net::{
    DeniedFlow, DenyReason, GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC, GUEST_IPV4, GUEST_IPV6,
    GUEST_MAC, IPV4_PREFIX, IPV6_PREFIX, MAX_FRAME, MAX_HOST_ADDRESSES, MAX_NET_FLOWS, MIN_NET_MTU,
    NET_CONTROL_FD, NET_FRAMES_FD, NET_MTU, NetCounters, NetEvent, NetIpv6, NetLimits, NetProtocol,
    NetRequest, NetSpec, NetSpecError,
};
pub use net_policy::{
    AllowTarget, DomainPattern, IpRange, MAX_ALLOW_OUT, MAX_DENY_OUT, MAX_DOMAIN, MAX_DOMAIN_BYTES,
    MAX_NAME_SERVERS, MAX_OPENINGS, NetPolicy, NetPolicyError,
};
pub use spawn::spawn;
pub use spec::{
    BootSource, MAX_DEVICES, MAX_DISKS, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB, ResetSpec,
    SaveSpec, SpecError, VmSpec,
};
pub use walls::{JailMode, MissingWall, Wall, list_missing};
pub use zygote::{
    Role, Spawned, ZYGOTE_ARGUMENT, ZYGOTE_NAME, Zygote, ZygoteError, serve as serve_zygote,
};

/// The descriptor under which a VM process finds its control socket: standard input, because that
/// is the one a program can be given without code between fork and exec.
pub const CONTROL_FD: i32 = 0;
