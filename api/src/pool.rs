//! Copies of each template's golden machine, kept ready for the next sandboxes.
//!
//! ```text
//!            ┌─ boots (no golden machine: saving failed, or copies did)
//! building ──┴─> golden ──build──> husk ──take──> claim (registry)
//!                           ^         │
//!                           └─ dies <─┘   waits longer after each, until a claim succeeds
//! ```
//!
//! A husk holds a slot under `max_sandboxes` like a sandbox does, and gives it up when a creation
//! needs it ([`Pools::make_room`]). One keeper task per template builds; all of them take turns, so
//! that at most one machine is made ahead at a time.

use crate::config::{Settings, Template};
use crate::golden::{self, GoldenError};
use crate::image::Image;
use crate::launcher::{Begin, Built, LaunchError, Launcher, Plan, Timings};
use crate::name::Name;
use crate::room::Room;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

/// So many copies in a row that fail when they are claimed make an end of copying, for a while.
const MAX_FAULTS: u32 = 3;
/// How long sandboxes boot then. It may have been want of memory, which passes; a template whose copies are
/// bad costs one creation some time as often as this.
const REST: Duration = Duration::from_secs(60);
/// The wait after the first husk that died or could not be built; it doubles up to 51 s.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_DOUBLINGS: u32 = 9;

/// A machine that has never run, ready to be somebody's.
#[derive(Debug)]
pub struct Husk {
    /// The process, parked, and our end of its link.
    pub built: Built,
    /// What it is a copy of.
    pub golden: Arc<Image>,
    /// While it waits in the pool.
    idle: Option<Idle>,
}

/// Counts a slot that is not used by a sandbox.
#[derive(Debug)]
struct Idle(Arc<AtomicUsize>);

impl Idle {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[derive(Clone, Debug)]
enum State {
    Building,
    Ready(Arc<Image>),
    /// Copies have failed: not before then.
    Rests(Arc<Image>, Instant),
    /// There is nothing to copy.
    Boots,
}

/// The pools of all templates.
#[derive(Debug)]
pub struct Pools {
    pools: BTreeMap<String, Arc<Pool>>,
    idle: Arc<AtomicUsize>,
    /// One per golden machine that is being made.
    makers: Arc<Semaphore>,
    count: u32,
}

/// What all keepers share.
#[derive(Clone, Debug)]
struct Shared {
    slots: Arc<Semaphore>,
    room: Arc<Room>,
    makers: Arc<Semaphore>,
    turn: Arc<Semaphore>,
    idle: Arc<AtomicUsize>,
}

/// The pool of one template.
#[derive(Debug)]
pub struct Pool {
    template: Template,
    launcher: Launcher,
    size: usize,
    state: watch::Sender<State>,
    husks: Mutex<Vec<Husk>>,
    wake: Notify,
    /// Husks that died or could not be built, since the last claim that succeeded.
    setbacks: AtomicU32,
    /// Claims that failed, since the last that succeeded.
    faults: AtomicU32,
}

impl Pools {
    /// Begins to make the golden machines and husks of all templates, in the background, until
    /// `closing` says true. Must be called on the runtime.
    #[must_use]
    pub fn open(
        launcher: &Launcher,
        settings: &Settings,
        (slots, room): (Arc<Semaphore>, Arc<Room>),
        closing: &watch::Receiver<bool>,
    ) -> Self {
        let templates = settings
            .templates
            .values()
            .filter(|_| settings.clones.enabled);
        let pool = |template: &Template| Pool {
            template: template.clone(),
            launcher: launcher.clone(),
            size: settings.clones.husks,
            state: watch::Sender::new(State::Building),
            husks: Mutex::default(),
            wake: Notify::new(),
            setbacks: AtomicU32::new(0),
            faults: AtomicU32::new(0),
        };
        let pools: BTreeMap<_, _> = templates
            .map(|t| (t.name.clone(), Arc::new(pool(t))))
            .collect();
        let count = u32::try_from(pools.len()).unwrap_or(u32::MAX);
        let shared = Shared {
            slots,
            room,
            makers: Arc::new(Semaphore::new(pools.len())),
            turn: Arc::new(Semaphore::new(1)),
            idle: Arc::default(),
        };
        for pool in pools.values() {
            tokio::spawn(Arc::clone(pool).keep(shared.clone(), closing.clone()));
        }
        Self {
            pools,
            idle: shared.idle,
            makers: shared.makers,
            count,
        }
    }

    /// The pool of a template; `None` when sandboxes are not copied.
    #[must_use]
    pub fn of(&self, template: &Template) -> Option<&Arc<Pool>> {
        self.pools.get(&template.name)
    }

    /// Ends one husk of any template, so that its slot becomes free. False if there is none.
    pub fn make_room(&self) -> bool {
        // Dropping it ends the process.
        self.pools.values().any(|pool| pool.lock().pop().is_some())
    }

    /// Tells the keepers that there may be a free slot.
    pub fn wake(&self) {
        for pool in self.pools.values() {
            pool.wake.notify_one();
        }
    }

    /// How many slots husks hold.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.load(Relaxed)
    }

    /// Completes when no golden machine is being made. Husks give back slots.
    pub async fn closed(&self) {
        let _ = self.makers.acquire_many(self.count).await;
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Vec<Husk>> {
        // Nothing panics while it holds the lock.
        self.husks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The golden machine, waiting at most `bound` for it; `None`: boot instead.
    pub async fn golden(&self, bound: Duration) -> Option<Arc<Image>> {
        let mut state = self.state.subscribe();
        let decided = state.wait_for(|state| !matches!(state, State::Building));
        match timeout(bound, decided)
            .await
            .map(|state| state.map(|s| s.clone()))
        {
            Ok(Ok(State::Ready(golden))) => Some(golden),
            Ok(Ok(State::Rests(golden, until))) if Instant::now() >= until => {
                self.try_again(&golden);
                Some(golden)
            }
            Ok(Ok(_)) => None,
            _ => {
                tracing::warn!(
                    template = self.template.name,
                    ?bound,
                    "not ready to be copied"
                );
                None
            }
        }
    }

    /// The template's name.
    #[must_use]
    pub fn template_name(&self) -> &str {
        &self.template.name
    }

    /// A husk that is ready, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Husk> {
        let mut husks = self.lock();
        while let Some(mut husk) = husks.pop() {
            if husk.built.machine.has_ended() {
                self.setbacks.fetch_add(1, Relaxed);
                continue;
            }
            husk.idle = None;
            return Some(husk);
        }
        None
    }

    /// Builds a husk on the spot.
    ///
    /// # Errors
    /// As [`Launcher::build`].
    pub async fn build(
        &self,
        golden: Arc<Image>,
        slot: OwnedSemaphorePermit,
        timings: &mut Timings,
    ) -> Result<Husk, LaunchError> {
        let name = Name::internal('h').map_err(|e| LaunchError::Entropy(e.to_string()))?;
        let plan = Plan {
            name,
            template: self.template.clone(),
            begin: Begin::Image(Arc::clone(&golden)),
            trial: false,
            slot,
        };
        let built = self.launcher.build(plan, timings).await?;
        Ok(Husk {
            built,
            golden,
            idle: None,
        })
    }

    /// A husk became a sandbox: whatever was wrong with others is over.
    pub fn claimed(&self) {
        self.setbacks.store(0, Relaxed);
        self.faults.store(0, Relaxed);
        self.wake.notify_one();
    }

    /// A husk could not be built on the spot, or did not become a sandbox. After some of these
    /// without a success, sandboxes of this template boot for a while.
    pub fn failed(&self) {
        self.wake.notify_one();
        if self.faults.fetch_add(1, Relaxed) + 1 != MAX_FAULTS {
            return;
        }
        tracing::warn!(
            template = self.template.name,
            failures = MAX_FAULTS,
            rest = ?REST,
            "copies do not become sandboxes: they boot for a while"
        );
        if let Some(golden) = self.ready() {
            let until = Instant::now() + REST;
            self.state.send_replace(State::Rests(golden, until));
        }
        self.lock().clear();
    }

    /// After a rest: the first copy that fails makes it another one.
    fn try_again(&self, golden: &Arc<Image>) {
        tracing::info!(template = self.template.name, "copies are tried again");
        self.faults.store(MAX_FAULTS - 1, Relaxed);
        self.state.send_replace(State::Ready(Arc::clone(golden)));
        self.wake.notify_one();
    }

    /// Makes the golden machine and keeps the pool full until the server closes.
    async fn keep(self: Arc<Self>, shared: Shared, mut closing: watch::Receiver<bool>) {
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => {}
            () = self.work(&shared) => {}
        }
        self.lock().clear();
    }

    async fn work(self: &Arc<Self>, shared: &Shared) {
        match self.make_golden(shared).await {
            Ok(golden) => self.state.send_replace(State::Ready(golden)),
            Err(error) => {
                let error = anyhow::Error::new(error);
                let template = &self.template.name;
                tracing::warn!(
                    template,
                    error = format!("{error:#}"),
                    "no copies: sandboxes boot"
                );
                self.state.send_replace(State::Boots);
                return;
            }
        };
        loop {
            if let Some(golden) = self.ready() {
                self.fill(&golden, shared).await;
            }
            self.wake.notified().await;
        }
    }

    async fn make_golden(&self, shared: &Shared) -> Result<Arc<Image>, GoldenError> {
        let gone = |_| GoldenError::GivenUp;
        let _turn = shared.turn.acquire().await.map_err(gone)?;
        golden::make(&self.launcher, &self.template, &shared.makers).await
    }

    fn ready(&self) -> Option<Arc<Image>> {
        match &*self.state.borrow() {
            State::Ready(golden) => Some(Arc::clone(golden)),
            _ => None,
        }
    }

    /// Builds what is missing, as far as there are slots and memory.
    async fn fill(self: &Arc<Self>, golden: &Arc<Image>, shared: &Shared) {
        while self.missing() && self.ready().is_some() {
            let setbacks = self.setbacks.load(Relaxed);
            if setbacks > 0 {
                sleep(FIRST_WAIT * (1 << (setbacks - 1).min(MAX_DOUBLINGS))).await;
            }
            let Ok(_turn) = shared.turn.acquire().await else {
                return;
            };
            if shared.room.check().is_err() {
                return;
            }
            let Ok(slot) = Arc::clone(&shared.slots).try_acquire_owned() else {
                return;
            };
            let idle = Idle::new(&shared.idle);
            let mut timings = Timings::default();
            let built = self.build(Arc::clone(golden), slot, &mut timings).await;
            match built {
                Ok(husk) => self.put(husk, idle),
                Err(error) => {
                    self.setbacks.fetch_add(1, Relaxed);
                    tracing::warn!(template = self.template.name, %error, "no copy made ahead");
                }
            }
        }
    }

    /// Whether there are too few husks, after the dead ones are taken out.
    fn missing(&self) -> bool {
        let mut husks = self.lock();
        let before = husks.len();
        husks.retain(|husk| !husk.built.machine.has_ended());
        let died = before - husks.len();
        if died > 0 {
            let (template, ready) = (&self.template.name, husks.len());
            tracing::warn!(
                template,
                died,
                ready,
                "copies ended before anybody took them"
            );
            let died = u32::try_from(died).unwrap_or(u32::MAX);
            self.setbacks.fetch_add(died, Relaxed);
        }
        husks.len() < self.size
    }

    fn put(self: &Arc<Self>, mut husk: Husk, idle: Idle) {
        tracing::debug!(template = self.template.name, machine = %husk.built.machine.name(), "ready");
        husk.idle = Some(idle);
        let (ended, pool) = (husk.built.machine.follow(), Arc::downgrade(self));
        self.lock().push(husk);
        tokio::spawn(async move {
            ended.await;
            if let Some(pool) = pool.upgrade() {
                pool.wake.notify_one();
            }
        });
    }
}
