//! Headers that a sandbox's requests to some hosts get on their way out: what they are, and the
//! gate that bounds them. Their values and the authority's key are secrets that the sandbox never
//! has; nothing here shows them.

use crate::net_policy::{DomainPattern, NetPolicyError, check_count};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Most hosts that have headers.
pub const MAX_RULE_HOSTS: usize = 32;
/// Most headers of one host.
pub const MAX_RULE_HEADERS: usize = 16;
/// Most bytes of all hosts, names and values together: with the key they have to fit a message.
pub const MAX_RULE_BYTES: usize = 12 * 1024;
/// Most bytes of an authority's key.
const MAX_KEY: usize = 512;
/// Headers that say where a request goes and how long it is, or are for one connection only.
const FORBIDDEN: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Bytes that no output shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// As they are.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The secret.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} secret bytes)", self.0.len())
    }
}

/// What a sandbox's requests over TLS get, by host, and what its TLS is ended with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRules {
    /// The private key of the sandbox's certificate authority, PKCS #8 DER.
    pub authority_key: SecretBytes,
    /// Hosts, each once; at most [`MAX_RULE_HOSTS`].
    pub hosts: Vec<HostHeaders>,
}

/// The headers of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHeaders {
    /// A name, or all names below one; not all names.
    pub host: DomainPattern,
    /// At most [`MAX_RULE_HEADERS`], each name once.
    pub headers: Vec<SecretHeader>,
}

/// A header with a secret value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHeader {
    /// Its name, in small letters.
    pub name: String,
    /// Its value: visible ASCII, and spaces and tabs within.
    pub value: SecretBytes,
}

/// Why headers are refused. No message has a value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderRulesError {
    /// A list is too long, or a host is none.
    #[error(transparent)]
    Policy(#[from] NetPolicyError),
    /// Everything together is too long.
    #[error(
        "Hosts, names and values have {0} bytes together, at most {MAX_RULE_BYTES} are possible"
    )]
    Bytes(usize),
    /// The host is every name.
    #[error("Headers for every host (\"*\") are not possible: name a host, or *. and a domain")]
    EveryHost,
    /// A host or a header comes twice.
    #[error("{0:?} comes twice")]
    Twice(String),
    /// A name that a header cannot have.
    #[error("{0:?} is not the name of a header")]
    Name(String),
    /// A header that decides where a request ends.
    #[error(
        "The header {0:?} cannot be set: it belongs to the connection or to the request's form"
    )]
    Forbidden(String),
    /// A value with other bytes.
    #[error(
        "The value of the header {0:?} has a byte that is not visible ASCII, space or tab, or begins or ends with a space"
    )]
    Value(String),
    /// A key that cannot be one.
    #[error("The authority's key has {0} bytes, 1 to {MAX_KEY} are possible")]
    Key(usize),
}

impl HeaderRules {
    /// The headers for requests to this name, in small letters and without a dot at its end: those
    /// of the host that says most about it.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&HostHeaders> {
        let matching = self.hosts.iter().filter(|rule| rule.host.matches(name));
        matching.max_by_key(|rule| {
            let host = rule.host.as_str();
            (!host.starts_with('*'), host.len())
        })
    }

    /// The gate: what they must be before anybody uses them.
    ///
    /// # Errors
    /// [`HeaderRulesError`].
    pub fn check(&self) -> Result<(), HeaderRulesError> {
        let key = self.authority_key.expose().len();
        if !(1..=MAX_KEY).contains(&key) {
            return Err(HeaderRulesError::Key(key));
        }
        check_hosts(&self.hosts)
    }
}

/// The gate for what a client asks for.
///
/// # Errors
/// [`HeaderRulesError`].
pub fn check_hosts(hosts: &[HostHeaders]) -> Result<(), HeaderRulesError> {
    check_count("rules", hosts.len(), MAX_RULE_HOSTS)?;
    let (mut bytes, mut seen) = (0, BTreeSet::new());
    for HostHeaders { host, headers } in hosts {
        host.check()?;
        let text = host.as_str();
        if text == "*" {
            return Err(HeaderRulesError::EveryHost);
        }
        if !seen.insert(text) {
            return Err(HeaderRulesError::Twice(text.to_owned()));
        }
        check_count("headers of one host", headers.len(), MAX_RULE_HEADERS)?;
        let mut names = BTreeSet::new();
        for SecretHeader { name, value } in headers {
            check_header(name, value.expose())?;
            if !names.insert(name) {
                return Err(HeaderRulesError::Twice(name.clone()));
            }
            bytes += name.len() + value.expose().len();
        }
        bytes += text.len();
    }
    if bytes > MAX_RULE_BYTES {
        return Err(HeaderRulesError::Bytes(bytes));
    }
    Ok(())
}

fn check_header(name: &str, value: &[u8]) -> Result<(), HeaderRulesError> {
    let token =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    let shown = || name.chars().take(64).collect::<String>();
    if name.is_empty() || !name.bytes().all(token) {
        return Err(HeaderRulesError::Name(shown()));
    }
    if FORBIDDEN.contains(&name) {
        return Err(HeaderRulesError::Forbidden(shown()));
    }
    let good = |b: &u8| b.is_ascii_graphic() || matches!(b, b' ' | b'\t');
    if !value.iter().all(good) || value.trim_ascii() != value {
        return Err(HeaderRulesError::Value(shown()));
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    fn header(name: &str, value: &str) -> SecretHeader {
        SecretHeader {
            name: name.to_owned(),
            value: SecretBytes::new(value.into()),
        }
    }

    fn host(host: &str, headers: Vec<SecretHeader>) -> HostHeaders {
        HostHeaders {
            host: host.parse().unwrap(),
            headers,
        }
    }

    #[test]
    fn the_host_that_says_most_has_the_headers() {
        let hosts = ["*.example.com", "a.example.com", "*.b.example.com"];
        let rules = HeaderRules {
            authority_key: SecretBytes::new(vec![1]),
            hosts: hosts.map(|name| host(name, Vec::new())).into(),
        };
        for (name, found) in [
            ("a.example.com", Some("a.example.com")),
            ("c.example.com", Some("*.example.com")),
            ("a.b.example.com", Some("*.b.example.com")),
            ("example.com", None),
        ] {
            let of = rules.find(name).map(|rule| rule.host.as_str());
            assert_eq!(of, found, "{name}");
        }
    }

    #[test]
    fn what_a_request_cannot_have_is_refused_without_its_value() {
        use HeaderRulesError::{Bytes, EveryHost, Forbidden, Name, Policy, Twice, Value};
        let one = |name, value| check_hosts(&[host("a.net", vec![header(name, value)])]);
        one("authorization", "Bearer s\te cret").unwrap();
        one("x-empty", "").unwrap();
        for name in ["", "a b", "a:b", "Authorization", "\u{e9}"] {
            assert!(matches!(one(name, "v"), Err(Name(_))), "{name}");
        }
        for name in FORBIDDEN {
            assert!(matches!(one(name, "v"), Err(Forbidden(_))), "{name}");
        }
        for value in ["zq\r\nb: c", "zq\0", "zq\u{e9}", " zq", "zq\t", "zq\x7f"] {
            let refused = one("x", value).unwrap_err();
            assert_eq!(refused, Value("x".into()));
            assert!(!refused.to_string().contains(value), "{refused}");
        }
        let twice = [header("x", "1"), header("x", "2")].to_vec();
        assert!(matches!(
            check_hosts(&[host("a.net", twice)]),
            Err(Twice(_))
        ));
        let hosts = [host("a.net", vec![]), host("A.net", vec![])];
        assert!(matches!(check_hosts(&hosts), Err(Twice(_))));
        assert_eq!(check_hosts(&[host("*", vec![])]), Err(EveryHost));
        let long = "v".repeat(MAX_RULE_BYTES);
        assert!(matches!(one("x", &long), Err(Bytes(_))));
        let many = |n: usize| (0..n).map(|i| header(&format!("x{i}"), "")).collect();
        check_hosts(&[host("a.net", many(MAX_RULE_HEADERS))]).unwrap();
        let refused = check_hosts(&[host("a.net", many(MAX_RULE_HEADERS + 1))]);
        assert!(matches!(refused, Err(Policy(_))));
        let hosts = |n: usize| (0..n).map(|i| host(&format!("h{i}.net"), vec![]));
        check_hosts(&hosts(MAX_RULE_HOSTS).collect::<Vec<_>>()).unwrap();
        check_hosts(&hosts(MAX_RULE_HOSTS + 1).collect::<Vec<_>>()).unwrap_err();
    }

    #[test]
    fn no_output_shows_a_secret() {
        let rules = HeaderRules {
            authority_key: SecretBytes::new(b"KEY-OF-IT".to_vec()),
            hosts: vec![host("a.net", vec![header("x-key", "THE-VALUE")])],
        };
        let shown = format!("{rules:?}{rules:#?}");
        assert!(shown.contains("x-key"), "{shown}");
        assert!(!shown.contains("KEY-OF-IT") && !shown.contains("THE-VALUE"));
        // Nor as numbers.
        assert!(!shown.contains("84, 72"), "{shown}");
    }
}
