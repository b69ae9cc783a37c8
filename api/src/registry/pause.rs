//! Pausing, resuming, and killing what is paused.
//!
//! ```text
//! Running ──pause──> Pausing ──saved──> Paused ──connect──> Resuming ──identity──> Running
//!    ^                  │                  ^                    │
//!    └──────(failed)────┘                  └──────(failed)──────┘        kill: from any state
//! ```
//!
//! Both ways are tasks of their own: a client that leaves does not leave half a sandbox behind.

use super::table::{Door, Entry, Pausing, missing};
use super::{Reason, Registry, embody};
use crate::error::ApiError;
use crate::image::{self, Image, ImageError};
use crate::launcher::{Begin, Plan, Timings};
use crate::name::Name;
use crate::paused::Paused;
use crate::sandbox::{Kept, OnTimeout, Sandbox};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// How long the guest may take to write its files out.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);
/// A sandbox that could not be paused at its deadline runs on for so long before the next attempt.
const AGAIN: Duration = Duration::from_secs(60);

impl Registry {
    /// Pauses a running sandbox. When this returns it is kept, and its machine is about to go.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::Conflict`], [`ApiError::PauseFailed`]: it runs on.
    pub async fn pause(self: &Arc<Self>, id: &str, kept: Kept) -> Result<(), ApiError> {
        let pausing = self.begin_pause(id)?;
        let registry = Arc::clone(self);
        let work = tokio::spawn(async move { registry.put_to_sleep(pausing, kept).await });
        let lost = |_| ApiError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    async fn put_to_sleep(self: &Arc<Self>, from: Pausing, kept: Kept) -> Result<(), ApiError> {
        let (sandbox, begin) = (&from.sandbox, Instant::now());
        match self.keep(sandbox, kept).await {
            Ok(paused) => {
                if !self.finish_pause(sandbox, &Arc::new(paused)) {
                    return Err(missing(&sandbox.id));
                }
                let time = begin.elapsed();
                tracing::info!(sandbox_id = sandbox.id, ?kept, ?time, "sandbox paused");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(sandbox_id = sandbox.id, %error, "not paused");
                sandbox.body.hand.start().await;
                if !self.abandon_pause(sandbox) {
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
            // The guest's own file system would recover without: this saves what is not yet written.
            match timeout(SYNC_TIMEOUT, sandbox.link.sync()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(failed(&error)),
                Err(_) => return Err(ApiError::PauseFailed("The guest does not sync".into())),
            }
        }
        let (image, _) = self.save(sandbox).await.map_err(|error| failed(&error))?;
        Ok(Paused {
            facts: Arc::clone(&sandbox.facts),
            paused_at: Timestamp::now(),
            kept,
            image: Arc::new(image),
        })
    }

    async fn save(&self, sandbox: &Sandbox) -> Result<(Image, control::Saved), ImageError> {
        let body = &sandbox.body;
        image::capture(&self.launcher, &body.hand, body.basis.as_ref(), body.shape).await
    }

    /// Saves a running sandbox, which stands still meanwhile and then goes on.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::Conflict`], [`ApiError::PauseFailed`].
    pub async fn capture(self: &Arc<Self>, id: &str) -> Result<Arc<Image>, ApiError> {
        let pausing = self.begin_pause(id)?;
        let registry = Arc::clone(self);
        let work = tokio::spawn(async move {
            let sandbox = &pausing.sandbox;
            let saved = registry.save(sandbox).await;
            sandbox.body.hand.start().await;
            if !registry.abandon_pause(sandbox) {
                return Err(missing(&sandbox.id));
            }
            if *registry.closing.borrow() {
                registry.end(sandbox, &Reason::Shutdown);
            }
            saved
                .map(|(image, _)| Arc::new(image))
                .map_err(|e| failed(&e))
        });
        let lost = |_| ApiError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    /// A running sandbox, which is given at least `time` from now, or a paused one resumed with
    /// `time` to live, and whether it was resumed by this call.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::Conflict`] while it is being paused,
    /// [`ApiError::TooManySandboxes`], [`ApiError::ResumeFailed`]: it stays paused.
    pub async fn connect(
        self: &Arc<Self>,
        id: &str,
        time: Duration,
        timings: &mut Timings,
    ) -> Result<(Arc<Sandbox>, bool), ApiError> {
        loop {
            let (paused, done) = {
                let mut table = self.table();
                match table.get(id) {
                    Some(Entry::Running(sandbox)) => {
                        sandbox.extend(time);
                        return Ok((Arc::clone(sandbox), false));
                    }
                    Some(Entry::Resuming(_, done)) => (None, done.clone()),
                    Some(Entry::Paused(paused)) => {
                        if *self.closing.borrow() {
                            return Err(ApiError::ShuttingDown);
                        }
                        let paused = Arc::clone(paused);
                        let (sender, done) = watch::channel(());
                        let entry = Entry::Resuming(Arc::clone(&paused), done.clone());
                        table.insert(id.to_owned(), entry);
                        (Some((paused, sender)), done)
                    }
                    Some(Entry::Pausing(_)) => {
                        return Err(ApiError::Conflict(format!(
                            "Sandbox {id:?} is being paused"
                        )));
                    }
                    Some(Entry::Creating) | None => return Err(missing(id)),
                }
            };
            let Some((paused, sender)) = paused else {
                // Another call resumes it: what became of it is in the table then.
                let mut done = done;
                let _ = done.changed().await;
                continue;
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
        // Dropping the machine ends it.
        if !self.finish_resume(paused, Entry::Running(Arc::clone(&sandbox))) {
            sandbox.gone.send_replace(true);
            return Err(missing(&sandbox.id));
        }
        tokio::spawn(super::guard(
            Arc::clone(self),
            Arc::clone(&sandbox),
            machine,
        ));
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
        let name = &facts.origin.template_id;
        let template = self.templates.get(name).ok_or_else(|| {
            ApiError::ResumeFailed(format!("Its template {name:?} is not configured any more"))
        })?;
        let slot = self.slot().await?;
        timings.step("slot");
        let plan = Plan {
            name: Name::new(&facts.id),
            template: template.clone(),
            begin: Begin::Image(Arc::clone(&paused.image)),
            slot,
        };
        let failed = |error: String| ApiError::ResumeFailed(error);
        let launched = self.launcher.launch(plan, timings).await;
        let mut launched = launched.map_err(|error| failed(error.to_string()))?;
        let identity =
            self.take_identity(&facts.id, &mut launched.machine, &launched.link, &facts.env);
        identity.await.map_err(failed)?;
        timings.step("identity");
        Ok(embody(Arc::clone(facts), launched, time))
    }

    /// Ends a sandbox in whatever state it is. False if there is none.
    pub async fn kill(&self, id: &str) -> bool {
        let sandbox = {
            let mut table = self.table();
            match table.get(id) {
                Some(Entry::Running(sandbox) | Entry::Pausing(sandbox)) => Arc::clone(sandbox),
                Some(Entry::Paused(_) | Entry::Resuming(..)) => {
                    table.remove(id);
                    tracing::info!(sandbox_id = id, "paused sandbox killed");
                    return true;
                }
                Some(Entry::Creating) | None => return false,
            }
        };
        self.end(&sandbox, &Reason::Killed)
    }

    /// What is to happen at a sandbox's deadline, once nobody saves it. It has happened, or the
    /// deadline has moved, when this returns.
    pub(super) async fn at_deadline(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        drop(sandbox.body.saving.lock().await);
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
        let facts = match self.door(id) {
            Door::Open(sandbox) => return Ok(Some(sandbox)),
            Door::Closed(facts) if facts.lifecycle.auto_resume => facts,
            _ => return Ok(None),
        };
        let time = facts.lifecycle.timeout.max(LEAST);
        let (sandbox, _) = self.connect(id, time, &mut Timings::default()).await?;
        Ok(Some(sandbox))
    }
}

fn failed(error: &(impl std::error::Error + 'static)) -> ApiError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    ApiError::PauseFailed(text)
}
