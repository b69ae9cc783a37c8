//! More sandboxes that go on where one stands, and one that goes back to where it began.

use super::bring_up::{From, Start, Up};
use super::guard::guard;
use super::table::missing;
use super::{NewSandbox, Reason, Registry, embody};
use crate::error::{ApiError, chain};
use crate::launcher::{Begin, Timings};
use crate::machine::Machine;
use crate::sandbox::{Lifecycle, Origin, Sandbox};
use futures_util::StreamExt as _;
use futures_util::stream;
use std::sync::Arc;
use std::time::Duration;

/// So many children are made at one time.
const AT_ONCE: usize = 8;
/// From so many machines on it is worth to put their memory together once for all.
const COMPOSE: usize = 3;

impl Registry {
    /// Makes `count` sandboxes that go on where a running one stands at this moment, each with its own
    /// id, token, clock and randomness; it runs on. A result for each.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::Conflict`], [`ApiError::PauseFailed`]: there are no
    /// children.
    pub async fn fork(
        self: &Arc<Self>,
        id: &str,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<Arc<Sandbox>, ApiError>>, ApiError> {
        let captured = self.capture(id).await?;
        let parent = captured.sandbox;
        let image = match count {
            0..COMPOSE => captured.image,
            _ => {
                let composed = captured.image.compose().await;
                composed.map_err(|error| ApiError::PauseFailed(chain(&error)))?
            }
        };
        let start = Arc::new(Start {
            begin: Begin::Image(image),
            processes: captured.processes,
            origin: Origin {
                forked: true,
                ..parent.origin.clone()
            },
        });
        let child = NewSandbox {
            template: self.template_of(&parent.origin)?,
            lifecycle: Lifecycle {
                timeout,
                ..parent.lifecycle
            },
            metadata: parent.metadata.clone(),
            env: parent.asked_env(),
            secure: parent.access_token.is_some(),
            start: Some(start),
        };
        // Tasks of their own: a client that leaves finds none or all of them.
        let children = (0..count).map(|_| {
            let (registry, child) = (Arc::clone(self), child.clone());
            async move {
                let work = async move { registry.create(child, &mut Timings::default()).await };
                let lost = |_| ApiError::StartFailed("The work was given up".into());
                tokio::spawn(work).await.map_err(lost).flatten()
            }
        });
        Ok(stream::iter(children).buffered(AT_ONCE).collect().await)
    }

    /// Puts a running sandbox back to where it began: same id, token and deadline, a machine of its
    /// first moment. Needs room for one more machine while it works.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`]; [`ApiError::Conflict`], also if its first moment is not kept;
    /// [`ApiError::TooManySandboxes`], [`ApiError::StartFailed`]: it runs on as it was.
    pub async fn reset(
        self: &Arc<Self>,
        id: &str,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let (registry, id, mut steps) = (Arc::clone(self), id.to_owned(), timings.clone());
        let work = tokio::spawn(async move {
            let reset = registry.put_back(&id, &mut steps).await;
            (reset, steps)
        });
        let lost = |_| ApiError::StartFailed("The work was given up".into());
        let (reset, steps) = work.await.map_err(lost)?;
        *timings = steps;
        reset
    }

    async fn put_back(
        self: &Arc<Self>,
        id: &str,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let pausing = self.begin_pause(id)?;
        let made = self.first_machine(&pausing.sandbox, timings).await;
        let old = &pausing.sandbox;
        let (sandbox, machine) = match made {
            Ok(made) => made,
            Err(error) => {
                let there = self.abandon_pause(old);
                return Err(if there { error } else { missing(id) });
            }
        };
        // Dropping the machine ends it.
        if !self.replace(old, &sandbox) {
            sandbox.gone.send_replace(true);
            return Err(missing(id));
        }
        tokio::spawn(guard(Arc::clone(self), Arc::clone(&sandbox), machine));
        if *self.closing.borrow() {
            self.end(&sandbox, &Reason::Shutdown);
            return Err(ApiError::ShuttingDown);
        }
        tracing::info!(sandbox_id = id, timing = timings.header(), "sandbox reset");
        Ok(sandbox)
    }

    /// The same sandbox with a machine of its first moment.
    async fn first_machine(
        &self,
        old: &Arc<Sandbox>,
        timings: &mut Timings,
    ) -> Result<(Arc<Sandbox>, Machine), ApiError> {
        let id = &old.id;
        if old.origin.forked && old.body.start.is_none() {
            return Err(ApiError::Conflict(format!(
                "Sandbox {id:?} was forked, and its first moment has not outlived the server"
            )));
        }
        let template = self.template_of(&old.origin)?;
        let start = match &old.body.start {
            Some(start) => Some(Arc::clone(start)),
            None if old.origin.template_id == old.origin.base => None,
            None => Some(self.stored_start(&old.origin.template_id).await?),
        };
        let from = From {
            template: &template,
            start: start.as_deref(),
        };
        let Up { launched, .. } = self.bring_up(id, from, &old.env, timings).await?;
        let (facts, deadline) = (Arc::clone(&old.facts), *old.deadline.borrow());
        let (sandbox, machine) = embody(facts, launched, deadline, start);
        if let Some(start) = &sandbox.body.start {
            sandbox.processes.resume(&sandbox, &start.processes).await;
        }
        Ok((sandbox, machine))
    }
}
