//! Names and secrets.

use std::io;

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// `len` random characters of `[a-z0-9]`, each with the same chance.
///
/// # Errors
/// When the host gives no random bytes.
pub fn random_name(len: usize) -> io::Result<String> {
    let mut name = String::with_capacity(len);
    let mut bytes = [0; 32];
    while name.len() < len {
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        // 252 = 7 · 36: larger bytes would favour the first letters.
        let fair = bytes.iter().filter(|byte| **byte < 252);
        for byte in fair.take(len - name.len()) {
            name.push(char::from(ALPHABET[usize::from(byte % 36)]));
        }
    }
    Ok(name)
}

/// A sandbox id: `i` and 19 characters of `[a-z0-9]`.
///
/// # Errors
/// When the host gives no random bytes.
pub fn sandbox_id() -> io::Result<String> {
    Ok(format!("i{}", random_name(19)?))
}

/// Whether a text is the id of a sandbox of ours, as [`sandbox_id`] makes them, or of an older
/// server: 1 to 64 characters of `[a-z0-9]`.
#[must_use]
pub fn is_sandbox_id(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

/// A secret of 256 bits, in hex.
///
/// # Errors
/// When the host gives no random bytes.
pub fn token() -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ids_are_what_e2b_expects() {
        let (a, b) = (sandbox_id().unwrap(), sandbox_id().unwrap());
        assert_ne!(a, b);
        assert_eq!((a.len(), &a[..1]), (20, "i"));
        assert!(is_sandbox_id(&a) && !is_sandbox_id("a-b") && !is_sandbox_id(""));
        assert_eq!(token().unwrap().len(), 64);
    }

    #[test]
    fn every_letter_occurs() {
        let name = random_name(20_000).unwrap();
        assert!(ALPHABET.iter().all(|b| name.contains(char::from(*b))));
    }
}
