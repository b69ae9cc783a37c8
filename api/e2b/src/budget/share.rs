//! What one sandbox's requests may have of the budget, so that those who hold one sandbox's token
//! wait for each other and not everybody for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Semaphore;

/// Long bodies of one sandbox that take part in the turns of all.
const TURNS: usize = 2;
/// The part of the small memory that one sandbox may have.
const PART: usize = 4;
/// As many shares are looked through for ones that nobody uses.
const MANY: usize = 1024;

/// One sandbox's share.
#[derive(Debug)]
pub(super) struct BodyShare {
    pub(super) turns: Arc<Semaphore>,
    pub(super) small: Arc<Semaphore>,
}

/// The shares that are in use, by sandbox.
#[derive(Debug, Default)]
pub(super) struct BodyShares(Mutex<HashMap<String, Weak<BodyShare>>>);

impl BodyShares {
    /// The share of this sandbox, of so many units of small memory in all.
    pub(super) fn of(&self, id: &str, small: usize) -> Arc<BodyShare> {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(id).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() >= MANY {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(BodyShare {
            turns: Arc::new(Semaphore::new(TURNS)),
            small: Arc::new(Semaphore::new(small / PART)),
        });
        shares.insert(id.to_owned(), Arc::downgrade(&share));
        share
    }
}
