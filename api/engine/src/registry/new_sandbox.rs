//! What a new sandbox is to be: what its request asks for, and what it has from the sandbox that it
//! goes on from (`api/PROTOCOL.md` §10.6 has the rules as a table).

use crate::error::EngineError;
use crate::facts::{IngressPolicy, LifecyclePolicy, SandboxFacts};
use crate::network::EgressPolicy;
use crate::owner::OwnerId;
use crate::restore_point::RestorePoint;
use crate::store::snapshots::SandboxSnapshot;
use crate::template::Template;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Most variables of a sandbox, those that it has from a snapshot included.
pub const MAX_VARIABLES: usize = 512;
/// Most bytes of them, as `NAME=value` and a NUL each. What the agent takes, but for the variables
/// that say who and where it is.
pub const MAX_VARIABLE_BYTES: usize = wire::MAX_DEFAULT_ENV - 1024;

/// What a creation's request asks for, whatever the sandbox is made from.
#[derive(Clone, Debug)]
pub struct AskedSandbox {
    /// Time to live, and what happens then.
    pub lifecycle: LifecyclePolicy,
    /// The client's labels.
    pub metadata: BTreeMap<String, String>,
    /// The client's environment.
    pub env: BTreeMap<String, String>,
    /// Whether the data plane asks for a token.
    pub secure: bool,
    /// What it may reach over the network.
    pub egress: EgressPolicy,
    /// Who reaches its ports, and as what.
    pub ingress: AskedIngress,
}

/// What a creation's request asks for its ports.
#[derive(Clone, Debug, Default)]
pub struct AskedIngress {
    /// Whether they ask for a token.
    pub private: bool,
    /// As in [`IngressPolicy`]; its token is made with the sandbox.
    pub policy: IngressPolicy,
}

/// Where a new sandbox goes on.
#[derive(Clone, Debug)]
pub enum CreationSource {
    /// At its template's beginning.
    Template(Arc<Template>),
    /// At a snapshot, which is loaded when the sandbox has been admitted.
    Snapshot(Arc<Template>, Arc<SandboxSnapshot>),
    /// At a restore point that is loaded.
    Loaded(Arc<Template>, Arc<RestorePoint>),
}

impl CreationSource {
    /// The template whose kernel and image it has.
    #[must_use]
    pub const fn template(&self) -> &Arc<Template> {
        match self {
            Self::Template(template) | Self::Snapshot(template, _) | Self::Loaded(template, _) => {
                template
            }
        }
    }
}

/// A sandbox to be made, checked.
#[derive(Clone, Debug)]
pub struct NewSandbox {
    pub(super) owner: OwnerId,
    pub(super) source: CreationSource,
    pub(super) asked: AskedSandbox,
}

impl NewSandbox {
    /// What a request of this owner asks for. One that goes on at a snapshot has its variables,
    /// under those of the request.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] when it has more variables than [`MAX_VARIABLES`], or more bytes of
    /// them than [`MAX_VARIABLE_BYTES`].
    pub fn new(
        owner: OwnerId,
        source: CreationSource,
        mut asked: AskedSandbox,
    ) -> Result<Self, EngineError> {
        if let CreationSource::Snapshot(_, snapshot) = &source {
            for (name, value) in &snapshot.env {
                let own = asked.env.entry(name.clone());
                own.or_insert_with(|| value.clone());
            }
        }
        let (count, bytes) = (asked.env.len(), bytes(&asked.env));
        if count > MAX_VARIABLES || bytes > MAX_VARIABLE_BYTES {
            return Err(EngineError::Invalid(format!(
                "{count} environment variables of {bytes} bytes, those of a snapshot included, are \
                 over {MAX_VARIABLES} or {MAX_VARIABLE_BYTES} bytes"
            )));
        }
        Ok(Self {
            owner,
            source,
            asked,
        })
    }

    /// A child of this sandbox, of this owner, which is what its parent is: labels, variables,
    /// whether it asks for tokens, what it may reach and how its ports are reached, what happens at
    /// the deadline. The time to live is its own.
    pub(super) fn child(
        (owner, parent): (OwnerId, &SandboxFacts),
        env: BTreeMap<String, String>,
        source: CreationSource,
        timeout: Duration,
    ) -> Self {
        let asked = AskedSandbox {
            lifecycle: LifecyclePolicy {
                timeout,
                ..parent.lifecycle
            },
            metadata: parent.metadata.clone(),
            env,
            secure: parent.access_token.is_some(),
            egress: parent.egress.clone(),
            ingress: AskedIngress {
                private: parent.ingress.traffic_token.is_some(),
                policy: parent.ingress.clone(),
            },
        };
        Self {
            owner,
            source,
            asked,
        }
    }
}

/// Bytes of an environment as a process has it.
fn bytes(env: &BTreeMap<String, String>) -> usize {
    let each = env.iter().map(|(name, value)| name.len() + value.len() + 2);
    each.sum()
}
