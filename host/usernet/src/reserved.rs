//! Addresses that are denied to every sandbox, unless the operator opened one with its port.
//!
//! The list is E2B's (10/8, 100.64/10, 127/8, 169.254/16, 172.16/12, 192.168/16, ::1, fc00::/7,
//! fe80::/10), and what else leads to the host, its neighbours or nowhere: 0/8 (the host itself, on
//! Linux), 192.0.0/24, 198.18/15 and 240/4 (in use inside networks), multicast and broadcast, and
//! the IPv6 forms of all of these.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Networks, and the bits that they share.
const IPV4: &[([u8; 4], u32)] = &[
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// Networks by their first 32 bits, and how many of these they share.
const IPV6: &[(u32, u32)] = &[
    (0xfc00_0000, 7),  // unique local
    (0xfe80_0000, 10), // link-local
    (0xfec0_0000, 10), // site-local, of old
    (0xff00_0000, 8),  // multicast
    (0x0100_0000, 8),  // nowhere, on purpose
];

/// Whether it is denied to every sandbox.
pub(crate) fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_reserved_v4(v4),
        IpAddr::V6(v6) => is_reserved_v6(v6),
    }
}

fn is_reserved_v4(address: Ipv4Addr) -> bool {
    let address = u32::from(address);
    let within = |(network, bits): &([u8; 4], u32)| {
        (address ^ u32::from_be_bytes(*network)) >> (32 - bits) == 0
    };
    IPV4.iter().any(within)
}

fn is_reserved_v6(address: Ipv6Addr) -> bool {
    let bits = u128::from(address);
    // ::, ::1, and IPv4 addresses in their old and their mapped form: a socket takes the latter for
    // IPv4.
    if bits >> 32 == 0 || bits >> 32 == 0xffff {
        return true;
    }
    let within =
        |(network, shared): &(u32, u32)| (bits >> 96 ^ u128::from(*network)) >> (32 - shared) == 0;
    IPV6.iter().any(within) || embedded(address).is_some_and(is_reserved_v4)
}

/// The IPv4 address that packets to this one are translated or tunnelled to, if it says one.
pub(crate) fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(address);
    let word = |shift: u32| u32::try_from(bits >> shift & u128::from(u32::MAX)).ok();
    let found = match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => word(0)?,
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => word(0)?,
        [0x2002, ..] => word(80)?,    // 6to4
        [0x2001, 0, ..] => !word(0)?, // Teredo
        _ => return None,
    };
    Some(Ipv4Addr::from(found))
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
