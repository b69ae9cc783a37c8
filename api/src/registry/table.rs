//! The table itself: who is in which state, and what may happen from there.

use super::{Reason, Registry};
use crate::error::{ApiError, chain};
use crate::paused::{PREFIX, Paused};
use crate::sandbox::{Facts, Kept, Sandbox};
use crate::vault::Vault;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A sandbox's state.
#[derive(Debug)]
pub(super) enum Entry {
    /// Being made; nobody knows its id yet.
    Creating,
    /// With a machine that runs.
    Running(Arc<Sandbox>),
    /// With a machine that is being saved: it becomes `Paused`, or `Running` again.
    Pausing(Arc<Sandbox>),
    /// Without a machine.
    Paused(Arc<Paused>),
    /// With a machine in the making: it becomes `Running`, or `Paused` again; then the sender of
    /// this receiver goes.
    Resuming(Arc<Paused>, watch::Receiver<()>),
}

impl Entry {
    /// Whether a machine belongs to it.
    pub(super) const fn is_alive(&self) -> bool {
        !matches!(self, Self::Paused(_))
    }

    /// Whether this very incarnation of a sandbox has a machine that is its own.
    fn is_of(&self, sandbox: &Arc<Sandbox>) -> bool {
        match self {
            Self::Running(own) | Self::Pausing(own) => Arc::ptr_eq(own, sandbox),
            _ => false,
        }
    }
}

/// A sandbox in any state that clients can see.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it is.
    pub facts: Arc<Facts>,
    /// Its deadline, or when it was paused.
    pub end_at: Timestamp,
    /// What is kept of it if it is paused, or about to be.
    pub paused: Option<Kept>,
}

impl Seen {
    fn of(entry: &Entry) -> Option<Self> {
        Some(match entry {
            Entry::Creating => return None,
            Entry::Running(sandbox) => Self {
                facts: Arc::clone(&sandbox.facts),
                end_at: sandbox.end_at(),
                paused: None,
            },
            Entry::Pausing(sandbox) => Self {
                facts: Arc::clone(&sandbox.facts),
                end_at: Timestamp::now(),
                paused: Some(Kept::Memory),
            },
            Entry::Paused(paused) | Entry::Resuming(paused, _) => Self {
                facts: Arc::clone(&paused.facts),
                end_at: paused.paused_at,
                paused: Some(paused.kept),
            },
        })
    }
}

/// How a sandbox meets traffic.
#[derive(Debug)]
pub enum Door {
    /// It is there.
    Open(Arc<Sandbox>),
    /// It is being paused.
    Pausing(Arc<Facts>),
    /// It is paused, or being resumed.
    Closed(Arc<Facts>),
    /// There is no such sandbox.
    Missing,
}

impl Registry {
    pub(super) fn table(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // No code panics while it holds the lock; if some does, the table is still whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sandboxes have a machine, or will.
    pub(super) fn alive(&self) -> usize {
        self.table().values().filter(|e| e.is_alive()).count()
    }

    /// A running sandbox.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], also for a paused one; [`ApiError::Conflict`] for one that is
    /// neither running nor paused at this moment.
    pub fn running_one(&self, id: &str) -> Result<Arc<Sandbox>, ApiError> {
        match self.table().get(id) {
            Some(Entry::Running(sandbox)) => Ok(Arc::clone(sandbox)),
            Some(Entry::Pausing(_)) => Err(conflict(id, "is being paused")),
            Some(Entry::Resuming(..)) => Err(conflict(id, "is being resumed")),
            _ => Err(missing(id)),
        }
    }

    /// What traffic to a sandbox meets.
    #[must_use]
    pub fn door(&self, id: &str) -> Door {
        match self.table().get(id) {
            Some(Entry::Running(sandbox)) => Door::Open(Arc::clone(sandbox)),
            Some(Entry::Pausing(sandbox)) => Door::Pausing(Arc::clone(&sandbox.facts)),
            Some(Entry::Paused(paused) | Entry::Resuming(paused, _)) => {
                Door::Closed(Arc::clone(&paused.facts))
            }
            Some(Entry::Creating) | None => Door::Missing,
        }
    }

    /// All running sandboxes, in no order.
    #[must_use]
    pub fn running(&self) -> Vec<Arc<Sandbox>> {
        let running = |entry: &Entry| match entry {
            Entry::Running(sandbox) => Some(Arc::clone(sandbox)),
            _ => None,
        };
        self.table().values().filter_map(running).collect()
    }

    /// A sandbox that clients can see.
    #[must_use]
    pub fn look(&self, id: &str) -> Option<Seen> {
        Seen::of(self.table().get(id)?)
    }

    /// All sandboxes that clients can see, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Seen> {
        self.table().values().filter_map(Seen::of).collect()
    }

    /// Running or Pausing → Gone: from this call on the data plane answers 502. False if this
    /// sandbox had no machine any more. The machine is stopped in the background.
    pub(super) fn end(&self, sandbox: &Arc<Sandbox>, reason: &Reason) -> bool {
        {
            let mut table = self.table();
            if !table.get(&sandbox.id).is_some_and(|e| e.is_of(sandbox)) {
                return false;
            }
            table.remove(&sandbox.id);
        }
        cut(sandbox);
        let id = &sandbox.id;
        match reason {
            Reason::Ended(how) => tracing::warn!(sandbox_id = id, how, "sandbox ended by itself"),
            Reason::Killed => tracing::info!(sandbox_id = id, "sandbox killed"),
            Reason::Deadline => tracing::info!(sandbox_id = id, "sandbox's time is over"),
            Reason::Shutdown => tracing::info!(sandbox_id = id, "sandbox ends with the server"),
        }
        true
    }

    /// Running → Pausing.
    pub(super) fn begin_pause(&self, id: &str) -> Result<Pausing, ApiError> {
        let mut table = self.table();
        if *self.closing.borrow() {
            return Err(ApiError::ShuttingDown);
        }
        let sandbox = match table.get(id) {
            Some(Entry::Running(sandbox)) => Arc::clone(sandbox),
            Some(Entry::Paused(_)) => return Err(conflict(id, "is paused already")),
            Some(Entry::Pausing(_)) => return Err(conflict(id, "is being paused")),
            Some(Entry::Resuming(..)) => return Err(conflict(id, "is being resumed")),
            Some(Entry::Creating) | None => return Err(missing(id)),
        };
        let saving = Arc::clone(&sandbox.body.saving);
        let busy = |_| conflict(id, "is being saved");
        let saving = saving.try_lock_owned().map_err(busy)?;
        table.insert(id.to_owned(), Entry::Pausing(Arc::clone(&sandbox)));
        Ok(Pausing {
            sandbox,
            _saving: saving,
        })
    }

    /// Pausing → Running: it could not be paused. False if it has been killed meanwhile.
    pub(super) fn abandon_pause(&self, sandbox: &Arc<Sandbox>) -> bool {
        let mut table = self.table();
        let there = table.get(&sandbox.id).is_some_and(|e| e.is_of(sandbox));
        if there {
            table.insert(sandbox.id.clone(), Entry::Running(Arc::clone(sandbox)));
        }
        there
    }

    /// Pausing → Running, with another machine. False if it has been killed meanwhile.
    pub(super) fn replace(&self, old: &Arc<Sandbox>, new: &Arc<Sandbox>) -> bool {
        {
            let mut table = self.table();
            if !table.get(&old.id).is_some_and(|e| e.is_of(old)) {
                return false;
            }
            table.insert(old.id.clone(), Entry::Running(Arc::clone(new)));
        }
        cut(old);
        true
    }

    /// Pausing → Paused. False if it has been killed meanwhile.
    pub(super) fn finish_pause(&self, sandbox: &Arc<Sandbox>, paused: &Arc<Paused>) -> bool {
        {
            let mut table = self.table();
            if !table.get(&sandbox.id).is_some_and(|e| e.is_of(sandbox)) {
                return false;
            }
            table.insert(sandbox.id.clone(), Entry::Paused(Arc::clone(paused)));
        }
        cut(sandbox);
        true
    }

    /// Paused → Resuming, or what is in the way.
    pub(super) fn begin_resume(&self, id: &str) -> Result<Resume, ApiError> {
        let mut table = self.table();
        Ok(match table.get(id) {
            Some(Entry::Running(sandbox)) => Resume::Running(Arc::clone(sandbox)),
            Some(Entry::Pausing(sandbox)) => Resume::Pausing(Arc::clone(sandbox)),
            Some(Entry::Resuming(_, done)) => Resume::Resuming(done.clone()),
            Some(Entry::Paused(_)) if *self.closing.borrow() => return Err(ApiError::ShuttingDown),
            Some(Entry::Paused(paused)) => {
                let paused = Arc::clone(paused);
                let (sender, done) = watch::channel(());
                table.insert(id.to_owned(), Entry::Resuming(Arc::clone(&paused), done));
                Resume::Begun(paused, sender)
            }
            Some(Entry::Creating) | None => return Err(missing(id)),
        })
    }

    /// Resuming → Running or Paused. False if it has been killed meanwhile.
    pub(super) fn finish_resume(&self, paused: &Arc<Paused>, entry: Entry) -> bool {
        let mut table = self.table();
        let id = &paused.facts.id;
        let own = |e: &Entry| matches!(e, Entry::Resuming(own, _) if Arc::ptr_eq(own, paused));
        let there = table.get(id).is_some_and(own);
        if there {
            table.insert(id.clone(), entry);
        }
        there
    }
}

/// What whoever wants a sandbox to run finds.
pub(super) enum Resume {
    /// It does.
    Running(Arc<Sandbox>),
    /// It is being paused.
    Pausing(Arc<Sandbox>),
    /// Somebody else resumes it; the receiver ends when that is over.
    Resuming(watch::Receiver<()>),
    /// The caller is to resume it, and to drop the sender then.
    Begun(Arc<Paused>, watch::Sender<()>),
}

/// A sandbox on its way to sleep; nobody else saves it.
pub(super) struct Pausing {
    pub(super) sandbox: Arc<Sandbox>,
    _saving: tokio::sync::OwnedMutexGuard<()>,
}

/// Ends what clients have open, and lets go of the machine.
fn cut(sandbox: &Sandbox) {
    sandbox.gone.send_replace(true);
    sandbox.link.close();
}

/// The paused sandboxes that a vault has. What cannot be read is logged, and is not there for clients.
pub(super) fn paused_ones(vault: &Vault) -> HashMap<String, Entry> {
    let headers = vault.list(PREFIX).unwrap_or_else(|error| {
        let error = chain(&error);
        tracing::error!(
            error,
            "paused sandboxes are not there: the store cannot be listed"
        );
        Vec::new()
    });
    let mut table = HashMap::new();
    for header in headers {
        match Paused::decode(&header.record, &header.id, header.shape) {
            Ok(paused) => {
                let id = paused.facts.id.clone();
                table.insert(id, Entry::Paused(Arc::new(paused)));
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(snapshot = %header.id, error, "a paused sandbox is not there");
            }
        }
    }
    if !table.is_empty() {
        tracing::info!(sandboxes = table.len(), "paused sandboxes found");
    }
    vault.sweep();
    table
}

/// 404 for an id, shortened.
pub(super) fn missing(id: &str) -> ApiError {
    ApiError::SandboxNotFound(id.chars().take(64).collect())
}

fn conflict(id: &str, what: &str) -> ApiError {
    ApiError::Conflict(format!("Sandbox {id:?} {what}"))
}
