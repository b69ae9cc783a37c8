//! The table of sandboxes and the only owner of their lives.
//!
//! ```text
//! Creating ──> Running ──> Gone        and between Running and Running: Paused (`pause`)
//!     └──(dropped, failed)──^
//! ```
//!
//! A sandbox leaves the table first, then its connections are cut, then its machine is stopped; the
//! slot it counts for is given back only when its process is reaped, so that `max_sandboxes` bounds
//! what really exists. Machines that wait for a sandbox ([`crate::pool`]) count as well.

mod batch;
mod bring_up;
mod capture;
mod checkpoint;
mod fork;
mod guard;
mod in_place;
mod pause;
mod recover;
mod snapshot;
mod table;
mod unreadable;

pub use batch::Place;
pub use bring_up::Start;
pub use snapshot::Snapshot;
pub use table::{Door, Seen};

use crate::checkpoints::Tree;
use crate::config::{Settings, Template};
use crate::error::{ApiError, chain};
use crate::identity::since_1970;
use crate::ids;
use crate::image::Shape;
use crate::launcher::{Launched, Launcher, Timings};
use crate::machine::Machine;
use crate::pool::Pools;
use crate::room::Room;
use crate::sandbox::{Deadline, Facts, Lifecycle, MachineBody, Origin, Sandbox};
use crate::vault::{self, Vault};
use jiff::Timestamp;
use snapshot_format::BaseImage;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock, Semaphore, watch};
use tokio::time::{sleep, timeout};

use bring_up::{From, Up};
pub(crate) use guard::Handover;
use guard::guard;
use recover::paused_ones;
use snapshot::Snapshots;
use table::Entry;

/// How long a creation waits for a slot that an ended sandbox is about to give back.
const SLOT_WAIT: Duration = Duration::from_secs(2);
/// How long one husk's end may take before another one is ended.
const ROOM_AGAIN: Duration = Duration::from_millis(250);

/// What a creation asks for, already checked.
#[derive(Clone, Debug)]
pub struct NewSandbox {
    /// From which template.
    pub template: Template,
    /// Time to live, and what happens then.
    pub lifecycle: Lifecycle,
    /// The client's labels.
    pub metadata: BTreeMap<String, String>,
    /// The client's environment.
    pub env: BTreeMap<String, String>,
    /// Whether the data plane asks for a token.
    pub secure: bool,
    /// Where it goes on; `None`: at its template's beginning.
    pub start: Option<Arc<Start>>,
}

/// Why a sandbox ended, for the log.
#[derive(Clone, Debug)]
pub enum Reason {
    /// A client asked for it.
    Killed,
    /// Its time was over.
    Deadline,
    /// The server is shutting down.
    Shutdown,
    /// The machine ended by itself: how.
    Ended(String),
}

/// All sandboxes.
#[derive(Debug)]
pub struct Registry {
    table: Mutex<HashMap<String, Entry>>,
    slots: Arc<Semaphore>,
    room: Arc<Room>,
    max: usize,
    /// Most checkpoints of one sandbox.
    max_checkpoints: usize,
    launcher: Launcher,
    pools: Pools,
    /// By name.
    templates: BTreeMap<String, Template>,
    /// How the templates' images looked when the server started.
    bases: BTreeMap<String, BaseImage>,
    vault: Arc<Vault>,
    /// Work with the vault in the background holds it for reading.
    chores: Arc<RwLock<()>>,
    /// Held from the end of closing on: no chore begins after it.
    closed: OnceLock<OwnedRwLockWriteGuard<()>>,
    snapshots: Snapshots,
    /// The next sandbox's generation.
    generation: AtomicU64,
    closing: watch::Sender<bool>,
}

impl Registry {
    /// A table with the paused sandboxes of `vault`, and machines in the making for it. Must be
    /// called on the runtime.
    #[must_use]
    pub fn new(launcher: Launcher, vault: Vault, settings: &Settings) -> Arc<Self> {
        let max = settings.limits.max_sandboxes;
        let slots = Arc::new(Semaphore::new(max));
        let closing = watch::Sender::new(false);
        let room = Arc::new(Room::new(settings.limits.min_memory_mb));
        let given = (Arc::clone(&slots), Arc::clone(&room));
        let pools = Pools::open(&launcher, settings, given, &closing.subscribe());
        let paused = paused_ones(&vault);
        Arc::new(Self {
            table: Mutex::new(paused),
            slots,
            room,
            max,
            max_checkpoints: settings.limits.max_checkpoints,
            launcher,
            pools,
            templates: settings.templates.clone(),
            bases: settings.templates.values().filter_map(base).collect(),
            snapshots: Snapshots::new(&vault),
            vault: Arc::new(vault),
            chores: Arc::default(),
            closed: OnceLock::new(),
            // Seconds above a count: no number comes again after a restart.
            generation: AtomicU64::new(since_1970().as_secs() << 24),
            closing,
        })
    }

    /// Makes a sandbox. Answers only when its agent has taken its identity: no tenant code can run
    /// before. Cancel-safe: a dropped creation leaves nothing.
    ///
    /// # Errors
    /// [`ApiError::TooManySandboxes`], [`ApiError::NoMemory`], [`ApiError::ShuttingDown`],
    /// [`ApiError::StartFailed`].
    pub async fn create(
        self: &Arc<Self>,
        new: NewSandbox,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let id = ids::sandbox_id().map_err(|error| no_entropy(&error))?;
        let reservation = self.reserve(id)?;
        let place = Place::new(reservation);
        self.create_in(place, new, timings).await
    }

    /// The same in a place that was set aside for it.
    ///
    /// # Errors
    /// As [`Registry::create`].
    pub async fn create_in(
        self: &Arc<Self>,
        place: Place,
        new: NewSandbox,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(ApiError::ShuttingDown),
            made = self.make(place, new, timings) => made,
        }
    }

    async fn make(
        self: &Arc<Self>,
        place: Place,
        new: NewSandbox,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        self.room.check()?;
        // Until the end: it is the entry in the table.
        let (reservation, given) = place.open();
        let id = reservation.id.clone();
        let access_token = new
            .secure
            .then(ids::token)
            .transpose()
            .map_err(|error| no_entropy(&error))?;
        let shown = new.start.as_ref().map(|start| &start.origin);
        let shown = shown.map_or_else(|| Origin::of(&new.template), Clone::clone);
        let env = environment(&id, &shown.template_id, new.env);
        let from = From {
            template: &new.template,
            start: new.start.as_deref(),
        };
        let Up { launched, mode } = self.bring_up(&id, from, &env, given, timings).await?;
        let facts = Facts {
            id: id.clone(),
            origin: Origin {
                disk_size_mb: launched.disk_size >> 20,
                ..shown
            },
            metadata: new.metadata,
            env,
            access_token,
            default_user: new.template.default_user,
            default_workdir: new.template.default_workdir,
            started_at: Timestamp::now(),
            lifecycle: new.lifecycle,
        };
        let timeout = facts.lifecycle.timeout;
        let deadline = Deadline::after(timeout);
        let (sandbox, machine) = embody(Arc::new(facts), launched, deadline, Past::of(new.start));
        if let Some(start) = &sandbox.body.start {
            sandbox.processes.resume(&sandbox, &start.processes).await;
            timings.step("processes");
        }
        let name = machine.name().clone();
        self.publish(&sandbox, machine)?;
        tracing::info!(
            sandbox_id = id,
            machine = name.own(),
            template = sandbox.origin.template_id,
            mode,
            timing = timings.header(),
            "sandbox started"
        );
        Ok(sandbox)
    }

    /// The template whose kernel and image a sandbox has.
    fn template_of(&self, origin: &Origin) -> Result<Template, ApiError> {
        let name = &origin.base;
        self.templates.get(name).cloned().ok_or_else(|| {
            ApiError::ResumeFailed(format!("Its template {name:?} is not configured any more"))
        })
    }

    /// A slot, at once or as soon as an ended sandbox or a husk gives one back.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = || ApiError::TooManySandboxes { max: self.max };
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        if self.alive() > self.max {
            return Err(full());
        }
        let slot = Arc::clone(&self.slots).acquire_owned();
        let made_room = async {
            // More than once: a husk may have been in the making.
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

    /// Creating → Running, unless the server closes at this moment.
    fn publish(self: &Arc<Self>, sandbox: &Arc<Sandbox>, machine: Machine) -> Result<(), ApiError> {
        {
            let mut table = self.table();
            if *self.closing.borrow() {
                return Err(ApiError::ShuttingDown);
            }
            table.insert(sandbox.id.clone(), Entry::Running(Arc::clone(sandbox)));
        }
        tokio::spawn(guard(Arc::clone(self), Arc::clone(sandbox), machine));
        Ok(())
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
            self.end(&sandbox, &Reason::Shutdown);
        }
        let all = u32::try_from(self.max).unwrap_or(u32::MAX);
        let gone = async {
            let _ = self.slots.acquire_many(all).await;
            self.pools.closed().await;
            // For good: a sandbox's last sweep comes after its place is free.
            let _ = self
                .closed
                .set(Arc::clone(&self.chores).write_owned().await);
        };
        timeout(bound, gone).await.is_ok()
    }

    /// The most sandboxes at one time.
    #[must_use]
    pub const fn max_sandboxes(&self) -> usize {
        self.max
    }

    /// How many sandboxes exist in some way: being made, running, or being torn down.
    #[must_use]
    pub fn in_use(&self) -> usize {
        (self.max - self.slots.available_permits()).saturating_sub(self.pools.idle())
    }
}

/// Where a sandbox has been.
struct Past {
    /// Where it went on first.
    start: Option<Arc<Start>>,
    /// Its checkpoints.
    tree: Arc<Tree>,
}

impl Past {
    /// Of a new sandbox.
    fn of(start: Option<Arc<Start>>) -> Self {
        let tree = Arc::default();
        Self { start, tree }
    }
}

/// A sandbox out of its facts and a machine that has taken its identity.
fn embody(
    facts: Arc<Facts>,
    launched: Launched,
    deadline: Deadline,
    past: Past,
) -> (Arc<Sandbox>, Machine) {
    let Launched {
        machine,
        link,
        disk_size,
        basis,
    } = launched;
    let shape = Shape {
        vcpus: facts.origin.cpu_count,
        memory_mib: facts.origin.memory_mb,
        disk_size,
    };
    let sandbox = Sandbox {
        facts,
        link,
        processes: crate::envd::Processes::default(),
        deadline: watch::Sender::new(deadline),
        gone: watch::Sender::new(false),
        ended: OnceLock::new(),
        body: MachineBody {
            hand: machine.hand(),
            shape,
            basis,
            start: past.start,
            tree: past.tree,
            saving: Arc::default(),
            handover: Handover::default(),
        },
    };
    (Arc::new(sandbox), machine)
}

fn no_entropy(error: &std::io::Error) -> ApiError {
    ApiError::StartFailed(format!("No random bytes: {error}"))
}

/// What every process starts with: who and where it is, then what the creator asked for.
fn environment(
    id: &str,
    template: &str,
    asked: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let own = [
        ("E2B_SANDBOX", "true"),
        ("E2B_SANDBOX_ID", id),
        ("E2B_TEMPLATE_ID", template),
    ];
    let own = own
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(asked).collect()
}

/// How a template's image looks; `None`, and a word in the log, if there is none.
fn base(template: &Template) -> Option<(String, BaseImage)> {
    match vault::look(&template.name, &template.image) {
        Ok(look) => Some((template.name.clone(), look)),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(
                template = template.name,
                error,
                "sandboxes cannot be paused"
            );
            None
        }
    }
}
