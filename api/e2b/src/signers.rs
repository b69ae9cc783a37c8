//! Which sandbox's token has made a signature that names none: an allowance for tries in vain, and
//! what was found before.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Tokens that may be tried in vain at once, and each second: some hundredths of a processor.
const TRIES: f64 = 200_000.0;
/// Most signatures whose sandbox is remembered.
const REMEMBERED: usize = 4096;

/// What is known of signatures that name no sandbox.
#[derive(Debug)]
pub struct SignerSearch(Mutex<SearchState>);

#[derive(Debug)]
struct SearchState {
    found: HashMap<[u8; 32], String>,
    left: f64,
    since: Instant,
}

impl Default for SignerSearch {
    fn default() -> Self {
        Self(Mutex::new(SearchState {
            found: HashMap::new(),
            left: TRIES,
            since: Instant::now(),
        }))
    }
}

impl SignerSearch {
    fn lock(&self) -> MutexGuard<'_, SearchState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose signature this had turned out to be.
    pub(crate) fn remembered(&self, signature: &[u8; 32]) -> Option<String> {
        self.lock().found.get(signature).cloned()
    }

    pub(crate) fn remember(&self, signature: [u8; 32], id: &str) {
        let mut state = self.lock();
        if state.found.len() >= REMEMBERED {
            state.found.clear();
        }
        state.found.insert(signature, id.to_owned());
    }

    /// Whether tokens may be tried at all.
    pub(crate) fn may_try(&self) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        let back = now.duration_since(state.since).as_secs_f64() * TRIES;
        state.left = (state.left + back).min(TRIES);
        state.since = now;
        state.left >= 1.0
    }

    /// So many were tried in vain.
    pub(crate) fn pay(&self, tries: usize) {
        self.lock().left -= f64::from(u32::try_from(tries).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn tries_in_vain_are_paid_and_come_back() {
        let search = SignerSearch::default();
        let mut forged = 0;
        while search.may_try() {
            search.pay(10_000);
            forged += 1;
            assert!(forged < 1000, "nothing is paid");
        }
        assert!(forged >= 20, "{forged}");
        search.lock().since = Instant::now() - std::time::Duration::from_secs(1);
        assert!(search.may_try());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let search = SignerSearch::default();
        for n in 0..=REMEMBERED as u64 {
            let mut signature = [0; 32];
            signature[..8].copy_from_slice(&n.to_le_bytes());
            search.remember(signature, "i1");
        }
        assert_eq!(search.lock().found.len(), 1);
        assert_eq!(search.remembered(&[0; 32]), None);
    }
}
