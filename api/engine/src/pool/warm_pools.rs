//! The warm pools of all templates.

use crate::admission::HostAdmission;
use crate::launch::launcher::MachineLauncher;
use crate::pool::warm_pool::{PoolResources, WarmPool};
use crate::template::Template;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{Semaphore, watch};

/// Most machines that are made for template VMs at one time; they take turns, so it is never
/// reached.
const MAKERS: u32 = 1 << 16;

/// The pools of all templates that are cloned.
#[derive(Debug)]
pub struct WarmPools {
    pools: RwLock<BTreeMap<String, Arc<WarmPool>>>,
    launcher: MachineLauncher,
    resources: PoolResources,
    closing: watch::Receiver<bool>,
    /// Warm VMs of each template; `None`: nothing is cloned.
    size: Option<usize>,
}

impl WarmPools {
    /// No pools yet. Warm VMs count under `slots`; `size` of each template are kept, or none is
    /// cloned.
    #[must_use]
    pub fn new(
        launcher: &MachineLauncher,
        (slots, admission): (Arc<Semaphore>, Arc<HostAdmission>),
        size: Option<usize>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self {
            pools: RwLock::default(),
            launcher: launcher.clone(),
            resources: PoolResources {
                slots,
                admission,
                makers: Arc::new(Semaphore::new(MAKERS as usize)),
                turn: Arc::new(Semaphore::new(1)),
                idle: Arc::<AtomicUsize>::default(),
            },
            closing,
            size,
        }
    }

    /// Begins to make a template's VM and warm VMs in the background, until the server closes or
    /// the template is removed. Must be called on the runtime.
    pub fn add(&self, template: &Arc<Template>) {
        let Some(size) = self.size else { return };
        let pool = Arc::new(WarmPool::new(
            Arc::clone(template),
            self.launcher.clone(),
            size,
        ));
        let keeper = Arc::clone(&pool).keep(self.resources.clone(), self.closing.clone());
        tokio::spawn(keeper);
        let replaced = self.write().insert(template.name.clone(), pool);
        if let Some(replaced) = replaced {
            replaced.retire();
        }
    }

    /// Ends a template's warm VMs, and whatever is being made for it.
    pub fn remove(&self, template: &str) {
        let pool = self.write().remove(template);
        if let Some(pool) = pool {
            pool.retire();
        }
    }

    /// The pool of a template; `None` when sandboxes are not cloned, or when it is another template
    /// that has this name now.
    #[must_use]
    pub fn of(&self, template: &Arc<Template>) -> Option<Arc<WarmPool>> {
        let pools = self.read();
        let pool = pools.get(&template.name)?;
        pool.is_of(template).then(|| Arc::clone(pool))
    }

    /// Ends one warm VM of any template, so that its slot becomes free. False if there is none.
    pub fn make_room(&self) -> bool {
        // Dropping it ends the process.
        self.read().values().any(|pool| pool.drop_one())
    }

    /// Tells the keepers that there may be a free slot.
    pub fn wake(&self) {
        for pool in self.read().values() {
            pool.wake();
        }
    }

    /// How many slots warm VMs hold.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.resources.idle.load(Relaxed)
    }

    /// Completes when no template VM is being made. Warm VMs give back slots.
    pub async fn closed(&self) {
        let _ = self.resources.makers.acquire_many(MAKERS).await;
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<WarmPool>>> {
        // Nothing panics while it holds the lock.
        self.pools.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<WarmPool>>> {
        self.pools.write().unwrap_or_else(PoisonError::into_inner)
    }
}
