//! Create: from what a client asks for to a sandbox that runs.

use crate::error::EngineError;
use crate::facts::{IngressPolicy, SandboxFacts, SandboxOrigin};
use crate::ids;
use crate::network::add_variables;
use crate::registry::bring_up::{IdentifiedMachine, LaunchSource};
use crate::registry::new_sandbox::{AskedIngress, AskedSandbox, CreationSource, NewSandbox};
use crate::registry::reserve::{Preallocated, SandboxReservation};
use crate::registry::running::{SandboxHistory, running_sandbox};
use crate::registry::sandboxes::SandboxRegistry;
use crate::restore_point::RestorePoint;
use crate::sandbox::{Sandbox, SandboxDeadline};
use crate::timings::StepTimings;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Instant;

impl SandboxRegistry {
    /// Makes a sandbox. Answers only when its agent has taken its identity: no tenant code can run
    /// before. Cancel-safe: a dropped creation leaves nothing.
    ///
    /// # Errors
    /// [`EngineError::TooManySandboxes`], [`EngineError::LimitReached`], [`EngineError::NoMemory`],
    /// [`EngineError::ShuttingDown`], [`EngineError::StartFailed`].
    pub async fn create(
        self: &Arc<Self>,
        new: NewSandbox,
        timings: &mut StepTimings,
    ) -> Result<Arc<Sandbox>, EngineError> {
        match self.accounts.ask(&new.owner, 1) {
            Ok(()) => self.create_asked(new, timings).await,
            Err(reached) => {
                let error = EngineError::from(reached);
                self.metrics.creation_failed(&error);
                Err(error)
            }
        }
    }

    /// The same for one of many that have been asked for together.
    pub(super) async fn create_asked(
        self: &Arc<Self>,
        new: NewSandbox,
        timings: &mut StepTimings,
    ) -> Result<Arc<Sandbox>, EngineError> {
        let id = ids::sandbox_id().map_err(|error| no_entropy(&error))?;
        let reserved = self
            .reserve(&new.owner, id)
            .map(|entry| SandboxReservation {
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

    /// Whether there is memory for it to begin. A snapshot that has to be loaded is weighed when it
    /// is.
    fn admit(&self, source: &CreationSource) -> Result<(), EngineError> {
        match source {
            CreationSource::Snapshot(_, snapshot) if self.snapshots.ready(snapshot).is_none() => {
                Ok(())
            }
            _ => self.admission.check(),
        }
    }

    /// Where it goes on from, if it does not begin with its template: loaded once it has a slot.
    async fn creation_point(
        &self,
        source: &CreationSource,
        preallocated: &mut Option<Preallocated>,
        timings: &mut StepTimings,
    ) -> Result<Option<Arc<RestorePoint>>, EngineError> {
        match source {
            CreationSource::Template(_) => Ok(None),
            CreationSource::Loaded(_, point) => Ok(Some(Arc::clone(point))),
            CreationSource::Snapshot(_, snapshot) => {
                if preallocated.is_none() {
                    *preallocated = Some(Preallocated::Slot(self.slot().await?));
                    timings.step("slot");
                }
                let point = self.snapshot_point(snapshot).await?;
                timings.step("load");
                Ok(Some(point))
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
        self.admit(&new.source)?;
        let SandboxReservation {
            entry,
            mut preallocated,
        } = reservation;
        let id = entry.id.clone();
        let NewSandbox {
            owner,
            source,
            mut asked,
        } = new;
        authorize(&mut asked)?;
        let (access_token, ingress) = (token_if(asked.secure)?, policy(asked.ingress)?);
        let template = source.template();
        let restore_point = self
            .creation_point(&source, &mut preallocated, timings)
            .await?;
        let origin = match &restore_point {
            Some(point) => point.origin.clone(),
            None => SandboxOrigin::of(template),
        };
        let env = self
            .variables
            .environment(&id, &origin.template_id, asked.env);
        let source = LaunchSource {
            template,
            restore_point: restore_point.as_deref(),
        };
        let made = self.bring_up(&id, source, &env, preallocated, timings);
        let IdentifiedMachine { launched, way } = made.await?;
        let facts = SandboxFacts {
            id: id.clone(),
            owner: Some(owner),
            origin: SandboxOrigin {
                disk_size_mb: launched.disk_size >> 20,
                ..origin
            },
            metadata: asked.metadata,
            env,
            access_token,
            ingress,
            default_user: template.default_user.clone(),
            default_workdir: template.default_workdir.clone(),
            started_at: Timestamp::now(),
            lifecycle: asked.lifecycle,
            egress: asked.egress,
        };
        let deadline = SandboxDeadline::after(facts.lifecycle.timeout);
        let history = SandboxHistory::of(restore_point);
        let (sandbox, machine) =
            running_sandbox(Arc::new(facts), launched, deadline, history, &self.network);
        if let Some(point) = &sandbox.machine.restore_point {
            sandbox.processes.attach_all(&point.processes).await;
            timings.step("processes");
        }
        entrust(&sandbox, timings).await?;
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

/// Gives a sandbox whose requests get headers what that needs, and others nothing.
fn authorize(asked: &mut AskedSandbox) -> Result<(), EngineError> {
    if asked.egress.headers.is_empty() {
        return Ok(());
    }
    let egress = std::mem::take(&mut asked.egress);
    let authorized = egress.authorized(None);
    asked.egress = authorized.map_err(|error| EngineError::StartFailed(error.to_string()))?;
    add_variables(&mut asked.env);
    Ok(())
}

/// Has the guest trust what its headers need.
async fn entrust(sandbox: &Sandbox, timings: &mut StepTimings) -> Result<(), EngineError> {
    if sandbox.facts.egress.trusted().is_some() {
        let entrusted = sandbox.entrust().await;
        entrusted.map_err(EngineError::StartFailed)?;
        timings.step("trust");
    }
    Ok(())
}

/// A secret, if one is wanted.
fn token_if(wanted: bool) -> Result<Option<String>, EngineError> {
    let token = wanted.then(ids::token).transpose();
    token.map_err(|error| no_entropy(&error))
}

/// How its ports are reached, with a token of its own if they ask for one.
fn policy(asked: AskedIngress) -> Result<IngressPolicy, EngineError> {
    let traffic_token = token_if(asked.private)?;
    Ok(IngressPolicy {
        traffic_token,
        ..asked.policy
    })
}

pub(super) fn no_entropy(error: &std::io::Error) -> EngineError {
    EngineError::StartFailed(format!("No random bytes: {error}"))
}
