//! `Idempotency-Key`: a creation that is asked again gives the same sandbox. Each owner has keys of
//! its own.

use crate::auth::same;
use crate::error::ApiError;
use engine::owner::OwnerId;
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Most keys that are remembered. Above it the oldest settled one is forgotten of the owner that
/// has most.
const MAX_KEYS: usize = 4096;
/// How long a key is remembered.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

/// How long a request waits for another one with its key.
const WAIT: Duration = Duration::from_secs(120);

/// Whose it is, and what was sent.
type OwnedKey = (OwnerId, String);
type ClaimTable = HashMap<OwnedKey, IdempotencyRecord>;

/// Remembers which sandbox a key has given.
#[derive(Clone, Debug, Default)]
pub struct IdempotencyTable(Arc<Mutex<ClaimTable>>);

#[derive(Debug)]
struct IdempotencyRecord {
    body: [u8; 32],
    since: Instant,
    /// `None` while the first creation is on its way.
    outcome: watch::Receiver<Option<String>>,
}

/// The right and the duty to create. Dropped unsettled, the key is free again.
#[derive(Debug)]
pub struct IdempotencyClaim {
    table: IdempotencyTable,
    key: OwnedKey,
    outcome: watch::Sender<Option<String>>,
}

impl IdempotencyTable {
    /// What a body is told by: the memory that it takes is free while its key is waited for.
    #[must_use]
    pub fn digest(body: &[&[u8]]) -> [u8; 32] {
        let all = body.iter().fold(Sha256::new(), Sha256::chain_update);
        all.finalize().into()
    }

    /// Either a claim to create, or the id of the sandbox that this owner's key has given. Waits
    /// while another request with the same key is on its way.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for a key that is not 1 to 255 characters of `[A-Za-z0-9_-]`;
    /// [`ApiError::IdempotencyMismatch`] when the key came with another body;
    /// [`ApiError::Conflict`] when the other request takes too long.
    pub async fn claim(
        &self,
        (owner, key): (&OwnerId, &HeaderValue),
        body: [u8; 32],
    ) -> Result<Result<IdempotencyClaim, String>, ApiError> {
        let key = key.to_str().ok().filter(|key| is_key(key)).ok_or_else(|| {
            ApiError::Invalid("Idempotency-Key is not 1 to 255 characters of [A-Za-z0-9_-]".into())
        })?;
        let key = (owner.clone(), key.to_owned());
        let until = Instant::now() + WAIT;
        loop {
            let mut outcome = match self.look(&key, &body)? {
                Ok(claim) => return Ok(Ok(claim)),
                Err(outcome) => outcome,
            };
            match timeout_at(until, outcome.wait_for(Option::is_some)).await {
                Ok(Ok(known)) => return Ok(Err(known.clone().unwrap_or_default())),
                // The other creation failed: try to be the one who creates.
                Ok(Err(_)) => {}
                Err(_) => {
                    let seconds = WAIT.as_secs();
                    return Err(ApiError::Conflict(format!(
                        "Another request with this Idempotency-Key is under way for {seconds} s: \
                         send it again later"
                    )));
                }
            }
        }
    }

    fn look(
        &self,
        key: &OwnedKey,
        body: &[u8; 32],
    ) -> Result<Result<IdempotencyClaim, watch::Receiver<Option<String>>>, ApiError> {
        let mut table = self.table();
        let now = Instant::now();
        table.retain(|_, r| r.outcome.borrow().is_none() || now - r.since < MEMORY);
        if let Some(record) = table.get(key) {
            if !same(&record.body, body) {
                return Err(ApiError::IdempotencyMismatch);
            }
            return Ok(Err(record.outcome.clone()));
        }
        if table.len() >= MAX_KEYS {
            let own = table.iter().filter(|((owner, _), _)| *owner == key.0);
            let pending = own.filter(|(_, r)| r.outcome.borrow().is_none()).count();
            if pending >= MAX_KEYS / 2 {
                return Err(ApiError::Conflict(format!(
                    "{pending} creations with an Idempotency-Key are under way: send this one \
                     again when some are done"
                )));
            }
            forget_one(&mut table);
        }
        let (sender, outcome) = watch::channel(None);
        table.insert(
            key.clone(),
            IdempotencyRecord {
                body: *body,
                since: now,
                outcome,
            },
        );
        Ok(Ok(IdempotencyClaim {
            table: self.clone(),
            key: key.clone(),
            outcome: sender,
        }))
    }

    fn table(&self) -> MutexGuard<'_, ClaimTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdempotencyClaim {
    /// The creation gave this sandbox.
    pub fn settle(self, id: &str) {
        self.outcome.send_replace(Some(id.to_owned()));
    }
}

impl Drop for IdempotencyClaim {
    fn drop(&mut self) {
        if self.outcome.borrow().is_none() {
            self.table.table().remove(&self.key);
        }
    }
}

/// The oldest settled one of the owner that has most of them: who sends many keys forgets its own.
fn forget_one(table: &mut ClaimTable) {
    let settled = || {
        let all = table.iter();
        all.filter(|(_, record)| record.outcome.borrow().is_some())
    };
    let mut counts: HashMap<&OwnerId, usize> = HashMap::new();
    for ((owner, _), _) in settled() {
        *counts.entry(owner).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    let of_most = settled().filter(|((owner, _), _)| most.is_some_and(|(most, _)| most == owner));
    let oldest = of_most.min_by_key(|(_, record)| record.since);
    if let Some(key) = oldest.map(|(key, _)| key.clone()) {
        table.remove(&key);
    }
}

fn is_key(key: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=255).contains(&key.len()) && key.bytes().all(good)
}

#[cfg(test)]
mod test {
    use super::*;

    /// Of an owner and a key, claimed.
    async fn ask(
        table: &IdempotencyTable,
        (owner, key): (&str, &str),
        body: &[u8],
    ) -> Result<Result<IdempotencyClaim, String>, ApiError> {
        let owner = OwnerId::named(owner).unwrap();
        let key = HeaderValue::from_str(key).unwrap();
        table
            .claim((&owner, &key), IdempotencyTable::digest(&[body]))
            .await
    }

    #[tokio::test]
    async fn a_second_request_waits_for_the_first_and_gets_the_same() {
        let table = IdempotencyTable::default();
        let claim = ask(&table, ("a", "k"), b"body").await.unwrap().unwrap();
        let other = table.clone();
        let second = tokio::spawn(async move { ask(&other, ("a", "k"), b"body").await });
        tokio::task::yield_now().await;
        claim.settle("i1");
        assert_eq!(second.await.unwrap().unwrap().unwrap_err(), "i1");
        let third = ask(&table, ("a", "k"), b"body").await;
        assert_eq!(third.unwrap().unwrap_err(), "i1");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told() {
        let table = IdempotencyTable::default();
        let _claim = ask(&table, ("a", "k"), b"body").await.unwrap().unwrap();
        let error = ask(&table, ("a", "k"), b"body").await.unwrap_err();
        assert_eq!(error.status(), 409);
        assert!(error.to_string().contains("120 s"), "{error}");
    }

    #[tokio::test]
    async fn a_failed_creation_frees_its_key() {
        let table = IdempotencyTable::default();
        let claim = ask(&table, ("a", "k"), b"body").await.unwrap().unwrap();
        let other = table.clone();
        let second = tokio::spawn(async move { ask(&other, ("a", "k"), b"body").await });
        tokio::task::yield_now().await;
        drop(claim);
        let second = second.await.unwrap().unwrap().unwrap();
        drop(second);
        assert!(table.table().is_empty());
    }

    #[tokio::test]
    async fn misuse_is_refused() {
        let table = IdempotencyTable::default();
        ask(&table, ("a", "k"), b"body")
            .await
            .unwrap()
            .unwrap()
            .settle("i1");
        let other = ask(&table, ("a", "k"), b"other").await.unwrap_err();
        assert_eq!(other.status(), 409);
        for bad in ["", "a b", &"k".repeat(256)] {
            assert_eq!(
                ask(&table, ("a", bad), b"").await.unwrap_err().status(),
                400
            );
        }
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let table = IdempotencyTable::default();
        for n in 0..MAX_KEYS + 10 {
            ask(&table, ("a", &format!("k{n}")), b"")
                .await
                .unwrap()
                .unwrap()
                .settle("i1");
        }
        assert_eq!(table.table().len(), MAX_KEYS);
    }

    #[tokio::test]
    async fn an_owners_keys_are_its_own_and_no_other_makes_it_forget() {
        let table = IdempotencyTable::default();
        let make = async |owner: &str, key: &str, body: &[u8], id: &str| {
            let made = ask(&table, (owner, key), body).await.unwrap();
            made.unwrap().settle(id);
        };
        make("a", "k", b"body", "i1").await;
        make("b", "k", b"other", "i2").await;
        for n in 0..MAX_KEYS {
            make("b", &format!("k{n}"), b"", "i3").await;
        }
        assert_eq!(table.table().len(), MAX_KEYS);
        let known = ask(&table, ("a", "k"), b"body").await;
        assert_eq!(known.unwrap().unwrap_err(), "i1");
        let forgotten = ask(&table, ("b", "k"), b"other").await.unwrap();
        assert!(forgotten.is_ok(), "its oldest");
    }
}
