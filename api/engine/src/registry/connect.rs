//! Connect: a sandbox that runs is given time, a paused one is resumed. Resuming is a task of its
//! own: a client that leaves does not leave half a sandbox behind.

use crate::error::{EngineError, chain};
use crate::facts::KeptState;
use crate::launch::plan::LaunchPlan;
use crate::machine::handle::VmProcess;
use crate::machine::name::MachineName;
use crate::registry::running::{SandboxHistory, running_sandbox};
use crate::registry::sandboxes::SandboxRegistry;
use crate::registry::table::ResumeStart;
use crate::registry::view::RouteState;
use crate::restore_point::BootSource;
use crate::sandbox::{Sandbox, SandboxDeadline};
use crate::store::paused::{PausedSandbox, readable, stored_name};
use crate::store::vault;
use crate::timings::StepTimings;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl SandboxRegistry {
    /// A running sandbox, which is given at least `time` from now, or a paused one resumed with
    /// `time` to live, and whether it was resumed by this call. Waits for one that is being paused.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`], [`EngineError::TooManySandboxes`],
    /// [`EngineError::ResumeFailed`]: it stays paused.
    pub async fn connect(
        self: &Arc<Self>,
        id: &str,
        time: Duration,
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
                let resumed = registry.resume(&paused, time, &mut steps).await;
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
        time: Duration,
        timings: &mut StepTimings,
    ) -> Result<Arc<Sandbox>, EngineError> {
        let mut closing = self.closing.subscribe();
        let made = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(EngineError::ShuttingDown),
            made = self.rebuild(paused, time, timings) => made,
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
        tracing::info!(sandbox_id = sandbox.id, timing, "sandbox resumed");
        Ok(sandbox)
    }

    /// A machine that goes on where the sandbox was paused, and has taken its identity anew.
    async fn rebuild(
        &self,
        paused: &Arc<PausedSandbox>,
        time: Duration,
        timings: &mut StepTimings,
    ) -> Result<(Arc<Sandbox>, VmProcess), EngineError> {
        let facts = &paused.facts;
        let name = &facts.origin.base;
        let template = self.template_of(&facts.origin)?;
        let failed = |error: String| EngineError::ResumeFailed(error);
        let stored = stored_name(&facts.id).map_err(|error| failed(chain(&error)))?;
        let weighed = stored.clone();
        let weight = self.in_vault(move |vault| vault.weight(&weighed)).await;
        let weight = weight.map_err(|error| failed(chain(&error)))?;
        self.admission.check_for(weight)?;
        let slot = self.slot().await?;
        timings.step("slot");
        let (name, path, kept) = (name.clone(), template.image.clone(), paused.kept);
        let image = self.in_vault(move |vault| {
            let base = vault::look(&name, &path)?;
            vault.get(&stored, kept, &base, readable)
        });
        let image = image.await.map_err(|error| failed(chain(&error)))?;
        timings.step("load");
        let image = Arc::new(image);
        let plan = LaunchPlan {
            name: MachineName::new(&facts.id),
            template: Arc::clone(&template),
            source: match paused.kept {
                KeptState::Memory => BootSource::Image(image),
                KeptState::Files => BootSource::Files(image),
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
        let deadline = SandboxDeadline::after(time);
        let past = SandboxHistory {
            restore_point: paused.restore_point.clone(),
            tree: Arc::clone(&paused.tree),
        };
        let (sandbox, machine) = running_sandbox(Arc::clone(facts), launched, deadline, past);
        if paused.kept == KeptState::Memory {
            sandbox.processes.attach_all(&paused.processes).await;
            timings.step("processes");
        }
        Ok((sandbox, machine))
    }

    /// The sandbox that traffic may resume; `None` if it may not.
    ///
    /// # Errors
    /// As [`SandboxRegistry::connect`].
    pub async fn enter(self: &Arc<Self>, id: &str) -> Result<Option<Arc<Sandbox>>, EngineError> {
        /// The least time that traffic gives a sandbox.
        const LEAST: Duration = Duration::from_secs(300);
        let facts = loop {
            match self.route_state(id) {
                RouteState::Running(sandbox) => return Ok(Some(sandbox)),
                RouteState::Quiesced(sandbox) => sandbox.settled().await,
                RouteState::Pausing(facts) | RouteState::Paused(facts)
                    if facts.lifecycle.auto_resume =>
                {
                    break facts;
                }
                _ => return Ok(None),
            }
        };
        let time = facts.lifecycle.timeout.max(LEAST);
        let (sandbox, _) = self.connect(id, time, &mut StepTimings::default()).await?;
        Ok(Some(sandbox))
    }
}
