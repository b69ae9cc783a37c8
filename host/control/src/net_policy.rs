//! What a sandbox may reach over the network: the words of a policy, and the gate that bounds them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Most entries of [`NetPolicy::allow_out`].
pub const MAX_ALLOW_OUT: usize = 192;
/// Most bytes of all domains in [`NetPolicy::allow_out`] together.
pub const MAX_DOMAIN_BYTES: usize = 6 * 1024;
/// Most entries of [`NetPolicy::deny_out`].
pub const MAX_DENY_OUT: usize = 128;
/// Most entries of [`NetPolicy::openings`].
pub const MAX_OPENINGS: usize = 32;
/// Most name servers of a policy, and of a host.
pub const MAX_NAME_SERVERS: usize = 8;
/// Most bytes of a domain name.
pub const MAX_DOMAIN: usize = 253;
/// Most bytes of one of its labels.
const MAX_LABEL: usize = 63;

/// What a sandbox may reach. It is replaced as a whole; flows that are no longer allowed are cut.
///
/// What is asked first decides: [openings](Self::openings) allow; private, local and reserved
/// ranges and the host's own addresses deny; [`allow_out`](Self::allow_out) allows;
/// [`deny_out`](Self::deny_out) and `internet: false` deny; all else is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetPolicy {
    /// Whether what no rule names may be reached.
    pub internet: bool,
    /// What may be reached whatever [`deny_out`](Self::deny_out) says; at most [`MAX_ALLOW_OUT`].
    /// Domains mean something only where everything else is denied: a name is allowed by the
    /// addresses that it resolves to, and by what the flow itself says it wants.
    pub allow_out: Vec<AllowTarget>,
    /// What may not be reached; at most [`MAX_DENY_OUT`].
    pub deny_out: Vec<IpRange>,
    /// Single addresses and ports that the operator opened, also in ranges that are otherwise
    /// denied to everybody; at most [`MAX_OPENINGS`].
    pub openings: Vec<SocketAddr>,
    /// Name servers in place of the host's, at most [`MAX_NAME_SERVERS`]. They must be allowed by
    /// this policy.
    pub dns_servers: Vec<SocketAddr>,
}

impl Default for NetPolicy {
    /// All of the Internet, and nothing of the host's surroundings.
    fn default() -> Self {
        Self {
            internet: true,
            allow_out: Vec::new(),
            deny_out: Vec::new(),
            openings: Vec::new(),
            dns_servers: Vec::new(),
        }
    }
}

/// Addresses with the same first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpRange {
    /// Any of them.
    pub address: IpAddr,
    /// How many bits are the same: 0 to 32, or to 128.
    pub prefix: u8,
}

impl IpRange {
    /// Whether the address is one of them. An IPv4 address is in no IPv6 range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
            IpAddr::V6(v6) => u128::from(v6),
        };
        let mask = u128::MAX
            .checked_shl(128 - u32::from(self.prefix).min(128))
            .unwrap_or(0);
        self.address.is_ipv4() == address.is_ipv4()
            && bits(self.address) & mask == bits(address) & mask
    }

    fn check(&self) -> Result<(), NetPolicyError> {
        let most = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix <= most {
            Ok(())
        } else {
            Err(NetPolicyError::Range(self.to_string()))
        }
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for IpRange {
    type Err = NetPolicyError;

    /// `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`.
    fn from_str(text: &str) -> Result<Self, NetPolicyError> {
        let wrong = || NetPolicyError::Range(text.chars().take(MAX_DOMAIN).collect());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix = match prefix {
            Some(prefix) if prefix.bytes().all(|b| b.is_ascii_digit()) => {
                prefix.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
            None if address.is_ipv4() => 32,
            None => 128,
        };
        let range = Self { address, prefix };
        range.check().map(|()| range)
    }
}

/// What an entry of [`NetPolicy::allow_out`] allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllowTarget {
    /// Addresses.
    Range(IpRange),
    /// A name.
    Domain(DomainPattern),
}

impl FromStr for AllowTarget {
    type Err = NetPolicyError;

    /// An [`IpRange`], or else a [`DomainPattern`].
    fn from_str(text: &str) -> Result<Self, NetPolicyError> {
        match text.parse() {
            Ok(range) => Ok(Self::Range(range)),
            Err(_) => text.parse().map(Self::Domain),
        }
    }
}

/// `example.com`: that name; `*.example.com`: every name below it, not itself; `*`: every name.
/// In small letters, without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainPattern(String);

impl DomainPattern {
    /// Whether a name, in small letters and without a dot at its end, is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some(end) => name.len() > end.len() && name.ends_with(end),
            None => self.0 == name,
        }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The gate: whether it is as it is when it has been parsed.
    pub(crate) fn check(&self) -> Result<(), NetPolicyError> {
        match self.0.parse::<Self>() {
            Ok(same) if same == *self => Ok(()),
            _ => Err(NetPolicyError::Domain(
                self.0.chars().take(MAX_DOMAIN).collect(),
            )),
        }
    }
}

impl FromStr for DomainPattern {
    type Err = NetPolicyError;

    fn from_str(text: &str) -> Result<Self, NetPolicyError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let plain = name.strip_prefix("*.").unwrap_or(&name);
        let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let label = |label: &str| (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(byte);
        // What looks like an address, and is none, is a mistake and no name.
        let number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
        let named = plain.split('.').all(label) && !plain.rsplit('.').next().is_some_and(number);
        if name == "*" || (name.len() <= MAX_DOMAIN && named) {
            return Ok(Self(name));
        }
        Err(NetPolicyError::Domain(
            text.chars().take(MAX_DOMAIN).collect(),
        ))
    }
}

/// Why a policy is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetPolicyError {
    /// Not an address or a range.
    #[error("{0:?} is not an IP address or CIDR, such as 192.0.2.1 or 192.0.2.0/24")]
    Range(String),
    /// Not a domain either.
    #[error("{0:?} is not an IP address, CIDR or domain, such as 192.0.2.0/24 or *.example.com")]
    Domain(String),
    /// A list is too long.
    #[error("{count} entries in {list}, at most {most} are possible")]
    Entries {
        /// Which list.
        list: &'static str,
        /// How many it has.
        count: usize,
        /// How many it may have.
        most: usize,
    },
    /// The domains are too long together.
    #[error("The domains have {0} bytes together, at most {MAX_DOMAIN_BYTES} are possible")]
    DomainBytes(usize),
    /// A port that cannot be reached.
    #[error("{0} has no port: name one from 1 to 65535")]
    Port(SocketAddr),
}

/// Refuses a list that is too long.
pub(crate) fn check_count(
    list: &'static str,
    count: usize,
    most: usize,
) -> Result<(), NetPolicyError> {
    if count <= most {
        Ok(())
    } else {
        Err(NetPolicyError::Entries { list, count, most })
    }
}

/// Refuses port 0.
pub(crate) fn check_ports(addresses: &[SocketAddr]) -> Result<(), NetPolicyError> {
    match addresses.iter().find(|address| address.port() == 0) {
        Some(without) => Err(NetPolicyError::Port(*without)),
        None => Ok(()),
    }
}

impl NetPolicy {
    /// The gate: what a policy must be before anybody uses it.
    ///
    /// # Errors
    /// [`NetPolicyError`].
    pub fn check(&self) -> Result<(), NetPolicyError> {
        check_count("allow_out", self.allow_out.len(), MAX_ALLOW_OUT)?;
        check_count("deny_out", self.deny_out.len(), MAX_DENY_OUT)?;
        check_count("openings", self.openings.len(), MAX_OPENINGS)?;
        check_count("dns_servers", self.dns_servers.len(), MAX_NAME_SERVERS)?;
        let mut bytes = 0;
        for target in &self.allow_out {
            match target {
                AllowTarget::Range(range) => range.check()?,
                AllowTarget::Domain(domain) => {
                    domain.check()?;
                    bytes += domain.as_str().len();
                }
            }
        }
        if bytes > MAX_DOMAIN_BYTES {
            return Err(NetPolicyError::DomainBytes(bytes));
        }
        self.deny_out.iter().try_for_each(IpRange::check)?;
        check_ports(&self.openings)?;
        check_ports(&self.dns_servers)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn range(text: &str) -> IpRange {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_has_the_addresses_with_its_bits() {
        for (text, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("::/0", "ffff::1", "0.0.0.0"),
            ("2001:db8::/32", "2001:db8:ffff::", "2001:db9::"),
        ] {
            assert!(range(text).contains(inside.parse().unwrap()), "{text}");
            assert!(!range(text).contains(outside.parse().unwrap()), "{text}");
        }
        for wrong in [
            "192.0.2.0/33",
            "::/129",
            "1.2.3",
            "1.2.3.4/+8",
            "a/8",
            "/",
            "",
        ] {
            let refused = wrong.parse::<IpRange>().unwrap_err();
            assert!(matches!(refused, NetPolicyError::Range(_)), "{wrong}");
        }
    }

    #[test]
    fn a_domain_is_itself_and_a_star_is_what_is_below() {
        let exact: DomainPattern = "Example.COM.".parse().unwrap();
        let below: DomainPattern = "*.example.com".parse().unwrap();
        let every: DomainPattern = "*".parse().unwrap();
        for (name, is_exact, is_below) in [
            ("example.com", true, false),
            ("a.example.com", false, true),
            ("a.b.example.com", false, true),
            ("notexample.com", false, false),
            (".example.com", false, false),
            ("example.com.evil.net", false, false),
        ] {
            assert_eq!(exact.matches(name), is_exact, "{name}");
            assert_eq!(below.matches(name), is_below, "{name}");
            assert!(every.matches(name));
        }
        let long = format!("{}.com", "a".repeat(64));
        for wrong in [
            "",
            ".",
            "a..b",
            "*.*",
            "a b",
            "ex*mple.com",
            "1.2.3.999",
            &long,
        ] {
            wrong.parse::<DomainPattern>().unwrap_err();
        }
    }

    #[test]
    fn every_list_is_bounded() {
        let one = range("192.0.2.1");
        let port: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let of = |change: &dyn Fn(&mut NetPolicy)| {
            let mut policy = NetPolicy::default();
            change(&mut policy);
            policy.check()
        };
        of(&|p| p.allow_out = vec![AllowTarget::Range(one); MAX_ALLOW_OUT]).unwrap();
        of(&|p| p.allow_out = vec![AllowTarget::Range(one); MAX_ALLOW_OUT + 1]).unwrap_err();
        of(&|p| p.deny_out = vec![one; MAX_DENY_OUT + 1]).unwrap_err();
        of(&|p| p.openings = vec![port; MAX_OPENINGS + 1]).unwrap_err();
        of(&|p| p.dns_servers = vec![port; MAX_NAME_SERVERS + 1]).unwrap_err();
        of(&|p| p.openings = vec![SocketAddr::new(port.ip(), 0)]).unwrap_err();
        of(&|p| p.deny_out = vec![IpRange { prefix: 33, ..one }]).unwrap_err();
        let domain = AllowTarget::Domain("a.".repeat(100).parse().unwrap());
        let refused = of(&|p| p.allow_out = vec![domain.clone(); 40]).unwrap_err();
        assert_eq!(refused, NetPolicyError::DomainBytes(40 * 199));
        let unchecked = AllowTarget::Domain(DomainPattern("A b".to_owned()));
        of(&|p| p.allow_out = vec![unchecked.clone()]).unwrap_err();
    }
}
