//! What a sandbox may reach over the network, as it is written down.

use crate::network::{
    AllowTarget, CertifiedKey, EgressPolicy, HostHeaders, NetPolicy, NetPolicyError, SecretBytes,
    SecretHeader, check_hosts,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// [`EgressPolicy`] on the disk, JSON; ranges and domains as clients write them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EgressV1 {
    internet: bool,
    allow_out: Vec<String>,
    deny_out: Vec<String>,
    dns_servers: Vec<SocketAddr>,
    /// From version 4 of a sandbox's record on; none: no authority, and no headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authority: Option<AuthorityV1>,
}

/// A sandbox's certificate authority, and the headers that it is for. Nothing shows what is in it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityV1 {
    /// DER, hexadecimal.
    certificate: String,
    /// PKCS #8 DER, hexadecimal.
    key: String,
    /// By host and name.
    headers: BTreeMap<String, BTreeMap<String, String>>,
}

impl fmt::Debug for AuthorityV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityV1").finish_non_exhaustive()
    }
}

impl From<&EgressPolicy> for EgressV1 {
    fn from(policy: &EgressPolicy) -> Self {
        let authority = policy.authority.as_ref();
        let authority = authority.map(|authority| AuthorityV1::of(authority, &policy.headers));
        let policy = &policy.reach;
        let allow = |target: &AllowTarget| match target {
            AllowTarget::Range(range) => range.to_string(),
            AllowTarget::Domain(domain) => domain.as_str().to_owned(),
        };
        Self {
            internet: policy.internet,
            allow_out: policy.allow_out.iter().map(allow).collect(),
            deny_out: policy.deny_out.iter().map(ToString::to_string).collect(),
            dns_servers: policy.dns_servers.clone(),
            authority,
        }
    }
}

impl AuthorityV1 {
    fn of(authority: &CertifiedKey, headers: &[HostHeaders]) -> Self {
        let text = |value: &SecretBytes| String::from_utf8_lossy(value.expose()).into_owned();
        let host = |host: &HostHeaders| {
            let headers = host.headers.iter();
            let headers = headers.map(|header| (header.name.clone(), text(&header.value)));
            (host.host.as_str().to_owned(), headers.collect())
        };
        Self {
            certificate: hex::encode(&authority.certificate),
            key: hex::encode(&authority.key),
            headers: headers.iter().map(host).collect(),
        }
    }

    fn authority(&self) -> Result<Arc<CertifiedKey>, String> {
        let bytes = |text: &String| {
            let decoded = hex::decode(text);
            decoded.map_err(|_| "an authority that is not hexadecimal".to_owned())
        };
        Ok(Arc::new(CertifiedKey {
            certificate: bytes(&self.certificate)?,
            key: bytes(&self.key)?,
        }))
    }

    fn headers(&self) -> Result<Vec<HostHeaders>, String> {
        let header = |(name, value): (&String, &String)| SecretHeader {
            name: name.clone(),
            value: SecretBytes::new(value.clone().into_bytes()),
        };
        let host = |(host, headers): (&String, &BTreeMap<String, String>)| {
            Ok(HostHeaders {
                host: host.parse().map_err(words)?,
                headers: headers.iter().map(header).collect(),
            })
        };
        let hosts = self.headers.iter().map(host);
        let hosts = hosts.collect::<Result<Vec<_>, String>>()?;
        check_hosts(&hosts).map_err(words)?;
        Ok(hosts)
    }
}

/// Why something is refused, in words; no gate's words have a value.
fn words(error: impl fmt::Display) -> String {
    error.to_string()
}

impl EgressV1 {
    /// Whether it needs a program that knows of headers.
    pub(super) const fn has_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// The gate: a policy that a client could have asked for.
    pub(super) fn policy(&self) -> Result<EgressPolicy, String> {
        let reach = self.reach().map_err(words)?;
        let mut policy = EgressPolicy::new(reach, Vec::new());
        if let Some(authority) = &self.authority {
            policy.authority = Some(authority.authority()?);
            policy.headers = authority.headers()?;
            if let Some(rules) = policy.rules() {
                rules.check().map_err(words)?;
            }
        }
        Ok(policy)
    }

    fn reach(&self) -> Result<NetPolicy, NetPolicyError> {
        let policy = NetPolicy {
            internet: self.internet,
            allow_out: self
                .allow_out
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
            deny_out: self
                .deny_out
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
            openings: Vec::new(),
            dns_servers: self.dns_servers.clone(),
        };
        policy.check().map(|()| policy)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::network::egress_test::with_header;

    #[test]
    fn a_policy_comes_back_and_what_is_none_is_refused() {
        let policy = NetPolicy {
            internet: false,
            allow_out: ["192.0.2.0/24", "*.example.com", "2001:db8::/32", "10.0.0.1"]
                .map(|text| text.parse().unwrap())
                .into(),
            deny_out: vec!["0.0.0.0/0".parse().unwrap()],
            openings: Vec::new(),
            dns_servers: vec!["192.0.2.1:53".parse().unwrap()],
        };
        let policy = EgressPolicy::new(policy, Vec::new());
        let mut record = EgressV1::from(&policy);
        assert_eq!(record.policy(), Ok(policy));
        record.deny_out.push("example.com".into());
        record.policy().unwrap_err();
    }

    #[test]
    fn headers_and_their_authority_come_back_and_are_not_shown() {
        let policy = with_header("*.example.com", "x-key", "THE-VALUE");
        let policy = policy.authorized(None).unwrap();
        let record = EgressV1::from(&policy);
        assert!(record.has_authority());
        assert!(!format!("{record:?}").contains("THE-VALUE"));
        let text = serde_json::to_string(&record).unwrap();
        let mut read: EgressV1 = serde_json::from_str(&text).unwrap();
        assert_eq!(read.policy(), Ok(policy));
        let headers = &mut read.authority.as_mut().unwrap().headers;
        let bad = BTreeMap::from([("host".to_owned(), "THE-VALUE".to_owned())]);
        headers.insert("a.net".into(), bad);
        let refused = read.policy().unwrap_err();
        assert!(
            refused.contains("host") && !refused.contains("THE-VALUE"),
            "{refused}"
        );
        // An authority stays known when its headers are gone.
        read.authority.as_mut().unwrap().headers.clear();
        assert_eq!(read.policy().unwrap().rules(), None);
    }
}
