//! One sandbox's policy, as flows and names are asked about: see [`NetPolicy`] for its order.

use crate::reserved::{embedded, is_reserved};
use control::{AllowTarget, DenyReason, DomainPattern, NetPolicy};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Most addresses that are remembered as those of allowed names.
const MAX_LEARNED: usize = 1024;
/// How long an address is at least that of a name: programs ask once and connect for some time.
const LEAST_TTL: Duration = Duration::from_secs(60);
/// How long it is at most, whatever the answer said.
const MOST_TTL: Duration = Duration::from_secs(3600);

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may go.
    Allow,
    /// It may go because an allowed name has this address; the flow has to say such a name.
    ByName,
    /// It may not.
    Deny(DenyReason),
}

/// An address that an allowed name resolved to.
#[derive(Debug)]
struct LearnedAddress {
    name: Box<str>,
    until: Instant,
}

/// The policy, and what it has learned from answers of name servers.
#[derive(Debug)]
pub(crate) struct PolicyRules {
    policy: NetPolicy,
    host: Vec<IpAddr>,
    learned: HashMap<IpAddr, LearnedAddress>,
}

impl PolicyRules {
    /// The rules of a policy that has passed its gate, on a host with these addresses.
    pub(crate) fn new(policy: NetPolicy, host: Vec<IpAddr>) -> Self {
        Self {
            policy,
            host,
            learned: HashMap::new(),
        }
    }

    /// Puts another policy in place. Addresses of names that are still allowed stay known.
    pub(crate) fn replace(&mut self, policy: NetPolicy) {
        self.policy = policy;
        let patterns = &self.policy;
        self.learned
            .retain(|_, learned| domains(patterns).any(|domain| domain.matches(&learned.name)));
    }

    /// The name servers of the policy, also those that it does not allow.
    pub(crate) fn name_servers(&self) -> &[SocketAddr] {
        &self.policy.dns_servers
    }

    /// What becomes of a flow to this address, as far as it is known without asking the host.
    pub(crate) fn verdict(&self, to: SocketAddr, now: Instant) -> Verdict {
        if self.is_opening(to) {
            return Verdict::Allow;
        }
        let address = to.ip();
        if let Some(reason) = self.never(address) {
            return Verdict::Deny(reason);
        }
        let allowed = self.policy.allow_out.iter().any(|target| match target {
            AllowTarget::Range(range) => range.contains(address),
            AllowTarget::Domain(_) => false,
        });
        if allowed {
            return Verdict::Allow;
        }
        let refused = if self.denied_by_rule(address) {
            DenyReason::Rule
        } else if !self.policy.internet {
            DenyReason::Internet
        } else {
            return Verdict::Allow;
        };
        match self.learned.get(&address) {
            Some(learned) if learned.until > now => Verdict::ByName,
            _ => Verdict::Deny(refused),
        }
    }

    /// Whether the operator has opened this address and port.
    pub(crate) fn is_opening(&self, to: SocketAddr) -> bool {
        self.policy.openings.contains(&to)
    }

    /// Whether an address is denied whatever the policy says.
    fn never(&self, address: IpAddr) -> Option<DenyReason> {
        let inner = embedded(address);
        let own = |address: &IpAddr| self.host.contains(address);
        if own(&address) || inner.as_ref().is_some_and(own) {
            Some(DenyReason::Host)
        } else if is_reserved(address) {
            Some(DenyReason::Reserved)
        } else {
            None
        }
    }

    fn denied_by_rule(&self, address: IpAddr) -> bool {
        let inner = embedded(address);
        self.policy.deny_out.iter().any(|range| {
            range.contains(address) || inner.is_some_and(|inner| range.contains(inner))
        })
    }

    /// Whether a domain of the policy is this name: in small letters, without a dot at its end.
    pub(crate) fn name_allowed(&self, name: &str) -> bool {
        domains(&self.policy).any(|domain| domain.matches(name))
    }

    /// Whether what no rule allows is denied, for one of the two kinds of addresses at least.
    fn closed(&self) -> bool {
        let all = |range: &control::IpRange| range.prefix == 0;
        !self.policy.internet || self.policy.deny_out.iter().any(all)
    }

    /// Whether a name may be asked for: where all else is denied, only those that are allowed, for
    /// a question too carries data out.
    pub(crate) fn question(&self, name: &str) -> Result<(), DenyReason> {
        if !self.closed() || self.name_allowed(name) {
            Ok(())
        } else {
            Err(DenyReason::Name)
        }
    }

    /// Whether the guest may hear that `name` has this address. An allowed name's is remembered.
    pub(crate) fn answer(
        &mut self,
        name: &str,
        address: IpAddr,
        ttl: Duration,
        now: Instant,
    ) -> Result<(), DenyReason> {
        let opened = |opening: &SocketAddr| opening.ip() == address;
        if self.policy.openings.iter().any(opened) {
            return Ok(());
        }
        if self.never(address).is_some() {
            return Err(DenyReason::Rebinding);
        }
        if self.name_allowed(name) {
            self.learn(name, address, now + ttl.clamp(LEAST_TTL, MOST_TTL), now);
        }
        Ok(())
    }

    fn learn(&mut self, name: &str, address: IpAddr, until: Instant, now: Instant) {
        if self.learned.len() >= MAX_LEARNED && !self.learned.contains_key(&address) {
            self.learned.retain(|_, learned| learned.until > now);
            let soonest = self.learned.iter().min_by_key(|(_, learned)| learned.until);
            if let Some(address) = soonest.map(|(address, _)| *address)
                && self.learned.len() >= MAX_LEARNED
            {
                self.learned.remove(&address);
            }
        }
        let name = name.into();
        self.learned.insert(address, LearnedAddress { name, until });
    }
}

fn domains(policy: &NetPolicy) -> impl Iterator<Item = &DomainPattern> {
    policy.allow_out.iter().filter_map(|target| match target {
        AllowTarget::Domain(domain) => Some(domain),
        AllowTarget::Range(_) => None,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn rules(internet: bool, allow: &[&str], deny: &[&str], openings: &[&str]) -> PolicyRules {
        let policy = NetPolicy {
            internet,
            allow_out: allow.iter().map(|a| a.parse().unwrap()).collect(),
            deny_out: deny.iter().map(|d| d.parse().unwrap()).collect(),
            openings: openings.iter().map(|o| o.parse().unwrap()).collect(),
            dns_servers: Vec::new(),
        };
        policy.check().unwrap();
        PolicyRules::new(policy, vec!["203.0.113.9".parse().unwrap()])
    }

    fn ask(rules: &PolicyRules, to: &str) -> Verdict {
        rules.verdict(to.parse().unwrap(), Instant::now())
    }

    #[test]
    fn allow_wins_over_deny_and_nothing_over_reserved_but_an_opening() {
        use DenyReason::{Host, Internet, Reserved, Rule};
        let open = rules(
            true,
            &["1.2.3.4", "10.0.0.1"],
            &["1.2.3.0/24"],
            &["10.0.0.2:80"],
        );
        for (to, verdict) in [
            ("8.8.8.8:53", Verdict::Allow),
            ("1.2.3.4:1", Verdict::Allow),
            ("1.2.3.5:1", Verdict::Deny(Rule)),
            ("10.0.0.1:80", Verdict::Deny(Reserved)),
            ("10.0.0.2:80", Verdict::Allow),
            ("10.0.0.2:81", Verdict::Deny(Reserved)),
            ("10.0.0.3:80", Verdict::Deny(Reserved)),
            ("203.0.113.9:22", Verdict::Deny(Host)),
            ("[64:ff9b::203.0.113.9]:22", Verdict::Deny(Host)),
            ("[64:ff9b::1.2.3.5]:22", Verdict::Deny(Rule)),
            ("[::ffff:10.0.0.2]:80", Verdict::Deny(Reserved)),
        ] {
            assert_eq!(ask(&open, to), verdict, "{to}");
        }
        let closed = rules(false, &["1.2.3.4"], &[], &["10.0.0.2:80"]);
        assert_eq!(ask(&closed, "1.2.3.4:9"), Verdict::Allow);
        assert_eq!(ask(&closed, "10.0.0.2:80"), Verdict::Allow);
        assert_eq!(ask(&closed, "8.8.8.8:53"), Verdict::Deny(Internet));
    }

    #[test]
    fn an_allowed_name_opens_its_addresses_until_they_expire() {
        let mut rules = rules(true, &["*.example.com"], &["0.0.0.0/0"], &[]);
        let (now, ttl) = (Instant::now(), Duration::from_secs(300));
        let address: IpAddr = "5.6.7.8".parse().unwrap();
        let to = SocketAddr::new(address, 443);
        assert_eq!(rules.question("a.example.com"), Ok(()));
        assert_eq!(rules.question("example.net"), Err(DenyReason::Name));
        assert_eq!(rules.verdict(to, now), Verdict::Deny(DenyReason::Rule));
        assert_eq!(rules.answer("other.net", address, ttl, now), Ok(()));
        assert_eq!(rules.verdict(to, now), Verdict::Deny(DenyReason::Rule));
        assert_eq!(rules.answer("a.example.com", address, ttl, now), Ok(()));
        assert_eq!(rules.verdict(to, now), Verdict::ByName);
        let later = now + ttl + Duration::from_millis(1);
        assert_eq!(rules.verdict(to, later), Verdict::Deny(DenyReason::Rule));
        let mut policy = NetPolicy {
            internet: false,
            allow_out: vec!["a.example.com".parse().unwrap()],
            ..NetPolicy::default()
        };
        rules.replace(policy.clone());
        assert_eq!(rules.verdict(to, now), Verdict::ByName);
        policy.allow_out = vec!["b.example.com".parse().unwrap()];
        rules.replace(policy);
        assert_eq!(rules.verdict(to, now), Verdict::Deny(DenyReason::Internet));
    }

    #[test]
    fn a_name_that_resolves_to_a_private_address_is_rebinding() {
        let mut rules = rules(true, &["a.example.com"], &[], &["10.0.0.2:80"]);
        let (now, ttl) = (Instant::now(), Duration::ZERO);
        for (address, fine) in [
            ("10.0.0.1", false),
            ("127.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("203.0.113.9", false),
            ("10.0.0.2", true),
            ("8.8.8.8", true),
        ] {
            let said = rules.answer("a.example.com", address.parse().unwrap(), ttl, now);
            assert_eq!(said.is_ok(), fine, "{address}");
        }
    }

    #[test]
    fn what_is_learned_is_bounded() {
        let mut rules = rules(false, &["*"], &[], &[]);
        let now = Instant::now();
        for n in 0..3000_u32 {
            let address = IpAddr::from((0x0800_0000 + n).to_be_bytes());
            let ttl = Duration::from_secs(100 + u64::from(n));
            rules.answer("a", address, ttl, now).unwrap();
        }
        assert_eq!(rules.learned.len(), MAX_LEARNED);
        assert_eq!(ask(&rules, "8.0.11.183:1"), Verdict::ByName);
        assert_eq!(
            ask(&rules, "8.0.0.0:1"),
            Verdict::Deny(DenyReason::Internet)
        );
    }
}
