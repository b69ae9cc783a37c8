//! What a sandbox's network lets out, and what it adds on the way.

use authority::{AuthorityError, CertifiedKey, new_authority};
use control::{HeaderRules, HostHeaders, NetPolicy, SecretBytes};
use std::sync::Arc;

/// What a sandbox may reach over the network, and what its requests get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    /// What it may reach.
    pub reach: NetPolicy,
    /// Headers of its requests over TLS, by host. Their values are never told to anybody but the
    /// network process and the host.
    pub headers: Vec<HostHeaders>,
    /// What its guest trusts so that its TLS can be ended for them: made with the first, and kept
    /// when they are gone, for the guest trusts it still.
    pub(crate) authority: Option<Arc<CertifiedKey>>,
}

impl EgressPolicy {
    /// What a client asks for.
    #[must_use]
    pub const fn new(reach: NetPolicy, headers: Vec<HostHeaders>) -> Self {
        Self {
            reach,
            headers,
            authority: None,
        }
    }

    /// With what its headers need: its own authority, the `known` one of its sandbox, or else a new
    /// one.
    pub(crate) fn authorized(
        mut self,
        known: Option<&Arc<CertifiedKey>>,
    ) -> Result<Self, AuthorityError> {
        if self.authority.is_none() {
            self.authority = known.cloned();
        }
        if self.authority.is_none() && !self.headers.is_empty() {
            self.authority = Some(Arc::new(new_authority()?));
        }
        Ok(self)
    }

    /// The authority that its guest has to trust now, if it has any headers.
    pub(crate) fn trusted(&self) -> Option<&Arc<CertifiedKey>> {
        self.authority.as_ref().filter(|_| !self.headers.is_empty())
    }

    /// What its network process needs for its headers.
    pub(crate) fn rules(&self) -> Option<HeaderRules> {
        let authority = self.trusted()?;
        Some(HeaderRules {
            authority_key: SecretBytes::new(authority.key.clone()),
            hosts: self.headers.clone(),
        })
    }
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;
    use control::SecretHeader;

    /// A policy with one header.
    pub(crate) fn with_header(host: &str, name: &str, value: &str) -> EgressPolicy {
        let header = SecretHeader {
            name: name.to_owned(),
            value: SecretBytes::new(value.into()),
        };
        let host = HostHeaders {
            host: host.parse().unwrap(),
            headers: vec![header],
        };
        EgressPolicy::new(NetPolicy::default(), vec![host])
    }

    #[test]
    fn an_authority_comes_with_the_first_headers_and_stays() {
        let none = EgressPolicy::default().authorized(None).unwrap();
        assert_eq!((none.authority.clone(), none.rules()), (None, None));
        let asked = with_header("a.net", "x", "v");
        let one = asked.clone().authorized(None).unwrap();
        let rules = one.rules().unwrap();
        rules.check().unwrap();
        let known = one.authority.as_ref();
        let other = asked.authorized(known).unwrap();
        assert_eq!(other.authority, one.authority);
        let without = EgressPolicy::default().authorized(known).unwrap();
        assert_eq!(without.authority, one.authority);
        assert_eq!(without.rules(), None, "nothing is ended for nothing");
    }

    #[test]
    fn nothing_shows_a_value_or_a_key() {
        let policy = with_header("a.net", "x", "THE-VALUE").authorized(None);
        let shown = format!("{policy:?}");
        assert!(
            shown.contains("a.net") && !shown.contains("THE-VALUE"),
            "{shown}"
        );
        assert!(shown.contains("key left out"), "{shown}");
    }
}
