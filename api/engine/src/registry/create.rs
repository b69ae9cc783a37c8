//! Create: from what a client asks for to a sandbox that runs.

use crate::error::EngineError;
use crate::facts::{LifecyclePolicy, SandboxFacts, SandboxOrigin};
use crate::ids;
use crate::registry::bring_up::{IdentifiedMachine, LaunchSource};
use crate::registry::reserve::SandboxReservation;
use crate::registry::running::{SandboxHistory, running_sandbox};
use crate::registry::sandboxes::SandboxRegistry;
use crate::restore_point::RestorePoint;
use crate::sandbox::{Sandbox, SandboxDeadline};
use crate::template::Template;
use crate::timings::StepTimings;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What a creation asks for, already checked.
#[derive(Clone, Debug)]
pub struct NewSandbox {
    /// From which template.
    pub template: Arc<Template>,
    /// Time to live, and what happens then.
    pub lifecycle: LifecyclePolicy,
    /// The client's labels.
    pub metadata: BTreeMap<String, String>,
    /// The client's environment.
    pub env: BTreeMap<String, String>,
    /// Whether the data plane asks for a token.
    pub secure: bool,
    /// Where it goes on; `None`: at its template's beginning.
    pub restore_point: Option<Arc<RestorePoint>>,
}

impl SandboxRegistry {
    /// Makes a sandbox. Answers only when its agent has taken its identity: no tenant code can run
    /// before. Cancel-safe: a dropped creation leaves nothing.
    ///
    /// # Errors
    /// [`EngineError::TooManySandboxes`], [`EngineError::NoMemory`], [`EngineError::ShuttingDown`],
    /// [`EngineError::StartFailed`].
    pub async fn create(
        self: &Arc<Self>,
        new: NewSandbox,
        timings: &mut StepTimings,
    ) -> Result<Arc<Sandbox>, EngineError> {
        let id = ids::sandbox_id().map_err(|error| no_entropy(&error))?;
        let reserved = self.reserve(id).map(|entry| SandboxReservation {
            entry,
            preallocated: None,
        });
        match reserved {
            Ok(reservation) => self.create_reserved(reservation, new, timings).await,
            Err(error) => {
                self.metrics.creation_failed(&error);
                Err(error)
            }
        }
    }

    /// The same in a place that was reserved for it.
    ///
    /// # Errors
    /// As [`SandboxRegistry::create`].
    pub async fn create_reserved(
        self: &Arc<Self>,
        reservation: SandboxReservation,
        new: NewSandbox,
        timings: &mut StepTimings,
    ) -> Result<Arc<Sandbox>, EngineError> {
        let (begin, mut closing) = (Instant::now(), self.closing.subscribe());
        let made = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(EngineError::ShuttingDown),
            made = self.make(reservation, new, timings) => made,
        };
        match made {
            Ok((sandbox, way)) => {
                self.metrics.created(way, begin.elapsed());
                Ok(sandbox)
            }
            Err(error) => {
                self.metrics.creation_failed(&error);
                Err(error)
            }
        }
    }

    /// Until its end the reservation is the entry in the table.
    async fn make(
        self: &Arc<Self>,
        reservation: SandboxReservation,
        new: NewSandbox,
        timings: &mut StepTimings,
    ) -> Result<(Arc<Sandbox>, &'static str), EngineError> {
        self.admission.check()?;
        let SandboxReservation {
            entry,
            preallocated,
        } = reservation;
        let id = entry.id.clone();
        let access_token = new.secure.then(ids::token).transpose();
        let access_token = access_token.map_err(|error| no_entropy(&error))?;
        let origin = match &new.restore_point {
            Some(point) => point.origin.clone(),
            None => SandboxOrigin::of(&new.template),
        };
        let env = self
            .variables
            .environment(&id, &origin.template_id, new.env);
        let source = LaunchSource {
            template: &new.template,
            restore_point: new.restore_point.as_deref(),
        };
        let made = self.bring_up(&id, source, &env, preallocated, timings);
        let IdentifiedMachine { launched, way } = made.await?;
        let facts = SandboxFacts {
            id: id.clone(),
            origin: SandboxOrigin {
                disk_size_mb: launched.disk_size >> 20,
                ..origin
            },
            metadata: new.metadata,
            env,
            access_token,
            default_user: new.template.default_user.clone(),
            default_workdir: new.template.default_workdir.clone(),
            started_at: Timestamp::now(),
            lifecycle: new.lifecycle,
        };
        let deadline = SandboxDeadline::after(facts.lifecycle.timeout);
        let history = SandboxHistory::of(new.restore_point);
        let (sandbox, machine) = running_sandbox(Arc::new(facts), launched, deadline, history);
        if let Some(point) = &sandbox.machine.restore_point {
            sandbox.processes.attach_all(&point.processes).await;
            timings.step("processes");
        }
        let name = machine.name().clone();
        self.publish(&sandbox, machine)?;
        tracing::info!(
            sandbox_id = id,
            machine = name.own(),
            template = sandbox.origin.template_id,
            mode = way,
            timing = timings.header(),
            "sandbox started"
        );
        Ok((sandbox, way))
    }
}

pub(super) fn no_entropy(error: &std::io::Error) -> EngineError {
    EngineError::StartFailed(format!("No random bytes: {error}"))
}
