//! One running sandbox, as everything outside the registry sees it.

use crate::error::EngineError;
use crate::facts::SandboxFacts;
use crate::image::base_memory::BaseMemory;
use crate::image::machine_image::MachineShape;
use crate::machine::handle::MachineHandle;
use crate::machine::handover::MachineHandover;
use crate::network::{EgressPolicy, trust};
use crate::process::ProcessTable;
use crate::restore_point::RestorePoint;
use crate::sandbox_log::{LogLevel, SandboxLog};
use crate::store::checkpoint_tree::CheckpointTree;
use jiff::{SignedDuration, Timestamp};
use link::Link;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A running sandbox. Shared as `Arc<Sandbox>`; holding one does not keep the virtual machine
/// alive: when the machine ends, [`Sandbox::gone`] completes and the link's calls fail.
#[derive(Debug)]
pub struct Sandbox {
    /// What it is; a sandbox has the fields of its facts.
    pub facts: Arc<SandboxFacts>,
    /// The connection to the guest agent.
    pub link: Link,
    /// The processes that clients started.
    pub processes: ProcessTable,
    /// What happened to it that its user should know.
    pub log: SandboxLog,
    /// What it may reach; a network process that serves it follows.
    pub(crate) egress: watch::Sender<EgressPolicy>,
    /// Whoever has the guest trust something holds this: one at a time.
    pub(crate) trust_turn: tokio::sync::Mutex<()>,
    pub(crate) deadline: watch::Sender<SandboxDeadline>,
    pub(crate) gone: watch::Sender<bool>,
    pub(crate) ended: OnceLock<String>,
    pub(crate) machine: SandboxMachine,
}

/// What the registry needs of a sandbox's machine while another task owns it.
#[derive(Debug)]
pub(crate) struct SandboxMachine {
    pub(crate) handle: MachineHandle,
    pub(crate) shape: MachineShape,
    /// What it began at; `None` if it booted.
    pub(crate) base_memory: Option<Arc<BaseMemory>>,
    /// Where it went on first; `None`: it began at its template's beginning.
    pub(crate) restore_point: Option<Arc<RestorePoint>>,
    /// Its checkpoints.
    pub(crate) tree: Arc<CheckpointTree>,
    /// Whoever saves it, or puts another in its place, holds this: one at a time.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// How whoever resets it gets its machine.
    pub(crate) handover: MachineHandover,
}

impl std::ops::Deref for Sandbox {
    type Target = SandboxFacts;

    fn deref(&self) -> &SandboxFacts {
        &self.facts
    }
}

/// An end in both clocks: the wall's for clients, the machine's for waiting, so that setting the
/// clock neither kills nor revives a sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SandboxDeadline {
    pub(crate) at: Timestamp,
    pub(crate) instant: Instant,
}

impl SandboxDeadline {
    pub(crate) fn after(time: Duration) -> Self {
        let wall = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
        Self {
            at: Timestamp::now()
                .saturating_add(wall)
                .unwrap_or(Timestamp::MAX),
            instant: Instant::now() + time,
        }
    }
}

impl Sandbox {
    /// When the sandbox will be killed.
    #[must_use]
    pub fn end_at(&self) -> Timestamp {
        self.deadline.borrow().at
    }

    /// What it may reach from now on, and what its requests get: flows that are no longer allowed
    /// are cut. Its guest trusts what its headers need when this is answered. The policy is in
    /// force before the guest is asked for anything: it has no say in it.
    ///
    /// # Errors
    /// [`EngineError::Conflict`] when the guest has not taken the authority that headers need: the
    /// policy is in force, and requests to hosts with headers fail.
    pub async fn set_egress(&self, asked: EgressPolicy) -> Result<(), EngineError> {
        let mut made = Ok(());
        self.egress.send_modify(
            |present| match asked.authorized(present.authority.as_ref()) {
                Ok(policy) => *present = policy,
                Err(error) => made = Err(EngineError::Conflict(error.to_string())),
            },
        );
        made?;
        self.entrust().await.map_err(|error| {
            EngineError::Conflict(format!(
                "{error}. The policy is in force, and requests to hosts with headers fail: repeat it"
            ))
        })
    }

    /// Has the guest trust what the headers of its present policy need; nothing if it has none.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) async fn entrust(&self) -> Result<(), String> {
        let _turn = self.trust_turn.lock().await;
        let authority = self.egress.borrow().trusted().cloned();
        match authority {
            Some(authority) => trust(&self.link, &authority.certificate).await,
            None => Ok(()),
        }
    }

    /// The same for a machine that goes on where it may not have trusted it yet. What fails is told
    /// to the sandbox's user.
    pub(crate) async fn entrust_again(&self) {
        if let Err(error) = self.entrust().await {
            tracing::warn!(sandbox_id = self.id, error, "no certificate authority");
            let message = "the guest may not trust its certificate authority";
            let fields = vec![("error", error)];
            self.log.push(LogLevel::Warn, message, fields);
        }
    }

    /// Its facts, with what it may reach at this moment.
    #[must_use]
    pub fn present_facts(&self) -> Arc<SandboxFacts> {
        let egress = self.egress.borrow();
        if *egress == self.facts.egress {
            return Arc::clone(&self.facts);
        }
        Arc::new(SandboxFacts {
            egress: egress.clone(),
            ..(*self.facts).clone()
        })
    }

    /// Moves the end to `time` from now.
    pub fn set_timeout(&self, time: Duration) {
        self.deadline.send_replace(SandboxDeadline::after(time));
    }

    /// Moves the end to `time` from now if that is later than it is.
    pub fn extend(&self, time: Duration) {
        let new = SandboxDeadline::after(time);
        self.deadline.send_if_modified(|deadline| {
            let later = new.instant > deadline.instant;
            if later {
                *deadline = new;
            }
            later
        });
    }

    /// How it ended, if it ended by itself.
    #[must_use]
    pub fn end_words(&self) -> Option<&str> {
        self.ended.get().map(String::as_str)
    }

    /// Whether the sandbox has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Completes when nobody saves or replaces its machine at this moment.
    pub async fn settled(&self) {
        drop(self.machine.turn.lock().await);
    }

    /// Completes when the sandbox has ended. From then on the data plane answers 502.
    pub async fn gone(&self) {
        let mut gone = self.gone.subscribe();
        // The sender is in `self`, so this cannot fail.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}
