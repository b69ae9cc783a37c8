//! Connect: a sandbox that runs is given time, a paused one is resumed. Resuming is a task of its
//! own: a client that leaves does not leave half a sandbox behind.

use crate::error::{EngineError, chain};
use crate::facts::KeptState;
use crate::machine::handle::VmProcess;
use crate::owner::Caller;
use crate::registry::bring_up::LaunchSource;
use crate::registry::load::{StoredMachine, not_loaded};
use crate::registry::reserve::Preallocated;
use crate::registry::running::{SandboxHistory, running_sandbox};
use crate::registry::sandboxes::SandboxRegistry;
use crate::registry::table::ResumeStart;
use crate::restore_point::{BootSource, RestorePoint};
use crate::sandbox::{Sandbox, SandboxDeadline};
use crate::store::paused::{PausedSandbox, readable, stored_name};
use crate::timings::StepTimings;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl SandboxRegistry {
    /// A running sandbox, which is given at least `time` from now, or a paused one resumed with
    /// `time` to live, and whether it was resumed by this call. Waits for one that is being paused.
    /// A paused one goes on with what is kept of it, or with `wanted`, if that is less: of its
    /// files alone it boots, whatever memory is kept. One that runs is not booted anew.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`], [`EngineError::TooManySandboxes`],
    /// [`EngineError::ResumeFailed`]: it stays paused.
    pub async fn connect(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        how: (KeptState, Duration),
        timings: &mut StepTimings,
    ) -> Result<(Arc<Sandbox>, bool), EngineError> {
        self.own(who, id)?;
        self.connect_any(id, how, timings).await
    }

    /// The same for traffic that may, whosever it is.
    pub(super) async fn connect_any(
        self: &Arc<Self>,
        id: &str,
        (wanted, time): (KeptState, Duration),
        timings: &mut StepTimings,
    ) -> Result<(Arc<Sandbox>, bool), EngineError> {
        loop {
            let (paused, sender) = match self.begin_resume(id)? {
                ResumeStart::Running(sandbox) => {
                    sandbox.extend(time);
                    return Ok((sandbox, false));
                }
                // Somebody else is at it: what became of it is in the table then.
                ResumeStart::Busy(sandbox) => {
                    sandbox.settled().await;
                    continue;
                }
                ResumeStart::Resuming(mut done) => {
                    let _ = done.changed().await;
                    continue;
                }
                ResumeStart::Begun(paused, sender) => (paused, sender),
            };
            let (registry, mut steps) = (Arc::clone(self), timings.clone());
            let work = tokio::spawn(async move {
                let begin = Instant::now();
                let kept = match wanted {
                    KeptState::Memory => paused.kept,
                    KeptState::Files => KeptState::Files,
                };
                let resumed = registry.resume(&paused, (kept, time), &mut steps).await;
                registry
                    .metrics
                    .done("resume", resumed.is_ok(), begin.elapsed());
                drop(sender);
                (resumed, steps)
            });
            let lost = |_| EngineError::ResumeFailed("The work was given up".into());
            let (resumed, steps) = work.await.map_err(lost)?;
            *timings = steps;
            return resumed.map(|sandbox| (sandbox, true));
        }
    }

    /// Resuming → Running, or Paused again.
    async fn resume(
        self: &Arc<Self>,
        paused: &Arc<PausedSandbox>,
        how: (KeptState, Duration),
        timings: &mut StepTimings,
    ) -> Result<Arc<Sandbox>, EngineError> {
        let mut closing = self.closing.subscribe();
        let made = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(EngineError::ShuttingDown),
            made = self.bring_back(paused, how, timings) => made,
        };
        let (sandbox, machine) = match made {
            Ok(made) => made,
            Err(error) => {
                let id = &paused.facts.id;
                tracing::error!(sandbox_id = id, %error, "not resumed");
                let there = self.fail_resume(paused);
                return Err(if there {
                    error
                } else {
                    EngineError::no_sandbox(id)
                });
            }
        };
        // From here on it would be a lie: the sandbox goes on. If it stays, the next pause replaces
        // it.
        if let Err(error) = self.forget(&sandbox.id).await {
            tracing::warn!(sandbox_id = sandbox.id, %error, "stored state not removed");
        }
        // Dropping the machine ends it.
        if !self.finish_resume(paused, &sandbox) {
            sandbox.gone.send_replace(true);
            return Err(EngineError::no_sandbox(&sandbox.id));
        }
        self.follow(&sandbox, machine);
        let timing = timings.header();
        let kept = how.0;
        tracing::info!(sandbox_id = sandbox.id, ?kept, timing, "sandbox resumed");
        Ok(sandbox)
    }

    /// A machine that goes on where the sandbox was paused, or boots over its files, and has taken
    /// its identity anew.
    async fn bring_back(
        &self,
        paused: &PausedSandbox,
        (kept, time): (KeptState, Duration),
        timings: &mut StepTimings,
    ) -> Result<(Arc<Sandbox>, VmProcess), EngineError> {
        let facts = &paused.facts;
        let slot = Preallocated::Slot(self.slot().await?);
        timings.step("slot");
        let stored = stored_name(&facts.id);
        let template = self.template_of(&facts.origin)?;
        let machine = StoredMachine {
            stored: stored.map_err(|error| EngineError::ResumeFailed(chain(&error)))?,
            kept,
            template: Arc::clone(&template),
            readable,
            weigh: |weight| Some(weight.machine()),
        };
        let image = self.load(machine).await;
        let image = image.map_err(|error| not_loaded(error, EngineError::ResumeFailed))?;
        timings.step("load");
        let point = RestorePoint {
            source: BootSource::of(image, kept),
            processes: match kept {
                KeptState::Memory => paused.processes.clone(),
                KeptState::Files => Vec::new(),
            },
            origin: facts.origin.clone(),
        };
        let source = LaunchSource {
            template: &template,
            restore_point: Some(&point),
        };
        let made = self.bring_up(&facts.id, source, &facts.env, Some(slot), timings);
        let made = made.await.map_err(|error| match error {
            EngineError::StartFailed(why) => EngineError::ResumeFailed(why),
            other => other,
        })?;
        let deadline = SandboxDeadline::after(time);
        let past = SandboxHistory {
            restore_point: paused.restore_point.clone(),
            tree: Arc::clone(&paused.tree),
        };
        let (sandbox, machine) = running_sandbox(
            Arc::clone(facts),
            made.launched,
            deadline,
            past,
            &self.network,
        );
        sandbox.processes.attach_all(&point.processes).await;
        timings.step("processes");
        sandbox.entrust_again().await;
        Ok((sandbox, machine))
    }
}
