//! From a creation that has been asked for to a machine that has taken its identity.

use super::Registry;
use super::guard::ended_text;
use super::table::Entry;
use crate::config::Template;
use crate::envd::KeptProcess;
use crate::error::ApiError;
use crate::identity::identify;
use crate::image::{AgentLink, Image};
use crate::launcher::{Begin, Launched, Plan, Timings};
use crate::link::Link;
use crate::machine::{LAST_WORD, Machine};
use crate::name::Name;
use crate::pool::{Husk, Pool};
use crate::sandbox::Origin;
use futures_util::FutureExt as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// How often a copy is tried before the sandbox boots.
const COPIES: usize = 2;

/// A machine with its identity.
pub(super) struct Up {
    pub(super) launched: Launched,
    /// How it came about, for the log.
    pub(super) mode: &'static str,
}

/// What a sandbox is to begin with.
#[derive(Clone, Copy)]
pub(super) struct From<'a> {
    /// Its kernel and image, and the pool of its copies.
    pub(super) template: &'a Template,
    /// Where it goes on; `None`: at the template's beginning.
    pub(super) start: Option<&'a Start>,
}

/// A moment of another sandbox, at which sandboxes go on.
#[derive(Debug)]
pub struct Start {
    /// The machine.
    pub begin: Begin,
    /// The processes that clients had started.
    pub processes: Vec<KeptProcess>,
    /// What the sandboxes are said to be made from.
    pub origin: Origin,
}

/// What was set aside for a machine before it is made.
#[derive(Debug)]
pub(super) enum Given {
    /// A copy that was made ahead.
    Husk(Husk),
    /// Room for one.
    Slot(OwnedSemaphorePermit),
}

/// What a copy is made from.
enum Source {
    /// A machine that was made ahead.
    Husk(Husk),
    /// Nothing yet: one is built on the spot.
    Slot(OwnedSemaphorePermit, Arc<Image>),
}

/// Takes a `Creating` entry back when a creation fails or is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    registry: Arc<Registry>,
    pub(super) id: String,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut table = self.registry.table();
        if matches!(table.get(&self.id), Some(Entry::Creating)) {
            table.remove(&self.id);
        }
    }
}

impl Registry {
    /// A machine that has taken its identity: a copy if the template can be copied, else one that
    /// boots. A copy that fails costs time, not the creation: another one is tried, then a boot.
    pub(super) async fn bring_up(
        &self,
        id: &str,
        from: From<'_>,
        env: &BTreeMap<String, String>,
        mut given: Option<Given>,
        timings: &mut Timings,
    ) -> Result<Up, ApiError> {
        if let Some(start) = from.start {
            let begin = (from.template, &start.begin);
            let launched = self.launch(id, begin, env, given, timings);
            let launched = launched.await?;
            let mode = "image";
            return Ok(Up { launched, mode });
        }
        let bound = self.launcher.boot_timeout;
        let golden = match self.pools.of(from.template) {
            Some(pool) => pool.golden(bound).await.map(|golden| (pool, golden)),
            None => None,
        };
        timings.step("wait");
        if let Some((pool, golden)) = golden {
            for _ in 0..COPIES {
                let given = given.take();
                match self
                    .copy_of(id, (pool, &golden), env, given, timings)
                    .await?
                {
                    Some(up) => return Ok(up),
                    None => timings.step("failed"),
                }
            }
        }
        if from.template.start_cmd.is_some() {
            let why = "Its template has a start_cmd, which only copies have running, and there is \
                       no machine to copy: the log says why";
            return Err(ApiError::StartFailed(why.into()));
        }
        let begin = (from.template, &Begin::Boot);
        let launched = self.launch(id, begin, env, given, timings);
        let launched = launched.await?;
        let mode = "boot";
        Ok(Up { launched, mode })
    }

    /// One attempt at a copy; `None`, and a word in the log, if it failed.
    async fn copy_of(
        &self,
        id: &str,
        (pool, golden): (&Pool, &Arc<Image>),
        env: &BTreeMap<String, String>,
        given: Option<Given>,
        timings: &mut Timings,
    ) -> Result<Option<Up>, ApiError> {
        let from = match given {
            Some(Given::Husk(husk)) => Source::Husk(husk),
            Some(Given::Slot(slot)) => Source::Slot(slot, Arc::clone(golden)),
            None => match pool.take() {
                Some(husk) => Source::Husk(husk),
                None => Source::Slot(self.slot().await?, Arc::clone(golden)),
            },
        };
        match self.copy(id, pool, from, env, timings).await {
            Ok(launched) => {
                pool.claimed();
                Ok(Some(Up {
                    launched,
                    mode: "clone",
                }))
            }
            Err(error) => {
                tracing::warn!(
                    sandbox_id = id,
                    template = pool.template_name(),
                    error,
                    "copy failed"
                );
                pool.failed();
                Ok(None)
            }
        }
    }

    /// Claims a husk, or builds one and claims that.
    async fn copy(
        &self,
        id: &str,
        pool: &Pool,
        from: Source,
        env: &BTreeMap<String, String>,
        timings: &mut Timings,
    ) -> Result<Launched, String> {
        let husk = match from {
            Source::Husk(husk) => husk,
            Source::Slot(slot, golden) => {
                let built = pool.build(golden, slot, timings).await;
                built.map_err(|error| error.to_string())?
            }
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

    /// A machine whose agent says Hello: it boots, or goes on with a broken link.
    async fn launch(
        &self,
        id: &str,
        (template, begin): (&Template, &Begin),
        env: &BTreeMap<String, String>,
        given: Option<Given>,
        timings: &mut Timings,
    ) -> Result<Launched, ApiError> {
        let slot = match given {
            Some(Given::Slot(slot)) => slot,
            // Of no use for this one: its own slot is given back.
            Some(Given::Husk(_)) | None => self.slot().await?,
        };
        let plan = Plan {
            name: Name::new(id),
            template: template.clone(),
            begin: begin.clone(),
            trial: false,
            slot,
        };
        let launched = async {
            let launched = self.launcher.launch(plan, timings).await;
            let mut launched = launched.map_err(|error| error.to_string())?;
            let Launched { machine, link, .. } = &mut launched;
            self.take_identity(id, machine, link, env).await?;
            Ok(launched)
        };
        let launched = launched.await.map_err(|error: String| {
            let template = &template.name;
            tracing::error!(sandbox_id = id, template, error, "not started");
            ApiError::StartFailed(error)
        })?;
        timings.step("identity");
        Ok(launched)
    }

    /// Makes the machine this sandbox, or ends it.
    pub(super) async fn take_identity(
        &self,
        id: &str,
        machine: &mut Machine,
        link: &Link,
        env: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let generation = self.generation.fetch_add(1, Relaxed);
        let bound = self.launcher.boot_timeout;
        let taken = tokio::select! {
            biased;
            end = machine.ended() => Err(ended_text(id, end.as_deref())),
            taken = identify(link, id, generation, env, bound) => taken,
        };
        let taken = match taken {
            // Most often the machine is ending: its own word is better.
            Err(why) if link.closed().now_or_never().is_some() => {
                let end = timeout(LAST_WORD, machine.ended()).await;
                Err(end.map_or(why, |end| ended_text(id, end.as_deref())))
            }
            other => other,
        };
        if taken.is_err() {
            machine.give_up(id).await;
        }
        taken
    }

    /// A place in the table, if there is one.
    pub(super) fn reserve(self: &Arc<Self>, id: String) -> Result<Reservation, ApiError> {
        let mut table = self.table();
        if table.values().filter(|entry| entry.is_alive()).count() >= self.max {
            return Err(ApiError::TooManySandboxes { max: self.max });
        }
        table.insert(id.clone(), Entry::Creating);
        let registry = Arc::clone(self);
        Ok(Reservation { registry, id })
    }

    /// Places for these, or for as many of them as there are places, under one look.
    pub(super) fn reserve_all(
        self: &Arc<Self>,
        ids: Vec<String>,
        partial: bool,
    ) -> Result<Vec<Reservation>, ApiError> {
        let mut table = self.table();
        let alive = table.values().filter(|entry| entry.is_alive()).count();
        let free = self.max.saturating_sub(alive);
        if free == 0 || !partial && free < ids.len() {
            return Err(ApiError::TooManySandboxes { max: self.max });
        }
        let place = |id: String| {
            table.insert(id.clone(), Entry::Creating);
            let registry = Arc::clone(self);
            Reservation { registry, id }
        };
        Ok(ids.into_iter().take(free).map(place).collect())
    }
}
