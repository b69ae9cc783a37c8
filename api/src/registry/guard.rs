//! Who sits with a machine until it is gone: its deadline, and its end.

use super::{Reason, Registry};
use crate::error::ApiError;
use crate::machine::{End, Machine};
use crate::sandbox::Sandbox;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Lives as long as the machine: watches the clock and the machine, and sees the end through.
pub(super) async fn guard(registry: Arc<Registry>, sandbox: Arc<Sandbox>, mut machine: Machine) {
    while let Some(event) = next(&sandbox, &mut machine).await {
        match event {
            Some(reason) => drop(registry.end(&sandbox, &reason)),
            None => registry.at_deadline(&sandbox).await,
        }
    }
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

/// What happens to a sandbox next: it ends by itself, or its deadline comes; `None`: it is gone.
async fn next(sandbox: &Sandbox, machine: &mut Machine) -> Option<Option<Reason>> {
    tokio::select! {
        biased;
        () = sandbox.gone() => None,
        end = machine.ended() => {
            Some(Some(Reason::Ended(ended_text(&sandbox.id, end.as_deref()))))
        }
        () = sandbox.link.closed() => {
            // Most often the machine is ending: its own word is better than ours.
            let end = timeout(Duration::from_secs(1), machine.ended()).await;
            let text = match end {
                Ok(end) => ended_text(&sandbox.id, end.as_deref()),
                Err(_) => "the link to the guest agent broke".to_owned(),
            };
            Some(Some(Reason::Ended(text)))
        }
        () = expired(sandbox) => Some(None),
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
