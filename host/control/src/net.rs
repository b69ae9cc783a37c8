//! What the service and one network process (`hatchery-net`) say to each other.
//!
//! ```text
//! service                               network process
//!   | [-- HeaderRules + roots -------->]  |   before the message that they hold with
//!   | -- Configure(NetSpec) ----------->  |   confines itself before this; reads frames after it
//!   | <----------------------- Ready ---  |
//!   | [-- HeaderRules + roots -------->]  |
//!   | -- SetPolicy(NetPolicy) --------->  |   flows that are no longer allowed are cut
//!   | <-------------------- Counters ---  |   now and then, and after each SetPolicy
//!   | <---------------------- Denied ---  |   rate-limited
//! ```
//!
//! It is started with the machine's frames as descriptor [`NET_FRAMES_FD`] and these messages as
//! [`NET_CONTROL_FD`]. The end of either ends it.

use crate::header_rules::HeaderRules;
use crate::net_policy::{
    IpRange, MAX_NAME_SERVERS, NetPolicy, NetPolicyError, check_count, check_ports,
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The descriptor of the frames, the standard input: a `SOCK_SEQPACKET` socket, one bare Ethernet
/// frame a message.
pub const NET_FRAMES_FD: i32 = 0;
/// The descriptor of these messages, the standard output: a `SOCK_SEQPACKET` socket.
pub const NET_CONTROL_FD: i32 = 1;

/// A guest's hardware address; every guest has the same, because no two share a wire.
pub const GUEST_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x05];
/// The gateway's hardware address.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x06];
/// A guest's address.
pub const GUEST_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The gateway's address: the guest's router, and its name server on port 53.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Bits of the network that the two are in.
pub const IPV4_PREFIX: u8 = 30;
/// A guest's IPv6 address.
pub const GUEST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x6174, 0x6368, 0, 0, 0, 0, 0x15);
/// The gateway's IPv6 address.
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x6174, 0x6368, 0, 0, 0, 0, 1);
/// Bits of the network that the two are in.
pub const IPV6_PREFIX: u8 = 64;
/// Most bytes of an IP packet on the wire. Large, so that bulk data needs few frames and no
/// segmentation offload.
pub const NET_MTU: u16 = 65_520;
/// Least MTU: what IPv6 needs.
pub const MIN_NET_MTU: u16 = 1280;
/// Bytes of an Ethernet header.
const ETHERNET_HEADER: usize = 14;
/// Most bytes of a frame.
pub const MAX_FRAME: usize = NET_MTU as usize + ETHERNET_HEADER;
/// Most flows that a limit may allow.
pub const MAX_NET_FLOWS: u32 = 16_384;
/// Most addresses of a host.
pub const MAX_HOST_ADDRESSES: usize = 64;
/// Most bytes of a sandbox's id.
const MAX_ID: usize = 64;

/// From the service to a network process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetRequest {
    /// What the network is. The first message, once. Answered by [`NetEvent::Ready`]; what is
    /// refused ends the process.
    Configure(Box<NetSpec>),
    /// Another policy in place of the one before. Answered by [`NetEvent::Counters`] whose
    /// [`policies`](NetCounters::policies) has counted it.
    SetPolicy(Box<NetPolicy>),
    /// The headers that requests get while the next policy holds, that of [`NetSpec`] or of
    /// `SetPolicy`, which is the next message; without this one before it there are none. With it
    /// comes a descriptor: a file of certificates, PEM, which hosts' are verified with.
    HeaderRules(Box<HeaderRules>),
}

/// Everything a network process needs to know. [`NetSpec::check`] is its gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSpec {
    /// The sandbox's id, for logs: `[a-z0-9]`, at most 64 bytes.
    pub sandbox_id: String,
    /// The guest's hardware address.
    pub guest_mac: [u8; 6],
    /// The gateway's.
    pub gateway_mac: [u8; 6],
    /// The guest's only IPv4 address. What has another source is dropped.
    pub guest: Ipv4Addr,
    /// The gateway's.
    pub gateway: Ipv4Addr,
    /// Bits of the network that the two are in, 8 to 30.
    pub prefix: u8,
    /// IPv6, if there is any.
    pub ipv6: Option<NetIpv6>,
    /// Most bytes of an IP packet, [`MIN_NET_MTU`] to [`NET_MTU`].
    pub mtu: u16,
    /// What may be reached.
    pub policy: NetPolicy,
    /// The host's name servers, which names are asked of unless the policy has its own; at most
    /// [`MAX_NAME_SERVERS`]. They may be anywhere.
    pub name_servers: Vec<SocketAddr>,
    /// The host's own addresses, which are denied as private ones are; at most
    /// [`MAX_HOST_ADDRESSES`].
    pub host_addresses: Vec<IpAddr>,
    /// How much of it.
    pub limits: NetLimits,
}

/// The IPv6 side of a guest's wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetIpv6 {
    /// The guest's address. Beside it the guest may use link-local ones, to find the gateway.
    pub guest: Ipv6Addr,
    /// The gateway's.
    pub gateway: Ipv6Addr,
    /// Bits of the network that the two are in, 8 to 126.
    pub prefix: u8,
}

/// How much of the network a sandbox may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetLimits {
    /// Flows at the same time, of TCP, UDP and echo together: 1 to [`MAX_NET_FLOWS`].
    pub flows: u32,
    /// Bytes a second, both ways together; 0: unlimited.
    pub bytes_per_s: u64,
    /// Frames a second, both ways together; 0: unlimited.
    pub packets_per_s: u64,
}

impl Default for NetLimits {
    fn default() -> Self {
        Self {
            flows: 1024,
            bytes_per_s: 0,
            packets_per_s: 0,
        }
    }
}

impl NetSpec {
    /// The wire that every guest has, with the default policy and limits and without name servers.
    #[must_use]
    pub fn standard(sandbox_id: &str) -> Self {
        Self {
            sandbox_id: sandbox_id.to_owned(),
            guest_mac: GUEST_MAC,
            gateway_mac: GATEWAY_MAC,
            guest: GUEST_IPV4,
            gateway: GATEWAY_IPV4,
            prefix: IPV4_PREFIX,
            ipv6: Some(NetIpv6 {
                guest: GUEST_IPV6,
                gateway: GATEWAY_IPV6,
                prefix: IPV6_PREFIX,
            }),
            mtu: NET_MTU,
            policy: NetPolicy::default(),
            name_servers: Vec::new(),
            host_addresses: Vec::new(),
            limits: NetLimits::default(),
        }
    }

    /// The gate: what it must be before anybody uses it.
    ///
    /// # Errors
    /// [`NetSpecError`].
    pub fn check(&self) -> Result<(), NetSpecError> {
        let id = self.sandbox_id.as_bytes();
        let good = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if id.is_empty() || id.len() > MAX_ID || !id.iter().all(good) {
            let shown = self.sandbox_id.chars().take(MAX_ID).collect();
            return Err(NetSpecError::Id(shown));
        }
        let unicast = |mac: &[u8; 6]| mac[0] & 1 == 0 && *mac != [0; 6];
        let macs = unicast(&self.guest_mac) && unicast(&self.gateway_mac);
        let beside = |gateway: IpAddr, prefix: u8, guest: IpAddr| {
            let net = IpRange {
                address: gateway,
                prefix,
            };
            guest != gateway && net.contains(guest)
        };
        let ipv4 = (8..=30).contains(&self.prefix)
            && beside(self.gateway.into(), self.prefix, self.guest.into());
        let ipv6 = self.ipv6.is_none_or(|v6| {
            (8..=126).contains(&v6.prefix)
                && beside(v6.gateway.into(), v6.prefix, v6.guest.into())
                && !v6.guest.is_multicast()
        });
        if !macs || self.guest_mac == self.gateway_mac || !ipv4 || !ipv6 {
            return Err(NetSpecError::Addresses);
        }
        if !(MIN_NET_MTU..=NET_MTU).contains(&self.mtu) {
            return Err(NetSpecError::Mtu(self.mtu));
        }
        if !(1..=MAX_NET_FLOWS).contains(&self.limits.flows) {
            return Err(NetSpecError::Flows(self.limits.flows));
        }
        check_count("name_servers", self.name_servers.len(), MAX_NAME_SERVERS)?;
        check_ports(&self.name_servers)?;
        let own = self.host_addresses.len();
        check_count("host_addresses", own, MAX_HOST_ADDRESSES)?;
        Ok(self.policy.check()?)
    }
}

/// Why a [`NetSpec`] is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetSpecError {
    /// The id is empty, too long or has other characters than `[a-z0-9]`.
    #[error("Sandbox id {0:?} is not 1 to {MAX_ID} characters of [a-z0-9]")]
    Id(String),
    /// The two ends of the wire are not two, not in one network, or not unicast.
    #[error("Guest and gateway are not two unicast addresses of one network")]
    Addresses,
    /// MTU out of range.
    #[error("An MTU of {0} is asked, {MIN_NET_MTU} to {NET_MTU} are possible")]
    Mtu(u16),
    /// Number of flows out of range.
    #[error("A limit of {0} flows is asked, 1 to {MAX_NET_FLOWS} are possible")]
    Flows(u32),
    /// The policy, or a list beside it.
    #[error(transparent)]
    Policy(#[from] NetPolicyError),
}

/// From a network process to the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetEvent {
    /// It is confined and reads frames.
    Ready,
    /// The policy refused something that the guest wanted.
    Denied(DeniedFlow),
    /// Counters since the start, some seconds after one has changed.
    Counters(NetCounters),
}

/// Something that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedFlow {
    /// What it was.
    pub protocol: NetProtocol,
    /// Where to. Of a name that was asked for, the gateway's.
    pub to: SocketAddr,
    /// The name that was asked for or that the flow said, if it did: at most 253 bytes of
    /// `[a-z0-9._-]`, `?` in place of others.
    pub name: Option<String>,
    /// Why.
    pub reason: DenyReason,
    /// How many more were refused since the last such event and are not told of.
    pub left_out: u64,
}

/// The protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetProtocol {
    /// A connection.
    Tcp,
    /// Datagrams.
    Udp,
    /// Echo requests (ping).
    Icmp,
    /// A question for a name.
    Dns,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DenyReason {
    /// A private, local or reserved address that no opening names with this port.
    Reserved,
    /// An address of the host.
    Host,
    /// `deny_out` has it.
    Rule,
    /// `internet: false`, and nothing allows it.
    Internet,
    /// The name is not allowed: of a question, or what the flow said (TLS SNI, HTTP Host).
    Name,
    /// A name resolved to an address that is not allowed.
    Rebinding,
    /// The table of flows is full.
    Flows,
    /// A host that requests get headers for has no certificate for its name that is trusted.
    Untrusted,
    /// TLS with such a host failed otherwise.
    HostTls,
    /// TLS with the guest failed: it does not trust its own sandbox's authority, or speaks no
    /// HTTP/1.1.
    GuestTls,
    /// A request that would get headers names another host than its connection does.
    OtherHost,
    /// A request that would get headers is malformed, too long or can be read in two ways.
    Request,
}

/// Counters of one network process since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Frames from the guest.
    pub tx_frames: u64,
    /// Bytes of these.
    pub tx_bytes: u64,
    /// Frames to the guest.
    pub rx_frames: u64,
    /// Bytes of these.
    pub rx_bytes: u64,
    /// Flows that have been opened.
    pub flows_opened: u64,
    /// Flows that are open now.
    pub flows_open: u64,
    /// Flows and names that were refused by the policy.
    pub denied: u64,
    /// Flows that were refused because the table was full.
    pub flows_refused: u64,
    /// Flows that were cut by another policy.
    pub flows_cut: u64,
    /// Frames that are no good: too short, malformed, of a protocol that is not spoken here.
    pub malformed: u64,
    /// Frames with a source that is not the guest's.
    pub spoofed: u64,
    /// Fragments, which are dropped.
    pub fragments: u64,
    /// Questions for names.
    pub dns_queries: u64,
    /// Questions that no server has answered in time.
    pub dns_failed: u64,
    /// Frames to the guest that were dropped because it did not read.
    pub rx_dropped: u64,
    /// Policies that were set after the first.
    pub policies: u64,
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::header_rules::{
        HostHeaders, MAX_RULE_BYTES, MAX_RULE_HEADERS, MAX_RULE_HOSTS, SecretBytes, SecretHeader,
    };
    use crate::net_policy::{
        AllowTarget, MAX_ALLOW_OUT, MAX_DENY_OUT, MAX_DOMAIN_BYTES, MAX_OPENINGS,
    };

    /// A message of this size goes through the socket, and is what it was.
    fn arrives(request: &NetRequest) {
        let (service, process) = crate::pair().unwrap();
        crate::send(&service, request, &[]).unwrap();
        let (got, _) = crate::recv::<NetRequest>(&process).unwrap().unwrap();
        assert_eq!(got, *request);
    }

    #[test]
    fn the_standard_wire_is_valid() {
        NetSpec::standard("abc").check().unwrap();
    }

    #[test]
    fn what_is_no_wire_is_refused() {
        let of = |change: &dyn Fn(&mut NetSpec)| {
            let mut spec = NetSpec::standard("abc");
            change(&mut spec);
            spec.check().unwrap_err()
        };
        for error in [
            of(&|s| s.guest_mac[0] |= 1),
            of(&|s| s.gateway_mac = s.guest_mac),
            of(&|s| s.gateway = Ipv4Addr::new(169, 254, 0, 26)),
            of(&|s| s.prefix = 0),
            of(&|s| s.prefix = 200),
            of(&|s| s.ipv6.as_mut().unwrap().prefix = 255),
            of(&|s| s.ipv6.as_mut().unwrap().gateway = GUEST_IPV6),
        ] {
            assert_eq!(error, NetSpecError::Addresses);
        }
        assert_eq!(of(&|s| s.mtu = 576), NetSpecError::Mtu(576));
        assert_eq!(of(&|s| s.limits.flows = 0), NetSpecError::Flows(0));
        assert!(matches!(
            of(&|s| s.sandbox_id = "A".into()),
            NetSpecError::Id(_)
        ));
        let address = SocketAddr::from(([192, 0, 2, 1], 53));
        of(&|s| s.name_servers = vec![address; MAX_NAME_SERVERS + 1]);
        of(&|s| s.host_addresses = vec![address.ip(); MAX_HOST_ADDRESSES + 1]);
        of(&|s| s.policy.openings = vec![address; MAX_OPENINGS + 1]);
    }

    #[test]
    fn the_largest_specification_fits_a_message() {
        let v6 = IpAddr::V6(Ipv6Addr::from(u128::MAX));
        let range = IpRange {
            address: v6,
            prefix: 128,
        };
        let address = SocketAddr::new(v6, u16::MAX);
        let long = ["a".repeat(63).as_str(); 3].join(".");
        let domains = MAX_DOMAIN_BYTES / long.len();
        let domain = AllowTarget::Domain(long.parse().unwrap());
        let mut allow_out = vec![domain; domains];
        allow_out.resize(MAX_ALLOW_OUT, AllowTarget::Range(range));
        let spec = NetSpec {
            policy: NetPolicy {
                internet: true,
                allow_out,
                deny_out: vec![range; MAX_DENY_OUT],
                openings: vec![address; MAX_OPENINGS],
                dns_servers: vec![address; MAX_NAME_SERVERS],
            },
            name_servers: vec![address; MAX_NAME_SERVERS],
            host_addresses: vec![v6; MAX_HOST_ADDRESSES],
            ..NetSpec::standard(&"a".repeat(MAX_ID))
        };
        spec.check().unwrap();
        arrives(&NetRequest::Configure(Box::new(spec)));
    }

    #[test]
    fn the_largest_header_rules_fit_a_message() {
        let per_host = MAX_RULE_BYTES / MAX_RULE_HOSTS;
        let header = |n: usize| SecretHeader {
            name: format!("x{n:02}"),
            value: SecretBytes::new(vec![b'v'; (per_host - 10) / MAX_RULE_HEADERS - 3]),
        };
        let host = |n: usize| HostHeaders {
            host: format!("h{n:02}.example").parse().unwrap(),
            headers: (0..MAX_RULE_HEADERS).map(header).collect(),
        };
        let rules = HeaderRules {
            authority_key: SecretBytes::new(vec![255; 512]),
            hosts: (0..MAX_RULE_HOSTS).map(host).collect(),
        };
        rules.check().unwrap();
        arrives(&NetRequest::HeaderRules(Box::new(rules)));
    }
}
