//! How much one owner may have, and all owners together.

use crate::owner::OwnerId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A second's worth of creations may come at once.
const BURST: Duration = Duration::from_secs(1);

/// The most that one owner may have; `None`: whatever all may have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerLimits {
    /// Sandboxes with a machine.
    pub max_running: Option<usize>,
    /// Paused sandboxes.
    pub max_paused: Option<usize>,
    /// Snapshots.
    pub max_snapshots: Option<usize>,
    /// Bytes in the store.
    pub max_stored_bytes: Option<u64>,
    /// Sandboxes that are asked for in a second; as many may come at once.
    pub max_creates_per_second: Option<u32>,
}

/// Somebody who has keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerOptions {
    /// Whose is what these keys make.
    pub owner: OwnerId,
    /// As whom the same keys stored things before they had a name.
    pub before: Vec<OwnerId>,
    /// The most that it may have.
    pub limits: OwnerLimits,
}

/// The most that all owners may have together, in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Paused sandboxes.
    pub max_paused: usize,
    /// Snapshots.
    pub max_snapshots: usize,
    /// Bytes.
    pub max_stored_bytes: u64,
}

/// What there is a limit of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// Sandboxes with a machine.
    Running,
    /// Paused sandboxes.
    Paused,
    /// Snapshots.
    Snapshots,
    /// Bytes in the store.
    StoredBytes,
    /// Sandboxes that are asked for in a second.
    Creations,
}

impl LimitKind {
    const fn noun(self) -> &'static str {
        match self {
            Self::Running => "sandboxes with a machine",
            Self::Paused => "paused sandboxes",
            Self::Snapshots => "snapshots",
            Self::StoredBytes => "stored bytes",
            Self::Creations => "sandboxes in a second",
        }
    }

    const fn setting(self) -> &'static str {
        match self {
            Self::Running => "max_running",
            Self::Paused => "max_paused",
            Self::Snapshots => "max_snapshots",
            Self::StoredBytes => "max_stored_bytes",
            Self::Creations => "max_creates_per_second",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::Running => "Kill or pause one",
            Self::Paused => "Resume or kill one",
            Self::Snapshots => "Delete one",
            Self::StoredBytes => "Kill paused sandboxes, or delete snapshots or checkpoints",
            Self::Creations => "Come again later",
        }
    }
}

/// A limit that is reached: nothing has been begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitReached {
    /// Of what.
    pub kind: LimitKind,
    /// How much there is.
    pub has: u64,
    /// The most.
    pub max: u64,
    /// Whose limit it is; `None`: of all together.
    pub owner: Option<OwnerId>,
    /// After how long it is worth to ask again, if that is known.
    pub again: Option<Duration>,
}

impl std::fmt::Display for LimitReached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (noun, setting, remedy) = (self.kind.noun(), self.kind.setting(), self.kind.remedy());
        let (has, max) = (self.has, self.max);
        match &self.owner {
            None => write!(
                f,
                "The server has the {max} {noun} that it may have (limits.{setting}). {remedy}, or \
                 have the limit raised"
            ),
            Some(_) if self.kind == LimitKind::Creations => write!(
                f,
                "This API key asks for more than {max} {noun} ({setting} of its [[keys]]). \
                 {remedy}, or have the limit raised"
            ),
            Some(_) => write!(
                f,
                "This API key's owner has {has} {noun} of {max}, its limit ({setting} of its \
                 [[keys]]). {remedy}, or have the limit raised"
            ),
        }
    }
}

impl std::error::Error for LimitReached {}

/// All who have keys.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    all: HashMap<OwnerId, Account>,
    /// Who they are now that had another name.
    now: HashMap<OwnerId, OwnerId>,
}

#[derive(Debug)]
struct Account {
    limits: OwnerLimits,
    pace: Mutex<Option<Instant>>,
}

impl Accounts {
    pub(crate) fn new(owners: Vec<OwnerOptions>) -> Self {
        let mut accounts = Self::default();
        for OwnerOptions {
            owner,
            before,
            limits,
        } in owners
        {
            let renamed = before.into_iter().map(|old| (old, owner.clone()));
            accounts.now.extend(renamed);
            let pace = Mutex::default();
            accounts.all.insert(owner, Account { limits, pace });
        }
        accounts
    }

    /// Whose it is now.
    pub(crate) fn now(&self, owner: OwnerId) -> OwnerId {
        self.now.get(&owner).cloned().unwrap_or(owner)
    }

    /// Whether anybody has keys as this owner.
    pub(crate) fn knows(&self, owner: &OwnerId) -> bool {
        self.all.contains_key(owner)
    }

    /// What this owner may have.
    pub(crate) fn limits(&self, owner: &OwnerId) -> OwnerLimits {
        let account = self.all.get(owner);
        account.map(|account| account.limits).unwrap_or_default()
    }

    /// This owner asks for so many sandboxes.
    ///
    /// # Errors
    /// It has asked for too many just now.
    pub(crate) fn ask(&self, owner: &OwnerId, count: usize) -> Result<(), LimitReached> {
        let Some(account) = self.all.get(owner) else {
            return Ok(());
        };
        let Some(rate) = account.limits.max_creates_per_second else {
            return Ok(());
        };
        // Nothing panics while it holds the lock.
        let mut pace = account.pace.lock().unwrap_or_else(PoisonError::into_inner);
        match paced(*pace, Instant::now(), (count, rate)) {
            Ok(next) => {
                *pace = Some(next);
                Ok(())
            }
            Err(again) => Err(LimitReached {
                kind: LimitKind::Creations,
                has: rate.into(),
                max: rate.into(),
                owner: Some(owner.clone()),
                again: Some(again),
            }),
        }
    }
}

/// Until when `count` creations more are paid for at `rate` a second, if all before are until
/// `paid`. Many at once are let through, and paid for afterwards.
///
/// # Errors
/// How long to wait: more than a burst is to be paid for.
fn paced(
    paid: Option<Instant>,
    now: Instant,
    (count, rate): (usize, u32),
) -> Result<Instant, Duration> {
    let paid = paid.unwrap_or(now).max(now);
    let debt = paid - now;
    if debt >= BURST {
        return Err(debt - BURST + Duration::from_millis(1));
    }
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let each = Duration::from_secs(1) / rate.max(1);
    Ok(paid + each.saturating_mul(count))
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_is_given_at_once_and_no_more() {
        let start = Instant::now();
        let mut paid = None;
        for _ in 0..10 {
            paid = Some(paced(paid, start, (1, 10)).unwrap());
        }
        let wait = paced(paid, start, (1, 10)).unwrap_err();
        assert!(wait <= Duration::from_millis(101), "{wait:?}");
        let later = start + wait;
        let paid = paced(paid, later, (1, 10)).unwrap();
        paced(Some(paid), later, (1, 10)).unwrap_err();
        // Many at once are paid for before the next.
        let batch = paced(None, start, (100, 10)).unwrap();
        let wait = paced(Some(batch), start, (1, 10)).unwrap_err();
        assert_eq!(wait.as_secs(), 9);
    }

    proptest! {
        /// Whatever comes when: never more than the time gives, one burst and the last request.
        #[test]
        fn nobody_is_faster_than_the_rate(
            asks in proptest::collection::vec((0_u64..400, 1_usize..20), 1..80),
            rate in 1_u32..50,
        ) {
            let start = Instant::now();
            let (mut now, mut paid) = (start, None);
            let (mut made, mut last) = (0, 0);
            for (wait, count) in asks {
                now += Duration::from_millis(wait);
                if let Ok(next) = paced(paid, now, (count, rate)) {
                    paid = Some(next);
                    made += count;
                    last = count;
                }
            }
            let time = (now - start).as_secs_f64() + BURST.as_secs_f64();
            let most = time * f64::from(rate) + last as f64 + 1.0;
            prop_assert!(made as f64 <= most, "{made} of {most}");
        }
    }

    #[test]
    fn words_name_the_limit_and_the_setting() {
        let reached = |kind, owner| LimitReached {
            kind,
            has: 7,
            max: 7,
            owner,
            again: None,
        };
        let team = || OwnerId::named("team");
        for (kind, setting) in [
            (LimitKind::Running, "max_running"),
            (LimitKind::Paused, "max_paused"),
            (LimitKind::Snapshots, "max_snapshots"),
            (LimitKind::StoredBytes, "max_stored_bytes"),
        ] {
            let words = reached(kind, None).to_string();
            assert!(words.contains(&format!("limits.{setting}")), "{words}");
            let words = reached(kind, team()).to_string();
            assert!(words.contains(setting) && words.contains(" 7 "), "{words}");
        }
        let words = reached(LimitKind::Creations, team()).to_string();
        assert!(words.contains("max_creates_per_second"), "{words}");
    }

    #[test]
    fn who_has_a_name_is_who_it_was() {
        let (old, new) = (OwnerId::of_key(&[1; 32]), OwnerId::named("team").unwrap());
        let accounts = Accounts::new(vec![OwnerOptions {
            owner: new.clone(),
            before: vec![old.clone()],
            limits: OwnerLimits {
                max_running: Some(3),
                ..OwnerLimits::default()
            },
        }]);
        assert_eq!(accounts.now(old.clone()), new);
        assert_eq!(accounts.limits(&new).max_running, Some(3));
        let other = OwnerId::named("other").unwrap();
        assert_eq!(accounts.limits(&other), OwnerLimits::default());
        assert!(accounts.ask(&other, 1000).is_ok() && !accounts.knows(&other));
    }
}
