//! API keys: who may use the control plane, and as whom.

use engine::owner::{Caller, OwnerId};
use sha2::{Digest, Sha256};

/// The SHA-256 of a key: what the configuration may have in its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// Of this key; `None` for one that cannot be sent as a header value, or is too short to be a
    /// secret.
    #[must_use]
    pub fn of(key: &str) -> Option<Self> {
        let good = key.len() >= 16 && key.bytes().all(|b| b.is_ascii_graphic());
        good.then(|| Self(Sha256::digest(key).into()))
    }

    /// Out of 64 hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).ok()?;
        Some(Self(digest))
    }

    /// Whose is what this key makes, if it has no name.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        OwnerId::of_key(&self.0)
    }
}

/// By whom it is seen is in the log, and not what it is.
impl std::fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyDigest(of {})", self.owner())
    }
}

/// The configured keys, as salted hashes, so that neither a log nor a core file shows them and
/// every comparison takes the same time whatever the client sent.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    salt: [u8; 32],
    known: Vec<([u8; 32], Caller)>,
}

impl ApiKeys {
    /// Of these keys, and who has them.
    #[must_use]
    pub fn new(keys: Vec<(KeyDigest, Caller)>) -> Self {
        let mut salt = [0; 32];
        // Without entropy the salt stays zero, which costs obscurity, not correctness.
        let _ = getrandom::fill(&mut salt);
        let first = keys.first().map(|(_, caller)| caller.owner.clone());
        let alone = keys.iter().all(|(_, c)| Some(&c.owner) == first.as_ref());
        let known = keys
            .into_iter()
            .map(|(digest, caller)| (hash(&salt, &digest), Caller { alone, ..caller }))
            .collect();
        Self { salt, known }
    }

    /// Who has this key. Looks at all of them, always.
    #[must_use]
    pub fn caller(&self, key: &[u8]) -> Option<&Caller> {
        let given = hash(&self.salt, &KeyDigest(Sha256::digest(key).into()));
        let mut found = None;
        for (known, caller) in &self.known {
            if same(known, &given) {
                found = Some(caller);
            }
        }
        found
    }
}

fn hash(salt: &[u8; 32], key: &KeyDigest) -> [u8; 32] {
    let salted = Sha256::new().chain_update(salt).chain_update(key.0);
    salted.finalize().into()
}

/// Whether two byte strings are equal, in a time that depends only on their lengths.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let differing = a
        .iter()
        .zip(b)
        .fold(0, |acc, (a, b)| std::hint::black_box(acc | (a ^ b)));
    differing == 0
}

#[cfg(test)]
mod test {
    use super::*;

    const KEYS: [&str; 2] = ["e2b_aaaaaaaaaaaaaaaa", "e2b_bbbbbbbbbbbbbbbb"];

    fn keys(keys: &[&str]) -> ApiKeys {
        let known = keys.iter().map(|key| {
            let digest = KeyDigest::of(key).unwrap();
            (digest, Caller::new(digest.owner()))
        });
        ApiKeys::new(known.collect())
    }

    #[test]
    fn only_whole_keys_are_accepted_and_each_is_somebody_else() {
        let all = keys(&KEYS);
        let owner = |key: &str| all.caller(key.as_bytes()).map(|c| c.owner.clone());
        let [a, b] = KEYS.map(|key| owner(key).unwrap());
        assert_ne!(a, b);
        for wrong in [
            "",
            "e2b_aaaaaaaaaaaaaaa",
            "e2b_aaaaaaaaaaaaaaaaa",
            "e2b_aaaaaaaaaaaaaaab",
        ] {
            assert_eq!(owner(wrong), None, "{wrong}");
        }
        assert!(!format!("{all:?}").contains("e2b_"));
    }

    #[test]
    fn a_digest_is_as_good_as_its_key_and_shows_neither() {
        let digest = KeyDigest::of(KEYS[0]).unwrap();
        let text = hex::encode(digest.0);
        assert_eq!(KeyDigest::parse(&text), Some(digest));
        assert!(!format!("{digest:?}").contains(&text[..16]));
        for bad in ["", "00", &text[..62], &format!("{text}00"), &"g".repeat(64)] {
            assert_eq!(KeyDigest::parse(bad), None, "{bad}");
        }
        for bad in ["short", "e2b_with a space in it", "e2b_ä_and_long_enough"] {
            assert_eq!(KeyDigest::of(bad), None, "{bad}");
        }
    }

    #[test]
    fn one_owner_is_alone_whatever_keys_it_has() {
        let alone = |keys: &ApiKeys| keys.caller(KEYS[0].as_bytes()).unwrap().alone;
        assert!(alone(&keys(&KEYS[..1])) && !alone(&keys(&KEYS)));
        let team = Caller::new(OwnerId::named("team").unwrap());
        let both = KEYS.map(|key| (KeyDigest::of(key).unwrap(), team.clone()));
        assert!(alone(&ApiKeys::new(both.into())));
    }

    #[test]
    fn same_means_equal() {
        assert!(same(b"", b"") && same(b"ab", b"ab"));
        assert!(!same(b"ab", b"ac") && !same(b"ab", b"abc") && !same(b"bb", b"ab"));
    }
}
