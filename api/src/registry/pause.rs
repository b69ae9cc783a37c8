//! Pausing, resuming, and killing what is paused.
//!
//! ```text
//! Running ──pause──>  Busy  ──saved──> Paused ──connect──> Resuming ──identity──> Running
//!    ^                  │                  ^                    │
//!    └──────(failed)────┘                  └──────(failed)──────┘        kill: from any state
//! ```
//!
//! Both ways are tasks of their own: a client that leaves does not leave half a sandbox behind.

use super::capture::failed;
use super::guard::{guard, or_ended};
use super::table::{Busy, Door, Entry, Resume, Why, missing};
use super::{Past, Reason, Registry, embody, unreadable};
use crate::error::{ApiError, chain};
use crate::launcher::{Begin, Plan, Timings};
use crate::name::Name;
use crate::paused::{Paused, stored_name};
use crate::sandbox::{Deadline, Kept, OnTimeout, Sandbox};
use crate::vault::{self, VaultError};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A sandbox that could not be paused at its deadline runs on for so long before the next attempt.
const AGAIN: Duration = Duration::from_secs(60);

impl Registry {
    /// Pauses a running sandbox. When this returns it is kept, and its machine is about to go.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::Conflict`], [`ApiError::PauseFailed`]: it runs on.
    pub async fn pause(self: &Arc<Self>, id: &str, kept: Kept) -> Result<(), ApiError> {
        let busy = self.begin(id, Why::Pause).await?;
        let registry = Arc::clone(self);
        let work = tokio::spawn(async move { registry.put_to_sleep(busy, kept).await });
        let lost = |_| ApiError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    async fn put_to_sleep(self: &Arc<Self>, from: Busy, kept: Kept) -> Result<(), ApiError> {
        let (sandbox, begin) = (&from.sandbox, Instant::now());
        match self.keep(sandbox, kept).await {
            Ok(paused) => {
                if !self.finish_pause(sandbox, &Arc::new(paused)) {
                    self.forget(&sandbox.id).await?;
                    return Err(missing(&sandbox.id));
                }
                sandbox.body.tree.rest();
                let time = begin.elapsed();
                tracing::info!(sandbox_id = sandbox.id, ?kept, ?time, "sandbox paused");
                Ok(())
            }
            Err(error) => {
                let error = or_ended(sandbox, error);
                self.sweep();
                tracing::warn!(sandbox_id = sandbox.id, %error, "not paused");
                sandbox.body.hand.start().await;
                if !self.go_on(sandbox) {
                    return Err(missing(&sandbox.id));
                }
                if *self.closing.borrow() {
                    self.end(sandbox, &Reason::Shutdown);
                }
                Err(error)
            }
        }
    }

    /// Saves the machine, which stands still from then on.
    async fn keep(&self, sandbox: &Arc<Sandbox>, kept: Kept) -> Result<Paused, ApiError> {
        if kept == Kept::Files {
            self.sync(sandbox).await?;
        }
        let (image, _) = self
            .save(sandbox, false)
            .await
            .map_err(|error| failed(&error))?;
        let paused = Paused {
            facts: Arc::clone(&sandbox.facts),
            paused_at: Timestamp::now(),
            kept,
            processes: sandbox.processes.kept(),
            start: sandbox.body.start.clone(),
            tree: Arc::clone(&sandbox.body.tree),
        };
        let base = self.base_of(&sandbox.origin)?;
        self.store_first(sandbox, &base).await?;
        let record = paused.encode().map_err(|error| failed(&error))?;
        let name = stored_name(&sandbox.id).map_err(|error| failed(&error))?;
        let put = self.in_vault(move |vault| vault.put(&name, (&image, kept), &base, &record));
        put.await.map_err(|error| failed(&error))?;
        Ok(paused)
    }

    /// Removes what is stored of a sandbox.
    async fn forget(&self, id: &str) -> Result<(), ApiError> {
        let failed = |error: &VaultError| ApiError::KillFailed(chain(error));
        let name = stored_name(id).map_err(|error| failed(&error.into()))?;
        let removed = self.in_vault(move |vault| vault.remove(&name)).await;
        self.sweep();
        removed.map_err(|error| failed(&error))
    }

    /// A running sandbox, which is given at least `time` from now, or a paused one resumed with
    /// `time` to live, and whether it was resumed by this call. Waits for one that is being paused.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::TooManySandboxes`], [`ApiError::ResumeFailed`]: it stays paused.
    pub async fn connect(
        self: &Arc<Self>,
        id: &str,
        time: Duration,
        timings: &mut Timings,
    ) -> Result<(Arc<Sandbox>, bool), ApiError> {
        loop {
            let (paused, sender) = match self.begin_resume(id)? {
                Resume::Running(sandbox) => {
                    sandbox.extend(time);
                    return Ok((sandbox, false));
                }
                // Somebody else is at it: what became of it is in the table then.
                Resume::Busy(sandbox) => {
                    sandbox.settled().await;
                    continue;
                }
                Resume::Resuming(mut done) => {
                    let _ = done.changed().await;
                    continue;
                }
                Resume::Begun(paused, sender) => (paused, sender),
            };
            let (registry, mut steps) = (Arc::clone(self), timings.clone());
            let work = tokio::spawn(async move {
                let resumed = registry.wake(&paused, time, &mut steps).await;
                drop(sender);
                (resumed, steps)
            });
            let lost = |_| ApiError::ResumeFailed("The work was given up".into());
            let (resumed, steps) = work.await.map_err(lost)?;
            *timings = steps;
            return resumed.map(|sandbox| (sandbox, true));
        }
    }

    /// Resuming → Running, or Paused again.
    async fn wake(
        self: &Arc<Self>,
        paused: &Arc<Paused>,
        time: Duration,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let mut closing = self.closing.subscribe();
        let made = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(ApiError::ShuttingDown),
            made = self.rebuild(paused, time, timings) => made,
        };
        let (sandbox, machine) = match made {
            Ok(made) => made,
            Err(error) => {
                let id = &paused.facts.id;
                tracing::error!(sandbox_id = id, %error, "not resumed");
                let there = self.finish_resume(paused, Entry::Paused(Arc::clone(paused)));
                return Err(if there { error } else { missing(id) });
            }
        };
        // From here on it would be a lie: the sandbox goes on. If it stays, the next pause replaces it.
        if let Err(error) = self.forget(&sandbox.id).await {
            tracing::warn!(sandbox_id = sandbox.id, %error, "stored state not removed");
        }
        // Dropping the machine ends it.
        if !self.finish_resume(paused, Entry::Running(Arc::clone(&sandbox))) {
            sandbox.gone.send_replace(true);
            return Err(missing(&sandbox.id));
        }
        tokio::spawn(guard(Arc::clone(self), Arc::clone(&sandbox), machine));
        let timing = timings.header();
        tracing::info!(sandbox_id = sandbox.id, timing, "sandbox resumed");
        Ok(sandbox)
    }

    /// A machine that goes on where the sandbox was paused, and has taken its identity anew.
    async fn rebuild(
        &self,
        paused: &Arc<Paused>,
        time: Duration,
        timings: &mut Timings,
    ) -> Result<(Arc<Sandbox>, crate::machine::Machine), ApiError> {
        let facts = &paused.facts;
        let name = &facts.origin.base;
        let template = self.template_of(&facts.origin)?;
        let failed = |error: String| ApiError::ResumeFailed(error);
        let stored = stored_name(&facts.id).map_err(|error| failed(chain(&error)))?;
        let weighed = stored.clone();
        let weight = self.in_vault(move |vault| vault.weight(&weighed)).await;
        let weight = weight.map_err(|error| failed(chain(&error)))?;
        self.room.check_for(weight)?;
        let slot = self.slot().await?;
        timings.step("slot");
        let (name, path, kept) = (name.clone(), template.image.clone(), paused.kept);
        let image = self.in_vault(move |vault| {
            let base = vault::look(&name, &path)?;
            vault.get(&stored, kept, &base, unreadable::sandbox)
        });
        let image = image.await.map_err(|error| failed(chain(&error)))?;
        timings.step("load");
        let image = Arc::new(image);
        let plan = Plan {
            name: Name::new(&facts.id),
            template: template.clone(),
            begin: match paused.kept {
                Kept::Memory => Begin::Image(image),
                Kept::Files => Begin::Files(image),
            },
            trial: false,
            slot,
        };
        let launched = self.launcher.launch(plan, timings).await;
        let mut launched = launched.map_err(|error| failed(error.to_string()))?;
        let identity =
            self.take_identity(&facts.id, &mut launched.machine, &launched.link, &facts.env);
        identity.await.map_err(failed)?;
        timings.step("identity");
        let deadline = Deadline::after(time);
        let past = Past {
            start: paused.start.clone(),
            tree: Arc::clone(&paused.tree),
        };
        let (sandbox, machine) = embody(Arc::clone(facts), launched, deadline, past);
        if paused.kept == Kept::Memory {
            sandbox.processes.resume(&sandbox, &paused.processes).await;
            timings.step("processes");
        }
        Ok((sandbox, machine))
    }

    /// Ends a sandbox in whatever state it is, and removes what is stored of it. False if there is
    /// none.
    ///
    /// # Errors
    /// [`ApiError::KillFailed`]: it stays paused.
    pub async fn kill(&self, id: &str) -> Result<bool, ApiError> {
        /// What has to be ended.
        enum Found {
            Machine(Arc<Sandbox>, bool),
            Stored(Arc<Paused>),
        }
        let found = {
            let mut table = self.table();
            let found = match table.get(id) {
                Some(Entry::Running(sandbox)) => Found::Machine(Arc::clone(sandbox), false),
                Some(Entry::Busy(sandbox, _)) => Found::Machine(Arc::clone(sandbox), true),
                Some(Entry::Paused(paused) | Entry::Resuming(paused, _)) => {
                    Found::Stored(Arc::clone(paused))
                }
                Some(Entry::Creating) | None => return Ok(false),
            };
            if let Found::Stored(_) = found {
                table.remove(id);
            }
            found
        };
        match found {
            Found::Stored(paused) => self.kill_paused(paused).await.map(|()| true),
            Found::Machine(sandbox, busy) => {
                let ended = self.end(&sandbox, &Reason::Killed);
                if busy {
                    // What was saved of it is removed by whoever saves it.
                    sandbox.settled().await;
                }
                Ok(ended)
            }
        }
    }

    async fn kill_paused(&self, paused: Arc<Paused>) -> Result<(), ApiError> {
        let id = paused.facts.id.clone();
        let forgotten = self.forget(&id).await;
        match &forgotten {
            Ok(()) => {
                self.fell(&paused.tree);
                tracing::info!(sandbox_id = id, "paused sandbox killed");
            }
            Err(error) => {
                tracing::error!(sandbox_id = id, %error, "paused sandbox not killed");
                self.table().entry(id).or_insert(Entry::Paused(paused));
            }
        }
        forgotten
    }

    /// What is to happen at a sandbox's deadline, once nobody saves it. It has happened, or the
    /// deadline has moved, when this returns.
    pub(super) async fn at_deadline(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        sandbox.settled().await;
        if sandbox.is_gone() || sandbox.deadline.borrow().instant > Instant::now() {
            return;
        }
        match sandbox.lifecycle.on_timeout {
            OnTimeout::Kill => {
                self.end(sandbox, &Reason::Deadline);
            }
            OnTimeout::Pause(kept) => match self.pause(&sandbox.id, kept).await {
                Ok(()) | Err(ApiError::SandboxNotFound(_)) => {}
                // A client was quicker: look again when it is done.
                Err(ApiError::Conflict(_)) => tokio::task::yield_now().await,
                Err(_) => sandbox.set_timeout(AGAIN),
            },
        }
    }

    /// The sandbox behind a door that traffic may open; `None` if it may not.
    ///
    /// # Errors
    /// As [`Registry::connect`].
    pub async fn enter(self: &Arc<Self>, id: &str) -> Result<Option<Arc<Sandbox>>, ApiError> {
        /// The least time that traffic gives a sandbox.
        const LEAST: Duration = Duration::from_secs(300);
        let facts = loop {
            match self.door(id) {
                Door::Open(sandbox) => return Ok(Some(sandbox)),
                Door::Still(sandbox) => sandbox.settled().await,
                Door::Pausing(facts) | Door::Closed(facts) if facts.lifecycle.auto_resume => {
                    break facts;
                }
                _ => return Ok(None),
            }
        };
        let time = facts.lifecycle.timeout.max(LEAST);
        let (sandbox, _) = self.connect(id, time, &mut Timings::default()).await?;
        Ok(Some(sandbox))
    }
}
