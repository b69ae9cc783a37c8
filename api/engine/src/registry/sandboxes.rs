//! All sandboxes of a server, and what they share.

use crate::admission::HostAdmission;
use crate::disk_reserve::DiskReserve;
use crate::environment::IdentityVariables;
use crate::error::EngineError;
use crate::facts::SandboxOrigin;
use crate::launch::identity::since_1970;
use crate::launch::launcher::MachineLauncher;
use crate::metrics::{EngineGauges, EngineMetrics};
use crate::network::NetworkService;
use crate::options::EngineOptions;
use crate::pool::warm_pools::WarmPools;
use crate::quota::{Accounts, StoreLimits};
use crate::registry::counted::CountedTable;
use crate::registry::entry::TableEntry;
use crate::registry::recover::{count_stored, paused_ones};
use crate::store::snapshots::SnapshotIndex;
use crate::store::vault::ImageVault;
use crate::template::{CatalogError, Template, TemplateCatalog};
use snapshot_format::BaseImage;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock, Semaphore, watch};
use tokio::time::{sleep, timeout};

/// How long a creation waits for a slot that an ended sandbox is about to give back.
const SLOT_WAIT: Duration = Duration::from_secs(2);
/// How long one warm VM's end may take before another one is ended.
const ROOM_AGAIN: Duration = Duration::from_millis(250);

/// Why a sandbox ended, for the log.
#[derive(Clone, Debug)]
pub enum EndReason {
    /// A client asked for it.
    Killed,
    /// Its time was over.
    Deadline,
    /// The server is shutting down.
    Shutdown,
    /// The machine ended by itself: how.
    Ended(String),
}

impl EndReason {
    /// Logs it.
    pub(super) fn note(&self, id: &str) {
        match self {
            Self::Ended(how) => tracing::warn!(sandbox_id = id, how, "sandbox ended by itself"),
            Self::Killed => tracing::info!(sandbox_id = id, "sandbox killed"),
            Self::Deadline => tracing::info!(sandbox_id = id, "sandbox's time is over"),
            Self::Shutdown => tracing::info!(sandbox_id = id, "sandbox ends with the server"),
        }
    }
}

/// All sandboxes.
#[derive(Debug)]
pub struct SandboxRegistry {
    pub(super) table: Mutex<CountedTable<TableEntry>>,
    pub(super) slots: Arc<Semaphore>,
    pub(super) admission: Arc<HostAdmission>,
    pub(super) max: usize,
    /// The most in the store.
    pub(super) store_limits: StoreLimits,
    pub(super) accounts: Accounts,
    /// Most checkpoints of one sandbox.
    pub(super) max_checkpoints: usize,
    pub(super) launcher: MachineLauncher,
    pub(super) network: Arc<NetworkService>,
    pub(super) pools: WarmPools,
    pub(super) templates: TemplateCatalog,
    pub(super) variables: IdentityVariables,
    /// How the templates' images looked when they were added, by the templates' names.
    pub(super) images: Mutex<BTreeMap<String, BaseImage>>,
    pub(super) vault: Arc<ImageVault>,
    /// Work with the vault in the background holds it for reading.
    pub(super) background_jobs: Arc<RwLock<()>>,
    /// Held from the end of closing on: no job begins after it.
    closed: OnceLock<OwnedRwLockWriteGuard<()>>,
    pub(super) snapshots: SnapshotIndex,
    /// The next sandbox's generation.
    pub(super) generation: AtomicU64,
    pub(super) closing: watch::Sender<bool>,
    pub(super) metrics: Arc<EngineMetrics>,
}

impl SandboxRegistry {
    /// A table with the paused sandboxes of `vault`, and machines in the making for it. Must be
    /// called on the runtime.
    ///
    /// # Errors
    /// [`CatalogError`] when two templates share a name.
    pub fn new(
        launcher: MachineLauncher,
        vault: ImageVault,
        options: EngineOptions,
    ) -> Result<Arc<Self>, CatalogError> {
        let max = options.max_sandboxes;
        let slots = Arc::new(Semaphore::new(max));
        let closing = watch::Sender::new(false);
        let disk = DiskReserve::new(&launcher.layer_dir, options.disk_reserve_mb);
        let disk = Arc::new(disk);
        disk.watch();
        let admission = Arc::new(HostAdmission::new(options.min_memory_mb, disk));
        let shared = (Arc::clone(&slots), Arc::clone(&admission));
        let pools = WarmPools::new(&launcher, shared, options.pool_size, closing.subscribe());
        let accounts = Accounts::new(options.owners);
        let paused = paused_ones(&vault, &accounts);
        let snapshots = SnapshotIndex::new(&vault, |owner| accounts.now(owner));
        count_stored(&vault, &accounts, (&paused, &snapshots));
        let metrics = Arc::<EngineMetrics>::default();
        let network = NetworkService::new(
            options.network,
            Arc::clone(&launcher.groups),
            Arc::clone(&metrics),
        );
        let registry = Arc::new(Self {
            table: Mutex::new(paused),
            slots,
            admission,
            max,
            store_limits: options.store,
            accounts,
            max_checkpoints: options.max_checkpoints,
            launcher,
            network,
            pools,
            templates: TemplateCatalog::default(),
            variables: options.variables,
            images: Mutex::default(),
            snapshots,
            vault: Arc::new(vault),
            background_jobs: Arc::default(),
            closed: OnceLock::new(),
            // Seconds above a count: no number comes again after a restart.
            generation: AtomicU64::new(since_1970().as_secs() << 24),
            closing,
            metrics,
        });
        for template in options.templates {
            registry.add_template(template)?;
        }
        Ok(registry)
    }

    /// What has been counted, and what is true now, as OpenMetrics text.
    ///
    /// # Errors
    /// When it does not encode.
    pub fn metrics_text(&self) -> Result<String, std::fmt::Error> {
        let views = self.all();
        let paused = views.iter().filter(|view| view.paused.is_some()).count();
        self.metrics.text(EngineGauges {
            running: views.len() - paused,
            paused,
            warm_vms: self.pools.idle(),
            in_use: self.in_use(),
            max_sandboxes: self.max,
        })
    }

    /// The template whose kernel and image a sandbox has.
    pub(super) fn template_of(&self, origin: &SandboxOrigin) -> Result<Arc<Template>, EngineError> {
        let name = &origin.base;
        self.templates.get(name).ok_or_else(|| {
            EngineError::ResumeFailed(format!("Its template {name:?} is not configured any more"))
        })
    }

    /// A slot, at once or as soon as an ended sandbox or a warm VM gives one back.
    pub(super) async fn slot(&self) -> Result<OwnedSemaphorePermit, EngineError> {
        let full = || EngineError::TooManySandboxes { max: self.max };
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        if self.alive() > self.max {
            return Err(full());
        }
        let slot = Arc::clone(&self.slots).acquire_owned();
        let made_room = async {
            // More than once: a warm VM may have been in the making.
            loop {
                self.pools.make_room();
                sleep(ROOM_AGAIN).await;
            }
        };
        tokio::select! {
            biased;
            slot = timeout(SLOT_WAIT, slot) => slot.map_err(|_| full())?.map_err(|_| full()),
            () = made_room => Err(full()),
        }
    }

    /// Ends everything and waits until every process is reaped, at most `bound`. False if some
    /// were still there then.
    pub async fn close(&self, bound: Duration) -> bool {
        {
            // Under the lock, so that no creation publishes after the list is taken.
            let _table = self.table();
            self.closing.send_replace(true);
        }
        for sandbox in self.running() {
            self.end(&sandbox, &EndReason::Shutdown);
        }
        let all = u32::try_from(self.max).unwrap_or(u32::MAX);
        let gone = async {
            let _ = self.slots.acquire_many(all).await;
            self.pools.closed().await;
            // For good: a sandbox's last collection comes after its place is free.
            let _ = self
                .closed
                .set(Arc::clone(&self.background_jobs).write_owned().await);
        };
        timeout(bound, gone).await.is_ok()
    }

    /// The most sandboxes at one time.
    #[must_use]
    pub const fn max_sandboxes(&self) -> usize {
        self.max
    }

    /// The most checkpoints of one sandbox.
    #[must_use]
    pub const fn max_checkpoints(&self) -> usize {
        self.max_checkpoints
    }

    /// How many sandboxes exist in some way: being made, running, or being torn down.
    #[must_use]
    pub fn in_use(&self) -> usize {
        (self.max - self.slots.available_permits()).saturating_sub(self.pools.idle())
    }
}
