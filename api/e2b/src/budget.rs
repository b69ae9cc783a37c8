//! The memory that request bodies take together, so that no number of clients can fill the service
//! with what they send.
//!
//! ```text
//! bytes arrive ─> BodyHold ─┬─ at most 64 KiB ─> the small eighth of the budget
//!                           └─ longer ─────────> the rest, in turn
//! ```
//!
//! Each takes all that it can become before it goes on, so that no two wait for what the other has;
//! one that does not say how long it is takes 64 KiB first. Who has to wait looks for a body that
//! is slower than `held::RATE`, has that one's request ended, and is itself refused after [`WAIT`].
//! One sandbox's requests have no more than their share.

mod held;
mod share;

use held::{COST, HeldMemory, SMALL, UNIT};
use share::{BodyShare, BodyShares};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// Longest wait for memory.
pub const WAIT: Duration = Duration::from_secs(20);
/// How often who waits looks for a slow body.
const LOOK: Duration = Duration::from_millis(250);

/// Why a body is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Request bodies of this server hold the {budget} MiB that they may: this one {}. Send it \
     again, or raise limits.body_memory_mb",
    if *slow { "was too slow while others waited" } else { "has waited for too long" }
)]
pub struct BodyRefusal {
    /// The budget, MiB.
    pub budget: usize,
    /// Whether it held memory and was ended for it; else it has waited.
    pub slow: bool,
}

/// The memory of all request bodies.
#[derive(Debug)]
pub struct BodyBudget {
    mebibytes: usize,
    small: Pool,
    large: Pool,
    /// Bodies that hold small memory while they wait for large.
    between: AtomicUsize,
    next: AtomicU64,
    shares: BodyShares,
    holds: Mutex<BTreeMap<u64, Weak<HoldState>>>,
    /// When slow bodies were looked for.
    looked: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Pool {
    free: Arc<Semaphore>,
    units: usize,
}

impl Pool {
    fn new(units: usize) -> Self {
        let free = Arc::new(Semaphore::new(units));
        Self { free, units }
    }
}

impl BodyBudget {
    /// Of so many MiB.
    #[must_use]
    pub fn new(mebibytes: usize) -> Arc<Self> {
        let units = mebibytes.saturating_mul(1 << 20) / UNIT;
        Arc::new(Self {
            mebibytes,
            small: Pool::new(units / 8),
            large: Pool::new(units - units / 8),
            between: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            shares: BodyShares::default(),
            holds: Mutex::default(),
            looked: Mutex::default(),
        })
    }

    /// Of one request, to this sandbox or to none, which holds nothing yet.
    #[must_use]
    pub fn hold(self: &Arc<Self>, sandbox: Option<&str>) -> BodyHold {
        BodyHold(Arc::new(HoldState {
            budget: Arc::clone(self),
            sandbox: sandbox.map(str::to_owned),
            inner: Mutex::new(HeldMemory::default()),
        }))
    }

    /// Bytes that are held at the moment, by their cost.
    #[must_use]
    pub fn held(&self) -> usize {
        let held = |pool: &Pool| pool.units - pool.free.available_permits();
        (held(&self.small) + held(&self.large)) * UNIT
    }

    fn refusal(&self, slow: bool) -> BodyRefusal {
        let budget = self.mebibytes;
        BodyRefusal { budget, slow }
    }

    /// Takes so much of a kind, and what its sandbox may have of that.
    async fn take(
        &self,
        share: Option<&BodyShare>,
        large: bool,
        units: usize,
    ) -> Result<[Option<OwnedSemaphorePermit>; 2], BodyRefusal> {
        let pool = if large { &self.large } else { &self.small };
        // One that is longer than all there is takes all: it is alone then.
        let units = units.min(pool.units);
        let until = Instant::now() + WAIT;
        let own = match share {
            None => None,
            // Those of its own sandbox are waited for, and nobody is ended for it.
            Some(share) if large => Some(self.wait(&share.turns, 1, None, until).await?),
            Some(share) => Some(self.wait(&share.small, units, None, until).await?),
        };
        let missed = Some((large, units));
        let all = self.wait(&pool.free, units, missed, until).await?;
        Ok([Some(all), own])
    }

    /// Waits in turn, and has slow bodies that hold what is `missed`, if anything, ended meanwhile.
    async fn wait(
        &self,
        free: &Arc<Semaphore>,
        permits: usize,
        missed: Option<(bool, usize)>,
        until: Instant,
    ) -> Result<OwnedSemaphorePermit, BodyRefusal> {
        let wanted = count(permits);
        if let Ok(permit) = Arc::clone(free).try_acquire_many_owned(wanted) {
            return Ok(permit);
        }
        let mut turn = pin!(Arc::clone(free).acquire_many_owned(wanted));
        while Instant::now() < until {
            match timeout(LOOK, turn.as_mut()).await {
                Ok(Ok(permit)) => return Ok(permit),
                Ok(Err(_)) => break,
                Err(_) => {
                    if let Some((large, units)) = missed {
                        self.end_slow(large, units);
                    }
                }
            }
        }
        Err(self.refusal(false))
    }

    /// Ends the requests of slow bodies, those that hold most first, until so much is on its way.
    /// One look serves all who wait: they would look at each other.
    fn end_slow(&self, large: bool, units: usize) {
        let now = Instant::now();
        let before = {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            looked.replace(now)
        };
        if before.is_some_and(|before| now < before + LOOK / 2) {
            return;
        }
        let holds: Vec<_> = {
            let table = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
            table.values().filter_map(Weak::upgrade).collect()
        };
        let mut slow: Vec<_> = holds
            .iter()
            .filter_map(|hold| Some((hold.lock().slow_units(large)?, hold)))
            .collect();
        slow.sort_by_key(|(units, _)| std::cmp::Reverse(*units));
        let mut freed = 0;
        for (held, hold) in slow {
            if freed >= units {
                return;
            }
            freed += held;
            hold.lock().end();
        }
    }
}

fn count(units: usize) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[derive(Debug)]
struct HoldState {
    budget: Arc<BodyBudget>,
    sandbox: Option<String>,
    inner: Mutex<HeldMemory>,
}

impl HoldState {
    fn lock(&self) -> MutexGuard<'_, HeldMemory> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HoldState {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if let Some(id) = inner.unwrap_or_else(PoisonError::into_inner).id {
            let holds = self.budget.holds.lock();
            holds.unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }
}

/// What one request holds of the budget; free when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct BodyHold(Arc<HoldState>);

impl BodyHold {
    /// A body, or a message of one, begins: how long it says that it is, and can be at most.
    pub fn begin(&self, announced: Option<usize>, most: usize) {
        let mut inner = self.0.lock();
        (inner.announced, inner.most) = (announced, most);
    }

    /// So many bytes have come and are not kept.
    pub fn progress(&self, bytes: usize) {
        self.0.lock().come += bytes as u64;
    }

    /// Holds so many bytes more.
    ///
    /// # Errors
    /// There was no memory for them in time, or this body was too slow while others waited.
    pub async fn keep(&self, bytes: usize) -> Result<(), BodyRefusal> {
        let budget = &self.0.budget;
        let (large, more, between, share) = {
            let mut inner = self.0.lock();
            if inner.ended {
                return Err(budget.refusal(true));
            }
            inner.kept += bytes;
            inner.come += bytes as u64;
            let (large, more) = inner.needs();
            if more == 0 {
                return Ok(());
            }
            inner.since.get_or_insert_with(Instant::now);
            self.enter(&mut inner);
            let between = large && inner.permit.is_some();
            let between = between.then(|| Between::new(budget)).transpose()?;
            inner.spared = true;
            let share = inner.share.clone();
            (large, more, between, share)
        };
        let begin = Instant::now();
        let got = budget.take(share.as_deref(), large, more).await;
        let mut inner = self.0.lock();
        inner.spared = false;
        inner.since = inner.since.map(|since| since + begin.elapsed());
        let [all, own] = got?;
        inner.large = large;
        put(&mut inner.permit, all, between.is_some());
        put(&mut inner.own, own, between.is_some());
        Ok(())
    }

    fn enter(&self, inner: &mut HeldMemory) {
        let budget = &self.0.budget;
        if inner.id.is_some() {
            return;
        }
        let share = |id: &String| budget.shares.of(id, budget.small.units);
        inner.share = self.0.sandbox.as_ref().map(share);
        inner.id.get_or_insert_with(|| {
            let id = budget.next.fetch_add(1, Ordering::Relaxed);
            let mut holds = budget.holds.lock().unwrap_or_else(PoisonError::into_inner);
            holds.insert(id, Arc::downgrade(&self.0));
            id
        });
    }

    /// Holds nothing more: the message is done with.
    pub fn release(&self) {
        let mut inner = self.0.lock();
        (inner.permit, inner.own) = (None, None);
        (inner.large, inner.since) = (false, None);
        (inner.kept, inner.come) = (0, 0);
    }

    /// The body is whole, and what is done with it has a bound of its own: nobody ends it.
    pub fn settle(&self) {
        self.0.lock().spared = true;
    }

    /// Ready when the request is to be ended, because it holds memory, is slow, and others wait.
    pub async fn ended(&self) -> BodyRefusal {
        std::future::poll_fn(|context| {
            let mut inner = self.0.lock();
            if inner.ended {
                return Poll::Ready(());
            }
            match &mut inner.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await;
        self.0.budget.refusal(true)
    }
}

/// Puts what was got to what is held, or in its place.
fn put(held: &mut Option<OwnedSemaphorePermit>, got: Option<OwnedSemaphorePermit>, instead: bool) {
    match (held.as_mut(), got) {
        (Some(held), Some(got)) if !instead => held.merge(got),
        (_, got) => *held = got,
    }
}

/// One body that holds small memory while it waits for large. They get half of the small memory at
/// most: the rest stays for bodies that are small.
struct Between<'a>(&'a BodyBudget);

impl<'a> Between<'a> {
    fn new(budget: &'a BodyBudget) -> Result<Self, BodyRefusal> {
        let before = budget.between.fetch_add(1, Ordering::Relaxed);
        let this = Self(budget);
        let most = budget.small.units / 2 / (SMALL * COST / UNIT);
        if before < most.max(1) {
            Ok(this)
        } else {
            Err(budget.refusal(false))
        }
    }
}

impl Drop for Between<'_> {
    fn drop(&mut self) {
        self.0.between.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod test;
