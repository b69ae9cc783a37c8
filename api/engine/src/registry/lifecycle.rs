//! The life-cycle task of a machine: it watches the deadline and the end, and sees the end through.

use crate::error::EngineError;
use crate::facts::TimeoutAction;
use crate::machine::handle::{LAST_WORD, VmProcess};
use crate::machine::handover::MachineRequest;
use crate::registry::sandboxes::{EndReason, SandboxRegistry};
use crate::registry::take_identity::end_words;
use crate::sandbox::Sandbox;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// A sandbox that could not be paused at its deadline runs on for so long before the next attempt.
const AGAIN: Duration = Duration::from_secs(60);

/// Takes a sandbox's machine from its life-cycle task, which ends; `None`: the sandbox is gone. For
/// whoever holds its turn.
pub(super) async fn take_machine(sandbox: &Sandbox) -> Option<VmProcess> {
    let from = sandbox.machine.handover.ask().await?;
    tokio::select! {
        biased;
        machine = from => machine.ok(),
        () = sandbox.gone() => None,
    }
}

/// Lives as long as the machine, or until somebody takes it: watches the clock and the machine, and
/// sees the end through.
pub(super) async fn follow(
    registry: Arc<SandboxRegistry>,
    sandbox: Arc<Sandbox>,
    machine: VmProcess,
) {
    let Some(mut machine) = watch(&registry, &sandbox, machine).await else {
        return;
    };
    let end = machine.stop().await.map(|end| end.to_string());
    tracing::debug!(sandbox_id = sandbox.id, end, "machine is gone");
    registry.metrics.reaped();
    registry.pools.wake();
    let base_memory = sandbox.machine.base_memory.as_ref();
    let stored = base_memory.is_some_and(|base_memory| base_memory.stored().is_some());
    // With it goes its lease on what is stored.
    drop(sandbox);
    if stored {
        registry.collect_garbage();
    }
}

/// Until the sandbox is gone; `None`: somebody else has the machine now.
async fn watch(
    registry: &Arc<SandboxRegistry>,
    sandbox: &Arc<Sandbox>,
    mut machine: VmProcess,
) -> Option<VmProcess> {
    let mut asks = sandbox.machine.handover.requests().await;
    while let Some(event) = next(sandbox, &mut machine, &mut asks).await {
        let asked = match event {
            LifecycleEvent::End(reason) => {
                registry.end(sandbox, &reason);
                None
            }
            // It waits for whoever has the sandbox in hand, who may ask for the machine.
            LifecycleEvent::Deadline => tokio::select! {
                () = registry.at_deadline(sandbox) => None,
                asked = asks.recv() => asked,
            },
            LifecycleEvent::Asked(to) => Some(to),
        };
        if let Some(to) = asked {
            match to.send(machine) {
                Ok(()) => return None,
                Err(back) => machine = back,
            }
        }
    }
    Some(machine)
}

enum LifecycleEvent {
    /// The machine, or its link, is no more.
    End(EndReason),
    Deadline,
    /// Somebody wants the machine.
    Asked(MachineRequest),
}

/// What happens to a sandbox next; `None`: it is gone.
async fn next(
    sandbox: &Sandbox,
    machine: &mut VmProcess,
    asks: &mut mpsc::Receiver<MachineRequest>,
) -> Option<LifecycleEvent> {
    tokio::select! {
        biased;
        () = sandbox.gone() => None,
        Some(to) = asks.recv() => Some(LifecycleEvent::Asked(to)),
        end = machine.ended() => {
            Some(LifecycleEvent::End(EndReason::Ended(end_words(&sandbox.id, end.as_deref()))))
        }
        () = sandbox.link.closed() => {
            // Most often the machine is ending: its own word is better than ours.
            let end = timeout(LAST_WORD, machine.ended()).await;
            let text = match end {
                Ok(end) => end_words(&sandbox.id, end.as_deref()),
                Err(_) => "the link to the guest agent broke".to_owned(),
            };
            Some(LifecycleEvent::End(EndReason::Ended(text)))
        }
        () = expired(sandbox) => Some(LifecycleEvent::Deadline),
    }
}

/// Completes at the deadline, however often it is moved.
async fn expired(sandbox: &Sandbox) {
    let mut deadline = sandbox.deadline.subscribe();
    loop {
        let at = deadline.borrow_and_update().instant;
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

impl SandboxRegistry {
    /// What is to happen at a sandbox's deadline, once nobody saves it. It has happened, or the
    /// deadline has moved, when this returns.
    pub(super) async fn at_deadline(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        sandbox.settled().await;
        if sandbox.is_gone() || sandbox.deadline.borrow().instant > Instant::now() {
            return;
        }
        match sandbox.lifecycle.on_timeout {
            TimeoutAction::Kill => {
                self.end(sandbox, &EndReason::Deadline);
            }
            TimeoutAction::Pause(kept) => match self.pause_any(&sandbox.id, kept).await {
                Ok(()) | Err(EngineError::SandboxNotFound(_)) => {}
                // A client was quicker: look again when it is done.
                Err(EngineError::Conflict(_)) => tokio::task::yield_now().await,
                // Nothing of it is lost for want of room: it runs on, and counts as running.
                Err(error) => {
                    tracing::warn!(sandbox_id = sandbox.id, %error, "not paused at its deadline");
                    sandbox.set_timeout(AGAIN);
                }
            },
        }
    }
}
