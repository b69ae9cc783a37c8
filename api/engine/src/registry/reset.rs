//! Reset: a sandbox goes back to where it began, or to a checkpoint of its own, with the same id,
//! token and deadline. Its own machine is reset in place where that can be; else another one takes
//! its place.

use crate::error::EngineError;
use crate::machine::handle::VmProcess;
use crate::owner::Caller;
use crate::registry::bring_up::LaunchSource;
use crate::registry::in_place::ResetOutcome;
use crate::registry::running::{SandboxHistory, running_sandbox};
use crate::registry::sandboxes::{EndReason, SandboxRegistry};
use crate::registry::transitions::BusyReason;
use crate::restore_point::RestorePoint;
use crate::sandbox::Sandbox;
use crate::timings::StepTimings;
use std::sync::Arc;
use std::time::Instant;

impl SandboxRegistry {
    /// Resets a running sandbox to where it began, or to a checkpoint of its own, from which it
    /// then descends. Where its own machine cannot be reset, another one takes its place, which
    /// needs room for one more machine meanwhile.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`], [`EngineError::CheckpointNotFound`];
    /// [`EngineError::Conflict`], also if its first restore point is not kept;
    /// [`EngineError::TooManySandboxes`], [`EngineError::StartFailed`]: it runs on as it was, or is
    /// gone if its machine was lost.
    pub async fn reset(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        checkpoint: Option<&str>,
        timings: &mut StepTimings,
    ) -> Result<Arc<Sandbox>, EngineError> {
        self.own(who, id)?;
        let (registry, mut steps) = (Arc::clone(self), timings.clone());
        let (who, id) = (who.clone(), id.to_owned());
        let checkpoint = checkpoint.map(str::to_owned);
        // A task of its own: a client that leaves does not leave half a sandbox behind.
        let work = tokio::spawn(async move {
            let begin = Instant::now();
            let reset = registry.reset_now((&who, &id), checkpoint.as_deref(), &mut steps);
            let reset = reset.await;
            registry
                .metrics
                .reset(reset.as_ref().ok().map(|(_, way)| *way), begin.elapsed());
            (reset, steps)
        });
        let lost = |_| EngineError::StartFailed("The work was given up".into());
        let (reset, steps) = work.await.map_err(lost)?;
        *timings = steps;
        reset.map(|(sandbox, _)| sandbox)
    }

    async fn reset_now(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        checkpoint: Option<&str>,
        timings: &mut StepTimings,
    ) -> Result<(Arc<Sandbox>, &'static str), EngineError> {
        let busy = self.begin_work(id, BusyReason::Reset).await?;
        let (old, tree) = (&busy.sandbox, &busy.sandbox.machine.tree);
        let made = async {
            let (ancestry, point) = self.point_to_reset(who, old, checkpoint).await?;
            timings.step("load");
            let made = self.machine_at(old, point.as_deref(), timings).await?;
            Ok((ancestry, made))
        };
        let (ancestry, (sandbox, machine, way)) = match made.await {
            Ok(made) => made,
            Err(error) => {
                let there = self.go_on(old);
                if *self.closing.borrow() {
                    self.end(old, &EndReason::Shutdown);
                }
                return Err(if there {
                    error
                } else {
                    EngineError::no_sandbox(id)
                });
            }
        };
        // Dropping the machine ends it.
        if !self.replace(old, &sandbox) {
            sandbox.gone.send_replace(true);
            return Err(EngineError::no_sandbox(id));
        }
        tree.set_current(&ancestry);
        self.follow(&sandbox, machine);
        if *self.closing.borrow() {
            self.end(&sandbox, &EndReason::Shutdown);
            return Err(EngineError::ShuttingDown);
        }
        let timing = timings.header();
        tracing::info!(sandbox_id = id, checkpoint, way, timing, "sandbox reset");
        Ok((sandbox, way))
    }

    /// The restore point that a sandbox is to be reset to, and the checkpoints above it; `None`:
    /// its template's beginning.
    async fn point_to_reset(
        &self,
        who: &Caller,
        old: &Sandbox,
        checkpoint: Option<&str>,
    ) -> Result<(Vec<String>, Option<Arc<RestorePoint>>), EngineError> {
        let tree = &old.machine.tree;
        if let Some(word) = checkpoint {
            let (node, point) = self.checkpoint_point(&old.facts, tree, word).await?;
            return Ok((tree.ancestry(Some(&node.id)), Some(point)));
        }
        let mut point = old.machine.restore_point.clone();
        if point.is_none() {
            point = self.first_point(&old.facts, tree).await?;
        }
        if point.is_none() && old.origin.forked {
            return Err(EngineError::Conflict(format!(
                "Sandbox {:?} was forked, and where it began has not outlived the server",
                old.id
            )));
        }
        if point.is_none() && old.origin.template_id != old.origin.base {
            // Its owner's, whoever resets it.
            let owner = Caller::new(who.heir(old.owner.as_ref()));
            let snapshot = self.find_snapshot(&owner, &old.origin.template_id).await?;
            point = Some(self.snapshot_point(&snapshot).await?);
        }
        Ok((Vec::new(), point))
    }

    /// The same sandbox with a machine that begins there: its own, or another one.
    async fn machine_at(
        self: &Arc<Self>,
        old: &Arc<Sandbox>,
        point: Option<&RestorePoint>,
        timings: &mut StepTimings,
    ) -> Result<(Arc<Sandbox>, VmProcess, &'static str), EngineError> {
        let template = self.template_of(&old.origin)?;
        let source = LaunchSource {
            template: &template,
            restore_point: point,
        };
        let (launched, way) = match self.reset_in_place(old, source, timings).await {
            ResetOutcome::Done(launched) => (launched, "in_place"),
            other => {
                let made = self
                    .bring_up(&old.id, source, &old.env, None, timings)
                    .await;
                if let (ResetOutcome::Lost(reason), Err(_)) = (&other, &made) {
                    self.end(old, reason);
                }
                (made?.launched, "replaced")
            }
        };
        let (facts, deadline) = (old.present_facts(), *old.deadline.borrow());
        let history = SandboxHistory {
            restore_point: old.machine.restore_point.clone(),
            tree: Arc::clone(&old.machine.tree),
        };
        let (sandbox, machine) = running_sandbox(facts, launched, deadline, history, &self.network);
        if let Some(point) = point {
            sandbox.processes.attach_all(&point.processes).await;
        }
        sandbox.entrust_again().await;
        Ok((sandbox, machine, way))
    }
}
