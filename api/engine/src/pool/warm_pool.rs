//! The warm VMs of one template.

use crate::admission::HostAdmission;
use crate::error::chain;
use crate::image::machine_image::MachineImage;
use crate::launch::error::LaunchError;
use crate::launch::launcher::MachineLauncher;
use crate::launch::plan::{BuiltMachine, LaunchPlan};
use crate::machine::name::MachineName;
use crate::pool::template_vm;
use crate::pool::template_vm::TemplateVmError;
use crate::restore_point::BootSource;
use crate::template::Template;
use crate::timings::StepTimings;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

/// So many clones in a row that fail when they are claimed make an end of cloning, for a while.
const MAX_FAULTS: u32 = 3;
/// How long sandboxes boot then. It may have been want of memory, which passes; a template whose
/// clones are bad costs one creation some time as often as this.
const REST: Duration = Duration::from_secs(60);
/// The wait after the first warm VM that died or could not be built; it doubles up to 51 s.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_DOUBLINGS: u32 = 9;

/// A machine that has never run, ready to be somebody's.
#[derive(Debug)]
pub struct WarmVm {
    /// The process, parked, and our end of its link.
    pub built: BuiltMachine,
    /// What it is a clone of.
    pub template_vm: Arc<MachineImage>,
    /// While it waits in the pool.
    idle: Option<IdleSlot>,
}

/// Counts a slot that is not used by a sandbox.
#[derive(Debug)]
struct IdleSlot(Arc<AtomicUsize>);

impl IdleSlot {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for IdleSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[derive(Clone, Debug)]
enum PoolState {
    Building,
    Ready(Arc<MachineImage>),
    /// Clones have failed: not before then.
    Rests(Arc<MachineImage>, Instant),
    /// There is nothing to clone.
    Boots,
}

/// What all keepers share.
#[derive(Clone, Debug)]
pub(super) struct PoolResources {
    /// What every machine counts for.
    pub(super) slots: Arc<Semaphore>,
    pub(super) admission: Arc<HostAdmission>,
    /// One permit per machine that is made for a template VM.
    pub(super) makers: Arc<Semaphore>,
    /// Held by whoever makes a machine ahead.
    pub(super) turn: Arc<Semaphore>,
    /// Slots that warm VMs hold.
    pub(super) idle: Arc<AtomicUsize>,
}

/// The pool of one template.
#[derive(Debug)]
pub struct WarmPool {
    template: Arc<Template>,
    launcher: MachineLauncher,
    size: usize,
    state: watch::Sender<PoolState>,
    warm_vms: Mutex<Vec<WarmVm>>,
    wake: Notify,
    /// True once its template is there no more.
    retired: watch::Sender<bool>,
    /// Warm VMs that died or could not be built, since the last claim that succeeded.
    setbacks: AtomicU32,
    /// Claims that failed, since the last that succeeded.
    faults: AtomicU32,
}

impl WarmPool {
    /// An empty pool, which [`WarmPool::keep`] fills.
    pub(super) fn new(template: Arc<Template>, launcher: MachineLauncher, size: usize) -> Self {
        Self {
            template,
            launcher,
            size,
            state: watch::Sender::new(PoolState::Building),
            warm_vms: Mutex::default(),
            wake: Notify::new(),
            retired: watch::Sender::new(false),
            setbacks: AtomicU32::new(0),
            faults: AtomicU32::new(0),
        }
    }

    /// Nothing is made for it any more.
    pub(super) fn retire(&self) {
        self.retired.send_replace(true);
        self.state.send_replace(PoolState::Boots);
        self.lock().clear();
    }

    /// Ends one warm VM; false if there is none.
    pub(super) fn drop_one(&self) -> bool {
        self.lock().pop().is_some()
    }

    /// Tells the keeper to look again.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<WarmVm>> {
        // Nothing panics while it holds the lock.
        self.warm_vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The template VM, waiting at most `bound` for it; `None`: boot instead.
    pub async fn template_vm(&self, bound: Duration) -> Option<Arc<MachineImage>> {
        let mut state = self.state.subscribe();
        let decided = state.wait_for(|state| !matches!(state, PoolState::Building));
        match timeout(bound, decided)
            .await
            .map(|state| state.map(|s| s.clone()))
        {
            Ok(Ok(PoolState::Ready(template_vm))) => Some(template_vm),
            Ok(Ok(PoolState::Rests(template_vm, until))) if Instant::now() >= until => {
                self.try_again(&template_vm);
                Some(template_vm)
            }
            Ok(Ok(_)) => None,
            _ => {
                tracing::warn!(
                    template = self.template.name,
                    ?bound,
                    "not ready to be cloned"
                );
                None
            }
        }
    }

    /// Whether its clones are of this very template.
    pub(super) fn is_of(&self, template: &Arc<Template>) -> bool {
        Arc::ptr_eq(&self.template, template)
    }

    /// The template's name.
    #[must_use]
    pub fn template_name(&self) -> &str {
        &self.template.name
    }

    /// A warm VM that is ready, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<WarmVm> {
        let mut warm_vms = self.lock();
        while let Some(mut warm_vm) = warm_vms.pop() {
            if warm_vm.built.machine.has_ended() {
                self.setbacks.fetch_add(1, Relaxed);
                continue;
            }
            warm_vm.idle = None;
            return Some(warm_vm);
        }
        None
    }

    /// Builds a warm VM on the spot.
    ///
    /// # Errors
    /// As [`MachineLauncher::build`].
    pub async fn build(
        &self,
        template_vm: Arc<MachineImage>,
        slot: OwnedSemaphorePermit,
        timings: &mut StepTimings,
    ) -> Result<WarmVm, LaunchError> {
        let name = MachineName::internal('h').map_err(|e| LaunchError::Entropy(e.to_string()))?;
        let plan = LaunchPlan {
            name,
            template: Arc::clone(&self.template),
            source: BootSource::Image(Arc::clone(&template_vm)),
            trial: false,
            slot,
        };
        let built = self.launcher.build(plan, timings).await?;
        Ok(WarmVm {
            built,
            template_vm,
            idle: None,
        })
    }

    /// A warm VM became a sandbox: whatever was wrong with others is over.
    pub fn claimed(&self) {
        self.setbacks.store(0, Relaxed);
        self.faults.store(0, Relaxed);
        self.wake.notify_one();
    }

    /// A warm VM could not be built on the spot, or did not become a sandbox. After some of these
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
            "clones do not become sandboxes: they boot for a while"
        );
        if let Some(template_vm) = self.ready() {
            let until = Instant::now() + REST;
            self.state
                .send_replace(PoolState::Rests(template_vm, until));
        }
        self.lock().clear();
    }

    /// After a rest: the first clone that fails makes it another one.
    fn try_again(&self, template_vm: &Arc<MachineImage>) {
        tracing::info!(template = self.template.name, "clones are tried again");
        self.faults.store(MAX_FAULTS - 1, Relaxed);
        self.state
            .send_replace(PoolState::Ready(Arc::clone(template_vm)));
        self.wake.notify_one();
    }

    /// Makes the template VM and keeps the pool full until the server closes.
    pub(super) async fn keep(
        self: Arc<Self>,
        shared: PoolResources,
        mut closing: watch::Receiver<bool>,
    ) {
        let mut retired = self.retired.subscribe();
        tokio::select! {
            // An end comes before more work.
            biased;
            _ = closing.wait_for(|closing| *closing) => {}
            _ = retired.wait_for(|retired| *retired) => {}
            () = self.work(&shared) => {}
        }
        self.lock().clear();
    }

    async fn work(self: &Arc<Self>, shared: &PoolResources) {
        match self.make_template_vm(shared).await {
            Ok(template_vm) => self.state.send_replace(PoolState::Ready(template_vm)),
            Err(error) => {
                let (template, error) = (&self.template.name, chain(&error));
                tracing::warn!(template, error, "no clones: sandboxes boot");
                self.state.send_replace(PoolState::Boots);
                return;
            }
        };
        loop {
            if let Some(template_vm) = self.ready() {
                self.fill(&template_vm, shared).await;
            }
            self.wake.notified().await;
        }
    }

    async fn make_template_vm(
        &self,
        shared: &PoolResources,
    ) -> Result<Arc<MachineImage>, TemplateVmError> {
        let gone = |_| TemplateVmError::GivenUp;
        let _turn = shared.turn.acquire().await.map_err(gone)?;
        template_vm::make(&self.launcher, &self.template, &shared.makers).await
    }

    fn ready(&self) -> Option<Arc<MachineImage>> {
        match &*self.state.borrow() {
            PoolState::Ready(template_vm) => Some(Arc::clone(template_vm)),
            _ => None,
        }
    }

    /// Builds what is missing, as far as there are slots and memory.
    async fn fill(self: &Arc<Self>, template_vm: &Arc<MachineImage>, shared: &PoolResources) {
        while self.missing() && self.ready().is_some() {
            let setbacks = self.setbacks.load(Relaxed);
            if setbacks > 0 {
                sleep(FIRST_WAIT * (1 << (setbacks - 1).min(MAX_DOUBLINGS))).await;
            }
            let Ok(_turn) = shared.turn.acquire().await else {
                return;
            };
            if shared.admission.check().is_err() {
                return;
            }
            let Ok(slot) = Arc::clone(&shared.slots).try_acquire_owned() else {
                return;
            };
            let idle = IdleSlot::new(&shared.idle);
            let mut timings = StepTimings::default();
            let built = self
                .build(Arc::clone(template_vm), slot, &mut timings)
                .await;
            match built {
                Ok(warm_vm) => self.put(warm_vm, idle),
                Err(error) => {
                    self.setbacks.fetch_add(1, Relaxed);
                    tracing::warn!(template = self.template.name, %error, "no clone made ahead");
                }
            }
        }
    }

    /// Whether there are too few warm VMs, after the dead ones are taken out.
    fn missing(&self) -> bool {
        let mut warm_vms = self.lock();
        let before = warm_vms.len();
        warm_vms.retain(|warm_vm| !warm_vm.built.machine.has_ended());
        let died = before - warm_vms.len();
        if died > 0 {
            let (template, ready) = (&self.template.name, warm_vms.len());
            tracing::warn!(
                template,
                died,
                ready,
                "clones ended before anybody took them"
            );
            let died = u32::try_from(died).unwrap_or(u32::MAX);
            self.setbacks.fetch_add(died, Relaxed);
        }
        warm_vms.len() < self.size
    }

    fn put(self: &Arc<Self>, mut warm_vm: WarmVm, idle: IdleSlot) {
        let machine = warm_vm.built.machine.name();
        tracing::debug!(template = self.template.name, %machine, "ready");
        warm_vm.idle = Some(idle);
        let (ended, pool) = (warm_vm.built.machine.follow(), Arc::downgrade(self));
        self.lock().push(warm_vm);
        tokio::spawn(async move {
            ended.await;
            if let Some(pool) = pool.upgrade() {
                pool.wake.notify_one();
            }
        });
    }
}
