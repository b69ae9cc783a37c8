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

mod pause;
mod table;

pub use table::{Door, Seen};

use crate::config::{Settings, Template};
use crate::error::ApiError;
use crate::ids;
use crate::image::{AgentLink, Image, Shape};
use crate::launcher::{Begin, Launched, Launcher, Plan, Timings};
use crate::link::{Identity, Link};
use crate::machine::{End, Machine};
use crate::name::Name;
use crate::pool::{Husk, Pool, Pools};
use crate::sandbox::{Deadline, Facts, Lifecycle, MachineBody, Origin, Sandbox};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use table::Entry;

/// How long a creation waits for a slot that an ended sandbox is about to give back.
const SLOT_WAIT: Duration = Duration::from_secs(2);
/// How long the agent may take to accept its identity.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);

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
    max: usize,
    launcher: Launcher,
    pools: Pools,
    /// By name.
    templates: BTreeMap<String, Template>,
    /// The next sandbox's generation.
    generation: AtomicU64,
    closing: watch::Sender<bool>,
}

/// A machine with its identity, and the place in the table that waits for it.
struct Up<'a> {
    launched: Launched,
    mode: &'static str,
    _reservation: Reservation<'a>,
}

/// Takes a `Creating` entry back when a creation fails or is dropped.
struct Reservation<'a> {
    registry: &'a Registry,
    id: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut table = self.registry.table();
        if matches!(table.get(&self.id), Some(Entry::Creating)) {
            table.remove(&self.id);
        }
    }
}

impl Registry {
    /// An empty table, and machines in the making for it. Must be called on the runtime.
    #[must_use]
    pub fn new(launcher: Launcher, settings: &Settings) -> Arc<Self> {
        let max = settings.limits.max_sandboxes;
        let slots = Arc::new(Semaphore::new(max));
        let closing = watch::Sender::new(false);
        let pools = Pools::open(&launcher, settings, &slots, &closing.subscribe());
        Arc::new(Self {
            table: Mutex::default(),
            slots,
            max,
            launcher,
            pools,
            templates: settings.templates.clone(),
            // Seconds above a count: no number comes again after a restart.
            generation: AtomicU64::new(since_1970().as_secs() << 24),
            closing,
        })
    }

    /// Makes a sandbox. Answers only when its agent has taken its identity: no tenant code can run
    /// before. Cancel-safe: a dropped creation leaves nothing.
    ///
    /// # Errors
    /// [`ApiError::TooManySandboxes`], [`ApiError::ShuttingDown`], [`ApiError::StartFailed`].
    pub async fn create(
        self: &Arc<Self>,
        new: NewSandbox,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(ApiError::ShuttingDown),
            made = self.make(new, timings) => made,
        }
    }

    async fn make(
        self: &Arc<Self>,
        new: NewSandbox,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let no_entropy = |e: std::io::Error| ApiError::StartFailed(format!("No random bytes: {e}"));
        let id = ids::sandbox_id().map_err(no_entropy)?;
        let access_token = new
            .secure
            .then(ids::token)
            .transpose()
            .map_err(no_entropy)?;
        let env = environment(&id, &new);
        let Up {
            launched,
            mode,
            _reservation,
        } = self.bring_up(&id, &new, &env, timings).await?;
        let facts = Facts {
            id: id.clone(),
            origin: Origin {
                template_id: new.template.name.clone(),
                alias: new.template.aliases.first().cloned(),
                cpu_count: new.template.cpu_count,
                memory_mb: new.template.memory_mb,
                disk_size_mb: launched.disk_size >> 20,
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
        let (sandbox, machine) = embody(Arc::new(facts), launched, timeout);
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

    /// A machine that has taken its identity: a copy if the template can be copied, else one that
    /// boots. A copy that fails costs time, not the creation.
    async fn bring_up(
        &self,
        id: &str,
        new: &NewSandbox,
        env: &BTreeMap<String, String>,
        timings: &mut Timings,
    ) -> Result<Up<'_>, ApiError> {
        if self.alive() >= self.max {
            return Err(ApiError::TooManySandboxes { max: self.max });
        }
        let bound = self.launcher.boot_timeout;
        let golden = match self.pools.of(&new.template) {
            Some(pool) => pool.golden(bound).await.map(|golden| (pool, golden)),
            None => None,
        };
        timings.step("wait");
        if let Some((pool, golden)) = golden {
            let (slot, husk) = match pool.take() {
                Some(husk) => (None, Some(husk)),
                None => (Some(self.slot().await?), None),
            };
            let _reservation = self.reserve(id);
            match self
                .copy(id, pool, (slot, husk, golden), env, timings)
                .await
            {
                Ok(launched) => {
                    let mode = "clone";
                    pool.claimed();
                    return Ok(Up {
                        launched,
                        mode,
                        _reservation,
                    });
                }
                Err(error) => {
                    let template = &new.template.name;
                    tracing::warn!(sandbox_id = id, template, error, "copy failed, booting");
                    pool.failed();
                    timings.step("failed");
                }
            }
        }
        if new.template.start_cmd.is_some() {
            let why = "Its template has a start_cmd, which only copies have running, and there is \
                       no machine to copy: the log says why";
            return Err(ApiError::StartFailed(why.into()));
        }
        let slot = self.slot().await?;
        let _reservation = self.reserve(id);
        let launched = self.boot(id, new, slot, env, timings).await;
        let launched = launched.map_err(|error| {
            tracing::error!(
                sandbox_id = id,
                template = new.template.name,
                error,
                "not started"
            );
            ApiError::StartFailed(error)
        })?;
        let mode = "boot";
        Ok(Up {
            launched,
            mode,
            _reservation,
        })
    }

    /// Claims a husk, or builds one and claims that.
    async fn copy(
        &self,
        id: &str,
        pool: &Pool,
        (slot, husk, golden): (Option<OwnedSemaphorePermit>, Option<Husk>, Arc<Image>),
        env: &BTreeMap<String, String>,
        timings: &mut Timings,
    ) -> Result<Launched, String> {
        let husk = match (husk, slot) {
            (Some(husk), _) => husk,
            (None, Some(slot)) => {
                let built = pool.build(golden, slot, timings).await;
                built.map_err(|error| error.to_string())?
            }
            (None, None) => return Err("There is neither a husk nor a slot".into()),
        };
        let (mut machine, stream) = (husk.built.machine, husk.built.stream);
        machine.name().give(id);
        machine.start().await;
        // The identity is on its way before the first instruction has run.
        let last_stream = match husk.golden.link {
            AgentLink::Kept { last_stream } => last_stream,
            AgentLink::Broken => return Err("A golden machine's link is not kept".into()),
        };
        let link = Link::resume(stream, last_stream);
        timings.step("claim");
        self.take_identity(id, &mut machine, &link, env).await?;
        timings.step("identity");
        Ok(Launched {
            machine,
            link,
            disk_size: husk.built.disk_size,
            basis: Some(Arc::clone(&husk.golden.basis)),
        })
    }

    async fn boot(
        &self,
        id: &str,
        new: &NewSandbox,
        slot: OwnedSemaphorePermit,
        env: &BTreeMap<String, String>,
        timings: &mut Timings,
    ) -> Result<Launched, String> {
        let plan = Plan {
            name: Name::new(id),
            template: new.template.clone(),
            begin: Begin::Boot,
            slot,
        };
        let launched = self.launcher.launch(plan, timings).await;
        let mut launched = launched.map_err(|error| error.to_string())?;
        let Launched { machine, link, .. } = &mut launched;
        self.take_identity(id, machine, link, env).await?;
        timings.step("identity");
        Ok(launched)
    }

    /// Makes the machine this sandbox, or ends it.
    async fn take_identity(
        &self,
        id: &str,
        machine: &mut Machine,
        link: &Link,
        env: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let generation = self.generation.fetch_add(1, Relaxed);
        let taken = tokio::select! {
            biased;
            end = machine.ended() => Err(ended_text(id, end.as_deref())),
            taken = identify(link, id, generation, env) => taken,
        };
        if taken.is_err() {
            machine.give_up(id).await;
        }
        taken
    }

    /// A slot, at once or as soon as an ended sandbox or a husk gives one back.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = || ApiError::TooManySandboxes { max: self.max };
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        if self.alive() >= self.max {
            return Err(full());
        }
        self.pools.make_room();
        match timeout(SLOT_WAIT, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            _ => Err(full()),
        }
    }

    fn reserve(&self, id: &str) -> Reservation<'_> {
        self.table().insert(id.to_owned(), Entry::Creating);
        Reservation {
            registry: self,
            id: id.to_owned(),
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
        };
        timeout(bound, gone).await.is_ok()
    }

    /// How many sandboxes exist in some way: being made, running, or being torn down.
    #[must_use]
    pub fn in_use(&self) -> usize {
        (self.max - self.slots.available_permits()).saturating_sub(self.pools.idle())
    }
}

/// A sandbox out of its facts and a machine that has taken its identity.
fn embody(facts: Arc<Facts>, launched: Launched, timeout: Duration) -> (Arc<Sandbox>, Machine) {
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
        deadline: watch::Sender::new(Deadline::after(timeout)),
        gone: watch::Sender::new(false),
        body: MachineBody {
            hand: machine.hand(),
            shape,
            basis,
            saving: Arc::default(),
        },
    };
    (Arc::new(sandbox), machine)
}

/// Lives as long as the machine: watches the clock and the machine, and sees the end through.
async fn guard(registry: Arc<Registry>, sandbox: Arc<Sandbox>, mut machine: Machine) {
    while let Some(event) = next(&sandbox, &mut machine).await {
        match event {
            Some(reason) => drop(registry.end(&sandbox, &reason)),
            None => registry.at_deadline(&sandbox).await,
        }
    }
    let end = machine.stop().await;
    registry.pools.wake();
    tracing::debug!(
        sandbox_id = sandbox.id,
        end = end.map(|e| e.to_string()),
        "machine is gone"
    );
}

/// What happens to a sandbox next: it ends by itself, or its deadline comes; `None`: it is gone.
async fn next(sandbox: &Sandbox, machine: &mut Machine) -> Option<Option<Reason>> {
    tokio::select! {
        biased;
        () = sandbox.gone() => None,
        end = machine.ended() => {
            Some(Some(Reason::Ended(ended_text(&sandbox.id, end.as_deref()))))
        }
        () = sandbox.link.closed() => {
            // Most often the machine is ending: its own word is better than ours.
            let end = timeout(Duration::from_secs(1), machine.ended()).await;
            let text = match end {
                Ok(end) => ended_text(&sandbox.id, end.as_deref()),
                Err(_) => "the link to the guest agent broke".to_owned(),
            };
            Some(Some(Reason::Ended(text)))
        }
        () = expired(sandbox) => Some(None),
    }
}

fn ended_text(id: &str, end: Option<&End>) -> String {
    let Some(end) = end else {
        return "its task was lost".to_owned();
    };
    end.log_console(id);
    end.to_string()
}

/// Completes at the deadline, however often it is moved.
async fn expired(sandbox: &Sandbox) {
    let mut deadline = sandbox.deadline.subscribe();
    loop {
        let at = deadline.borrow_and_update().instant;
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// What every process starts with: who and where it is, then what the creator asked for.
fn environment(id: &str, new: &NewSandbox) -> BTreeMap<String, String> {
    let own = [
        ("E2B_SANDBOX", "true"),
        ("E2B_SANDBOX_ID", id),
        ("E2B_TEMPLATE_ID", &new.template.name),
    ];
    let own = own
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(new.env.clone()).collect()
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Gives the guest its name, clock and entropy, and waits for its word that it has them.
async fn identify(
    link: &Link,
    id: &str,
    generation: u64,
    env: &BTreeMap<String, String>,
) -> Result<(), String> {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy).map_err(|e| format!("The host gave no random bytes: {e}"))?;
    let identity = Identity {
        unix_ns: u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX),
        hostname: id.to_owned(),
        generation,
        entropy,
        env: env.clone(),
    };
    match timeout(IDENTITY_TIMEOUT, link.set_identity(identity)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "The guest agent did not accept its identity: {error}"
        )),
        Err(_) => Err(format!(
            "The guest agent did not accept its identity within {} s",
            IDENTITY_TIMEOUT.as_secs()
        )),
    }
}
