//! Kill: a sandbox ends in whatever state it is, and what is stored of it goes.

use crate::error::EngineError;
use crate::owner::Caller;
use crate::registry::entry::TableEntry;
use crate::registry::sandboxes::{EndReason, SandboxRegistry};
use crate::registry::transitions::{SandboxRequest, Transition};
use crate::sandbox::Sandbox;
use crate::store::paused::PausedSandbox;
use std::sync::Arc;

/// What has to be ended.
enum KillTarget {
    /// A machine, and whether somebody works at it.
    Machine(Arc<Sandbox>, bool),
    /// What is stored.
    Stored(Arc<PausedSandbox>),
}

impl SandboxRegistry {
    /// Ends a sandbox of the caller's in whatever state it is, and removes what is stored of it,
    /// also of one that cannot be read. False if there is none.
    ///
    /// # Errors
    /// [`EngineError::KillFailed`]: it stays paused.
    pub async fn kill(&self, who: &Caller, id: &str) -> Result<bool, EngineError> {
        if self.own(who, id).is_err() || !self.kill_any(id).await? {
            return self.kill_unreadable(who, id).await;
        }
        Ok(true)
    }

    /// The same, whosever it is, for whoever has made it; not of one that cannot be read.
    ///
    /// # Errors
    /// [`EngineError::KillFailed`]: it stays paused.
    pub async fn kill_any(&self, id: &str) -> Result<bool, EngineError> {
        loop {
            let (sandbox, busy) = match self.kill_target(id) {
                None => return Ok(false),
                Some(KillTarget::Stored(paused)) => {
                    return self.kill_paused(paused).await.map(|()| true);
                }
                Some(KillTarget::Machine(sandbox, busy)) => (sandbox, busy),
            };
            // Not ended: it was paused, reset or has ended just now. Look again.
            if self.end(&sandbox, &EndReason::Killed) {
                if busy {
                    // What was saved of it is removed by whoever saves it.
                    sandbox.settled().await;
                }
                return Ok(true);
            }
        }
    }

    /// What has to be ended; a paused sandbox is not in the table any more.
    fn kill_target(&self, id: &str) -> Option<KillTarget> {
        let mut table = self.table();
        let entry = table.get(id);
        let Transition::Become(_) = self.transition(entry, SandboxRequest::Kill) else {
            return None;
        };
        Some(match entry? {
            TableEntry::Creating(_) => return None,
            TableEntry::Running(sandbox) => KillTarget::Machine(Arc::clone(sandbox), false),
            TableEntry::Busy(sandbox, _) => KillTarget::Machine(Arc::clone(sandbox), true),
            TableEntry::Paused(paused) | TableEntry::Resuming(paused, _) => {
                let paused = Arc::clone(paused);
                table.remove(id);
                KillTarget::Stored(paused)
            }
        })
    }

    async fn kill_paused(&self, paused: Arc<PausedSandbox>) -> Result<(), EngineError> {
        let id = paused.facts.id.clone();
        let forgotten = self.forget(&id).await;
        match &forgotten {
            Ok(()) => {
                self.delete_tree(&paused.tree);
                tracing::info!(sandbox_id = id, "paused sandbox killed");
            }
            Err(error) => {
                tracing::error!(sandbox_id = id, %error, "paused sandbox not killed");
                let mut table = self.table();
                if table.get(&id).is_none() {
                    table.insert(id, TableEntry::Paused(paused));
                }
            }
        }
        forgotten
    }
}
