//! Enter: traffic comes to a sandbox. It finds it running, waits while it is quiesced, and resumes
//! a paused one if it may.

use crate::error::EngineError;
use crate::facts::{KeptState, SandboxFacts};
use crate::registry::sandboxes::SandboxRegistry;
use crate::registry::view::RouteState;
use crate::sandbox::Sandbox;
use crate::timings::StepTimings;
use std::sync::Arc;
use std::time::Duration;

/// The least time that traffic gives a sandbox.
const LEAST: Duration = Duration::from_secs(300);

/// What traffic to a sandbox comes to.
#[derive(Debug)]
pub enum Entrance {
    /// It runs.
    Open(Arc<Sandbox>),
    /// It is being paused, and traffic does not resume it.
    Pausing,
    /// There is no such sandbox, or it is paused and this traffic does not resume it.
    Closed,
}

impl SandboxRegistry {
    /// The sandbox that traffic is for, resumed if its creator wanted that and `admits` says that
    /// this traffic may.
    ///
    /// # Errors
    /// As [`SandboxRegistry::connect`].
    pub async fn enter(
        self: &Arc<Self>,
        id: &str,
        admits: impl FnOnce(&SandboxFacts) -> bool,
    ) -> Result<Entrance, EngineError> {
        let facts = loop {
            match self.route_state(id) {
                RouteState::Running(sandbox) => return Ok(Entrance::Open(sandbox)),
                RouteState::Quiesced(sandbox) => sandbox.settled().await,
                RouteState::Pausing(facts) if !facts.lifecycle.auto_resume => {
                    return Ok(Entrance::Pausing);
                }
                RouteState::Pausing(facts) | RouteState::Paused(facts) => break facts,
                RouteState::Missing => return Ok(Entrance::Closed),
            }
        };
        if !facts.lifecycle.auto_resume || !admits(&facts) {
            return Ok(Entrance::Closed);
        }
        let how = (KeptState::Memory, facts.lifecycle.timeout.max(LEAST));
        let (sandbox, _) = self
            .connect_any(id, how, &mut StepTimings::default())
            .await?;
        Ok(Entrance::Open(sandbox))
    }
}
