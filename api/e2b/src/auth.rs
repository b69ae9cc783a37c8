//! API keys: who may use the control plane.

use sha2::{Digest, Sha256};

/// Why keys are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// There is none.
    NoKeys,
    /// The one of this number, from 1, cannot be sent as a header value, or is too short to be a
    /// secret.
    BadKey(usize),
}

/// The configured keys, as salted hashes, so that neither a log nor a core file shows them and
/// every comparison takes the same time whatever the client sent.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    salt: [u8; 32],
    hashes: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// Of these keys.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn new(keys: &[String]) -> Result<Self, KeyError> {
        if keys.is_empty() {
            return Err(KeyError::NoKeys);
        }
        let good = |key: &String| key.len() >= 16 && key.bytes().all(|b| b.is_ascii_graphic());
        if let Some(bad) = keys.iter().position(|key| !good(key)) {
            return Err(KeyError::BadKey(bad + 1));
        }
        let mut salt = [0; 32];
        // Without entropy the salt stays zero, which costs obscurity, not correctness.
        let _ = getrandom::fill(&mut salt);
        let hashes = keys.iter().map(|key| hash(&salt, key.as_bytes())).collect();
        Ok(Self { salt, hashes })
    }

    /// Whether `key` is one of the configured keys. Looks at all of them, always.
    #[must_use]
    pub fn accepts(&self, key: &[u8]) -> bool {
        let given = hash(&self.salt, key);
        self.hashes
            .iter()
            .fold(false, |found, known| found | same(known, &given))
    }
}

fn hash(salt: &[u8; 32], key: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(salt)
        .chain_update(key)
        .finalize()
        .into()
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

    #[test]
    fn only_whole_keys_are_accepted() {
        let keys = ApiKeys::new(&["e2b_aaaaaaaaaaaaaaaa".into(), "e2b_bbbbbbbbbbbbbbbb".into()]);
        let keys = keys.unwrap();
        assert!(keys.accepts(b"e2b_aaaaaaaaaaaaaaaa") && keys.accepts(b"e2b_bbbbbbbbbbbbbbbb"));
        for wrong in [
            "",
            "e2b_aaaaaaaaaaaaaaa",
            "e2b_aaaaaaaaaaaaaaaaa",
            "e2b_aaaaaaaaaaaaaaab",
        ] {
            assert!(!keys.accepts(wrong.as_bytes()), "{wrong}");
        }
        assert!(!format!("{keys:?}").contains("e2b_"));
    }

    #[test]
    fn same_means_equal() {
        assert!(same(b"", b"") && same(b"ab", b"ab"));
        assert!(!same(b"ab", b"ac") && !same(b"ab", b"abc") && !same(b"bb", b"ab"));
    }
}
