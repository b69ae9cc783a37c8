//! What a sandbox may reach over the network, as it is written down.

use crate::network::{AllowTarget, NetPolicy, NetPolicyError};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// [`NetPolicy`] on the disk, JSON; ranges and domains as clients write them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EgressV1 {
    internet: bool,
    allow_out: Vec<String>,
    deny_out: Vec<String>,
    dns_servers: Vec<SocketAddr>,
}

impl From<&NetPolicy> for EgressV1 {
    fn from(policy: &NetPolicy) -> Self {
        let allow = |target: &AllowTarget| match target {
            AllowTarget::Range(range) => range.to_string(),
            AllowTarget::Domain(domain) => domain.as_str().to_owned(),
        };
        Self {
            internet: policy.internet,
            allow_out: policy.allow_out.iter().map(allow).collect(),
            deny_out: policy.deny_out.iter().map(ToString::to_string).collect(),
            dns_servers: policy.dns_servers.clone(),
        }
    }
}

impl EgressV1 {
    /// The gate: a policy that a client could have asked for.
    pub(super) fn policy(&self) -> Result<NetPolicy, NetPolicyError> {
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
        let mut record = EgressV1::from(&policy);
        assert_eq!(record.policy(), Ok(policy));
        record.deny_out.push("example.com".into());
        record.policy().unwrap_err();
    }
}
