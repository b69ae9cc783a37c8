//! Addresses that are denied to every sandbox, unless the operator opened one with its port.
//!
//! The list is E2B's (10/8, 100.64/10, 127/8, 169.254/16, 172.16/12, 192.168/16, ::1, fc00::/7,
//! fe80::/10), and what else leads to the host, its neighbours or nowhere: 0/8 (the host itself, on
//! Linux), 192.0.0/24, 198.18/15 and 240/4 (in use inside networks), multicast and broadcast, and
//! the IPv6 forms of all of these.

use control::IpRange;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const RESERVED: &[IpRange] = &[
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
    v6(0xfc00, 7),  // unique local
    v6(0xfe80, 10), // link-local
    v6(0xfec0, 10), // site-local, of old
    v6(0xff00, 8),  // multicast
    v6(0x0100, 8),  // nowhere, on purpose
];

const fn v4(octets: [u8; 4], prefix: u8) -> IpRange {
    let [a, b, c, d] = octets;
    IpRange {
        address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        prefix,
    }
}

/// A network by its first 16 bits.
const fn v6(first: u16, prefix: u8) -> IpRange {
    IpRange {
        address: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)),
        prefix,
    }
}

/// Whether it is denied to every sandbox.
pub(crate) fn is_reserved(address: IpAddr) -> bool {
    let listed = |address| RESERVED.iter().any(|range| range.contains(address));
    is_old_or_mapped(address) || listed(address) || embedded(address).is_some_and(listed)
}

/// Whether it is ::, ::1, or an IPv4 address in its old or its mapped form: a socket takes the
/// latter for IPv4.
fn is_old_or_mapped(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => matches!(u128::from(v6) >> 32, 0 | 0xffff),
    }
}

/// The IPv4 address that packets to this one are translated or tunnelled to, if it says one.
pub(crate) fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let bits = u128::from(address);
    let word = |shift: u32| u32::try_from(bits >> shift & u128::from(u32::MAX)).ok();
    let found = match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => word(0)?,
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => word(0)?,
        [0x2002, ..] => word(80)?,    // 6to4
        [0x2001, 0, ..] => !word(0)?, // Teredo
        _ => return None,
    };
    Some(Ipv4Addr::from(found).into())
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn private_local_and_odd_addresses_are_reserved_in_every_form() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.255.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.170",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a00:1",
            "2002:a00:1::1",
            "2002:7f00:1::",
            "2001:0:1:2:3:4:f5ff:fffe",
            "::ffff:0:127.0.0.1",
        ] {
            assert!(is_reserved(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.0.0.1",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "64:ff9b::8.8.8.8",
            "2002:808:808::",
            "2001:4860:4860::8888",
        ] {
            assert!(!is_reserved(text.parse().unwrap()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_the_standard_library_knows_as_local_is_reserved(bits in any::<u32>()) {
            let address = Ipv4Addr::from(bits);
            let local = address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_multicast() || address.is_broadcast() || address.is_unspecified();
            prop_assert!(!local || is_reserved(address.into()));
            prop_assert!(is_reserved(address.to_ipv6_mapped().into()));
        }
    }
}
