//! Whose a sandbox or snapshot is, and who asks for it.
//!
//! ```
//! use engine::owner::{Caller, OwnerId};
//!
//! let (red, blue) = (OwnerId::named("red").unwrap(), OwnerId::named("blue").unwrap());
//! let caller = Caller::new(red.clone());
//! assert!(caller.sees(Some(&red)) && !caller.sees(Some(&blue)));
//! // What an older version stored has no owner, and is everybody's.
//! assert!(caller.sees(None));
//! ```

use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Most characters of a name in the configuration.
const MAX_NAME: usize = 64;
/// Before a name.
const NAMED: &str = "name:";
/// Before the digest of a key without a name.
const OF_KEY: &str = "key:";
/// Keeps a key's owner apart from any other digest of the key.
const DOMAIN: &[u8] = b"hatchery owner v1\0";
/// Bytes of the digest in an owner.
const DIGEST: usize = 16;

/// Who made something: an API key, or all keys that have one name in the configuration. It stands
/// in records and in the log, so it is never the key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(Arc<str>);

impl OwnerId {
    /// Of the keys of this name; `None` if it is not 1 to 64 characters of `[A-Za-z0-9_.-]`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let good = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good);
        good.then(|| Self(format!("{NAMED}{name}").into()))
    }

    /// Of a key without a name, by the SHA-256 of the key: a part of a digest of that.
    #[must_use]
    pub fn of_key(sha256: &[u8; 32]) -> Self {
        let digest = Sha256::new().chain_update(DOMAIN).chain_update(sha256);
        let digest = hex::encode(&digest.finalize()[..DIGEST]);
        Self(format!("{OF_KEY}{digest}").into())
    }

    /// Out of a record; `None` for a text that no owner has.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix(NAMED) {
            return Self::named(name);
        }
        let digest = text.strip_prefix(OF_KEY)?;
        let good = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let good = digest.len() == 2 * DIGEST && digest.bytes().all(good);
        good.then(|| Self(text.into()))
    }

    /// As it stands in records.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for OwnerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who asks for something.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose is what it makes.
    pub owner: OwnerId,
    /// Whether it sees what is others'.
    pub admin: bool,
    /// Whether nobody else has a key: then what cannot be read is its own as well.
    pub alone: bool,
}

impl Caller {
    /// One of many, which sees what is its own.
    #[must_use]
    pub const fn new(owner: OwnerId) -> Self {
        Self {
            owner,
            admin: false,
            alone: false,
        }
    }

    /// Whether there is something for it that belongs to this owner; `None`: to everybody.
    #[must_use]
    pub fn sees(&self, owner: Option<&OwnerId>) -> bool {
        self.admin || owner.is_none_or(|owner| *owner == self.owner)
    }

    /// Whether there is something for it of which nobody can tell whose it is.
    #[must_use]
    pub const fn sees_unknown(&self) -> bool {
        self.admin || self.alone
    }

    /// Whose is what it makes of something that belongs to this owner.
    #[must_use]
    pub fn heir(&self, owner: Option<&OwnerId>) -> OwnerId {
        owner.unwrap_or(&self.owner).clone()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_owner_is_read_back_and_nothing_else_is() {
        let key = OwnerId::of_key(&[7; 32]);
        for owner in [OwnerId::named("Team_1.a-b").unwrap(), key.clone()] {
            assert_eq!(OwnerId::parse(owner.as_str()), Some(owner));
        }
        assert_ne!(key, OwnerId::of_key(&[8; 32]));
        assert!(!key.as_str().contains(&"07".repeat(8)), "not the digest");
        let long = format!("name:{}", "a".repeat(65));
        for text in [
            "", "name:", "name:a b", "name:é", &long, "key:", "key:00", "team",
        ] {
            assert_eq!(OwnerId::parse(text), None, "{text:?}");
        }
        let upper = key.as_str().to_uppercase().replace("KEY:", "key:");
        assert_eq!(OwnerId::parse(&upper), None, "one text an owner");
    }

    #[test]
    fn a_caller_sees_its_own_and_what_is_nobodys() {
        let [red, blue] = ["red", "blue"].map(|name| OwnerId::named(name).unwrap());
        let caller = Caller::new(red.clone());
        assert!(caller.sees(Some(&red)) && caller.sees(None));
        assert!(!caller.sees(Some(&blue)) && !caller.sees_unknown());
        assert_eq!((caller.heir(None), caller.heir(Some(&blue))), (red, blue));
        let admin = Caller {
            admin: true,
            ..caller
        };
        assert!(admin.sees(Some(&OwnerId::named("blue").unwrap())) && admin.sees_unknown());
    }
}
