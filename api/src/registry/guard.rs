//! Who sits with a machine until it is gone: its deadline, and its end.

use super::{Reason, Registry};
use crate::error::ApiError;
use crate::machine::{End, LAST_WORD, Machine};
use crate::sandbox::Sandbox;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

/// How whoever resets a sandbox gets its machine from its guard.
#[derive(Debug)]
pub(crate) struct Handover {
    ask: mpsc::Sender<oneshot::Sender<Machine>>,
    /// The guard holds it as long as it has the machine.
    asks: Mutex<mpsc::Receiver<oneshot::Sender<Machine>>>,
}

impl Default for Handover {
    fn default() -> Self {
        let (ask, asks) = mpsc::channel(1);
        let asks = Mutex::new(asks);
        Self { ask, asks }
    }
}

/// Takes a sandbox's machine from its guard, which ends; `None`: the sandbox is gone. For whoever holds
/// its `saving`.
pub(super) async fn take_machine(sandbox: &Sandbox) -> Option<Machine> {
    let (to, from) = oneshot::channel();
    sandbox.body.handover.ask.send(to).await.ok()?;
    tokio::select! {
        biased;
        machine = from => machine.ok(),
        () = sandbox.gone() => None,
    }
}

/// Lives as long as the machine, or until somebody takes it: watches the clock and the machine, and
/// sees the end through.
pub(super) async fn guard(registry: Arc<Registry>, sandbox: Arc<Sandbox>, machine: Machine) {
    let Some(mut machine) = watch(&registry, &sandbox, machine).await else {
        return;
    };
    let end = machine.stop().await.map(|end| end.to_string());
    tracing::debug!(sandbox_id = sandbox.id, end, "machine is gone");
    registry.pools.wake();
    let basis = sandbox.body.basis.as_ref();
    let stored = basis.is_some_and(|basis| basis.stored().is_some());
    // With it goes its lease on what is stored.
    drop(sandbox);
    if stored {
        registry.sweep();
    }
}

/// Until the sandbox is gone; `None`: somebody else has the machine now.
async fn watch(
    registry: &Arc<Registry>,
    sandbox: &Arc<Sandbox>,
    mut machine: Machine,
) -> Option<Machine> {
    let mut asks = sandbox.body.handover.asks.lock().await;
    while let Some(event) = next(sandbox, &mut machine, &mut asks).await {
        let asked = match event {
            Event::End(reason) => {
                registry.end(sandbox, &reason);
                None
            }
            // It waits for whoever has the sandbox in hand, who may ask for the machine.
            Event::Deadline => tokio::select! {
                () = registry.at_deadline(sandbox) => None,
                asked = asks.recv() => asked,
            },
            Event::Asked(to) => Some(to),
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

enum Event {
    /// The machine, or its link, is no more.
    End(Reason),
    Deadline,
    /// Somebody wants the machine.
    Asked(oneshot::Sender<Machine>),
}

/// What happens to a sandbox next; `None`: it is gone.
async fn next(
    sandbox: &Sandbox,
    machine: &mut Machine,
    asks: &mut mpsc::Receiver<oneshot::Sender<Machine>>,
) -> Option<Event> {
    tokio::select! {
        biased;
        () = sandbox.gone() => None,
        Some(to) = asks.recv() => Some(Event::Asked(to)),
        end = machine.ended() => {
            Some(Event::End(Reason::Ended(ended_text(&sandbox.id, end.as_deref()))))
        }
        () = sandbox.link.closed() => {
            // Most often the machine is ending: its own word is better than ours.
            let end = timeout(LAST_WORD, machine.ended()).await;
            let text = match end {
                Ok(end) => ended_text(&sandbox.id, end.as_deref()),
                Err(_) => "the link to the guest agent broke".to_owned(),
            };
            Some(Event::End(Reason::Ended(text)))
        }
        () = expired(sandbox) => Some(Event::Deadline),
    }
}

/// How a machine ended, after its console is in the log.
pub(super) fn ended_text(id: &str, end: Option<&End>) -> String {
    let Some(end) = end else {
        return "its task was lost".to_owned();
    };
    end.log_console(id);
    end.to_string()
}

/// Why a sandbox was not saved, if its machine has ended with it: it does not run on.
pub(super) fn or_ended(sandbox: &Sandbox, error: ApiError) -> ApiError {
    match error {
        ApiError::PauseFailed(why) if sandbox.body.hand.is_gone() => ApiError::EndedMeanwhile(why),
        other => other,
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
