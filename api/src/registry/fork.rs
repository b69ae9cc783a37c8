//! More sandboxes that go on where one stands or stood, and one that goes back to where it stood.

use super::bring_up::Start;
use super::guard::guard;
use super::table::{Why, missing};
use super::{NewSandbox, Past, Reason, Registry, embody};
use crate::error::{ApiError, chain};
use crate::launcher::{Begin, Timings};
use crate::machine::Machine;
use crate::sandbox::{Facts, Lifecycle, Origin, Sandbox};
use control::Saved;
use futures_util::StreamExt as _;
use futures_util::stream;
use std::sync::Arc;
use std::time::Duration;

/// So many children are made at one time.
const AT_ONCE: usize = 8;
/// From so many machines on it is worth to put their memory together once for all.
const COMPOSE: usize = 3;

/// What each child of a fork has been made into.
pub(super) type Children = Vec<Result<Arc<Sandbox>, ApiError>>;

impl Registry {
    /// Makes `count` sandboxes that go on where a running one stands at this moment, or where one in any
    /// state stood at a checkpoint, each with its own id, token, clock and randomness. A result for each;
    /// and how the running one was saved.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::CheckpointNotFound`], [`ApiError::Conflict`],
    /// [`ApiError::PauseFailed`]: there are no children.
    pub async fn fork(
        self: &Arc<Self>,
        id: &str,
        checkpoint: Option<&str>,
        count: usize,
        timeout: Duration,
    ) -> Result<(Children, Option<Saved>), ApiError> {
        let (facts, start, saved) = match checkpoint {
            None => {
                let (facts, start, saved) = self.present(id).await?;
                (facts, start, Some(saved))
            }
            Some(word) => {
                let (facts, tree) = self.tree_of(id)?;
                let (_, start) = self.checkpoint_start(&facts, &tree, word).await?;
                (facts, start, None)
            }
        };
        let child = NewSandbox {
            template: self.template_of(&facts.origin)?,
            lifecycle: Lifecycle {
                timeout,
                ..facts.lifecycle
            },
            metadata: facts.metadata.clone(),
            env: facts.asked_env(),
            secure: facts.access_token.is_some(),
            start: Some(for_many(start, count).await?),
        };
        // A task of its own: a client that leaves finds all of them.
        let registry = Arc::clone(self);
        let work = tokio::spawn(async move {
            let children = (0..count).map(|_| {
                let (registry, child) = (Arc::clone(&registry), child.clone());
                async move { registry.create(child, &mut Timings::default()).await }
            });
            stream::iter(children).buffered(AT_ONCE).collect().await
        });
        let lost = |_| ApiError::StartFailed("The work was given up".into());
        Ok((work.await.map_err(lost)?, saved))
    }

    /// A running sandbox's present moment.
    async fn present(
        self: &Arc<Self>,
        id: &str,
    ) -> Result<(Arc<Facts>, Arc<Start>, Saved), ApiError> {
        let captured = self.capture(id).await?;
        let facts = Arc::clone(&captured.busy.sandbox.facts);
        let start = Start {
            begin: Begin::Image(captured.image),
            processes: captured.processes,
            origin: Origin {
                forked: true,
                ..facts.origin.clone()
            },
        };
        Ok((facts, Arc::new(start), captured.saved))
    }

    /// Puts a running sandbox back to where it began, or to a checkpoint of its own, from which it then
    /// descends: same id, token and deadline. Its machine is put back in place if it began over the
    /// memory of that moment; else, or if that fails, another one takes its place, which needs room for
    /// one more machine meanwhile.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::CheckpointNotFound`]; [`ApiError::Conflict`], also if
    /// its first moment is not kept; [`ApiError::TooManySandboxes`], [`ApiError::StartFailed`]: it runs
    /// on as it was, or is gone if its machine was lost.
    pub async fn reset(
        self: &Arc<Self>,
        id: &str,
        checkpoint: Option<&str>,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let (registry, id, mut steps) = (Arc::clone(self), id.to_owned(), timings.clone());
        let checkpoint = checkpoint.map(str::to_owned);
        let work = tokio::spawn(async move {
            let reset = registry.put_back(&id, checkpoint.as_deref(), &mut steps);
            let reset = reset.await;
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
        checkpoint: Option<&str>,
        timings: &mut Timings,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let busy = self.begin(id, Why::Reset).await?;
        let (old, tree) = (&busy.sandbox, &busy.sandbox.body.tree);
        let made = async {
            let (line, start) = self.moment(old, checkpoint).await?;
            timings.step("load");
            let made = self.machine_of(old, start.as_deref(), timings).await?;
            Ok((line, made))
        };
        let (line, (sandbox, machine)) = match made.await {
            Ok(made) => made,
            Err(error) => {
                let there = self.go_on(old);
                if *self.closing.borrow() {
                    self.end(old, &Reason::Shutdown);
                }
                return Err(if there { error } else { missing(id) });
            }
        };
        // Dropping the machine ends it.
        if !self.replace(old, &sandbox) {
            sandbox.gone.send_replace(true);
            return Err(missing(id));
        }
        tree.stand(&line);
        tokio::spawn(guard(Arc::clone(self), Arc::clone(&sandbox), machine));
        if *self.closing.borrow() {
            self.end(&sandbox, &Reason::Shutdown);
            return Err(ApiError::ShuttingDown);
        }
        let timing = timings.header();
        tracing::info!(sandbox_id = id, checkpoint, timing, "sandbox reset");
        Ok(sandbox)
    }

    /// The moment that a sandbox is to be put back to, and the checkpoints above it; `None`: its
    /// template's beginning.
    async fn moment(
        &self,
        old: &Sandbox,
        checkpoint: Option<&str>,
    ) -> Result<(Vec<String>, Option<Arc<Start>>), ApiError> {
        let tree = &old.body.tree;
        if let Some(word) = checkpoint {
            let (node, start) = self.checkpoint_start(&old.facts, tree, word).await?;
            return Ok((tree.line(Some(&node.id)), Some(start)));
        }
        let mut start = old.body.start.clone();
        if start.is_none() {
            start = self.first_start(&old.facts, tree).await?;
        }
        if start.is_none() && old.origin.forked {
            return Err(ApiError::Conflict(format!(
                "Sandbox {:?} was forked, and its first moment has not outlived the server",
                old.id
            )));
        }
        if start.is_none() && old.origin.template_id != old.origin.base {
            start = Some(self.stored_start(&old.origin.template_id).await?);
        }
        Ok((Vec::new(), start))
    }

    /// The same sandbox with a machine of that moment.
    async fn machine_of(
        self: &Arc<Self>,
        old: &Arc<Sandbox>,
        start: Option<&Start>,
        timings: &mut Timings,
    ) -> Result<(Arc<Sandbox>, Machine), ApiError> {
        let template = self.template_of(&old.origin)?;
        let launched = self
            .put_back_or_make(old, &template, start, timings)
            .await?;
        let (facts, deadline) = (Arc::clone(&old.facts), *old.deadline.borrow());
        let past = Past {
            start: old.body.start.clone(),
            tree: Arc::clone(&old.body.tree),
        };
        let (sandbox, machine) = embody(facts, launched, deadline, past);
        if let Some(start) = start {
            sandbox.processes.resume(&sandbox, &start.processes).await;
        }
        Ok((sandbox, machine))
    }
}

/// The same moment, for so many machines to begin at.
async fn for_many(start: Arc<Start>, count: usize) -> Result<Arc<Start>, ApiError> {
    let Begin::Image(image) = &start.begin else {
        return Ok(start);
    };
    if count < COMPOSE {
        return Ok(start);
    }
    let composed = Arc::clone(image).compose().await;
    let composed = composed.map_err(|error| ApiError::PauseFailed(chain(&error)))?;
    Ok(Arc::new(Start {
        begin: Begin::Image(composed),
        processes: start.processes.clone(),
        origin: start.origin.clone(),
    }))
}
