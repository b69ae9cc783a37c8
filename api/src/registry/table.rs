//! The table itself: who is in which state, and what may happen from there.

use super::{Reason, Registry};
use crate::checkpoints::Tree;
use crate::error::ApiError;
use crate::paused::Paused;
use crate::sandbox::{Facts, Kept, Sandbox};
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::sync::{OwnedMutexGuard, watch};

/// A sandbox's state.
#[derive(Debug)]
pub(super) enum Entry {
    /// Being made; nobody knows its id yet.
    Creating,
    /// With a machine that runs.
    Running(Arc<Sandbox>),
    /// With a machine that somebody works at: it becomes `Paused`, or `Running` again.
    Busy(Arc<Sandbox>, Why),
    /// Without a machine.
    Paused(Arc<Paused>),
    /// With a machine in the making: it becomes `Running`, or `Paused` again; then the sender of
    /// this receiver goes.
    Resuming(Arc<Paused>, watch::Receiver<()>),
}

/// What is done to a sandbox's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is saved, and then it goes.
    Pause,
    /// It is saved, stands still meanwhile, and goes on.
    Save,
    /// Another one takes its place.
    Reset,
}

impl Why {
    /// Why something else cannot be done.
    const fn words(self) -> &'static str {
        match self {
            Self::Pause => "is being paused",
            Self::Save => "is being saved",
            Self::Reset => "is being reset",
        }
    }
}

impl Entry {
    /// Whether a machine belongs to it.
    pub(super) const fn is_alive(&self) -> bool {
        !matches!(self, Self::Paused(_))
    }

    /// Whether this very incarnation of a sandbox has a machine that is its own.
    fn is_of(&self, sandbox: &Arc<Sandbox>) -> bool {
        match self {
            Self::Running(own) | Self::Busy(own, _) => Arc::ptr_eq(own, sandbox),
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
            Entry::Busy(sandbox, Why::Pause) => Self {
                facts: Arc::clone(&sandbox.facts),
                end_at: Timestamp::now(),
                paused: Some(Kept::Memory),
            },
            Entry::Running(sandbox) | Entry::Busy(sandbox, Why::Save | Why::Reset) => Self {
                facts: Arc::clone(&sandbox.facts),
                end_at: sandbox.end_at(),
                paused: None,
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
    /// It stands still for a moment: [`Sandbox::settled`], then look again.
    Still(Arc<Sandbox>),
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
    /// being paused, resumed or reset.
    pub fn running_one(&self, id: &str) -> Result<Arc<Sandbox>, ApiError> {
        match self.table().get(id) {
            Some(Entry::Running(sandbox) | Entry::Busy(sandbox, Why::Save)) => {
                Ok(Arc::clone(sandbox))
            }
            Some(Entry::Busy(_, why)) => Err(conflict(id, why.words())),
            Some(Entry::Resuming(..)) => Err(conflict(id, "is being resumed")),
            _ => Err(missing(id)),
        }
    }

    /// What traffic to a sandbox meets.
    #[must_use]
    pub fn door(&self, id: &str) -> Door {
        match self.table().get(id) {
            Some(Entry::Running(sandbox)) => Door::Open(Arc::clone(sandbox)),
            Some(Entry::Busy(sandbox, Why::Pause)) => Door::Pausing(Arc::clone(&sandbox.facts)),
            Some(Entry::Busy(sandbox, _)) => Door::Still(Arc::clone(sandbox)),
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

    /// Running or Busy → Gone: from this call on the data plane answers 502. False if this
    /// sandbox had no machine any more. The machine is stopped in the background.
    pub(super) fn end(&self, sandbox: &Arc<Sandbox>, reason: &Reason) -> bool {
        {
            let mut table = self.table();
            if !table.get(&sandbox.id).is_some_and(|e| e.is_of(sandbox)) {
                return false;
            }
            table.remove(&sandbox.id);
        }
        if let Reason::Ended(how) = reason {
            let _ = sandbox.ended.set(how.clone());
        }
        cut(sandbox);
        self.fell(&sandbox.body.tree);
        let id = &sandbox.id;
        match reason {
            Reason::Ended(how) => tracing::warn!(sandbox_id = id, how, "sandbox ended by itself"),
            Reason::Killed => tracing::info!(sandbox_id = id, "sandbox killed"),
            Reason::Deadline => tracing::info!(sandbox_id = id, "sandbox's time is over"),
            Reason::Shutdown => tracing::info!(sandbox_id = id, "sandbox ends with the server"),
        }
        true
    }

    /// The facts and checkpoints of a sandbox in any state.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`].
    pub(super) fn tree_of(&self, id: &str) -> Result<(Arc<Facts>, Arc<Tree>), ApiError> {
        match self.table().get(id) {
            Some(Entry::Running(sandbox) | Entry::Busy(sandbox, _)) => {
                Ok((Arc::clone(&sandbox.facts), Arc::clone(&sandbox.body.tree)))
            }
            Some(Entry::Paused(paused) | Entry::Resuming(paused, _)) => {
                Ok((Arc::clone(&paused.facts), Arc::clone(&paused.tree)))
            }
            Some(Entry::Creating) | None => Err(missing(id)),
        }
    }

    /// Running → Busy, one after the other: who comes while somebody else is at it waits.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`]; [`ApiError::Conflict`] for a sandbox that is paused, or about to be
    /// paused or resumed; [`ApiError::ShuttingDown`].
    pub(super) async fn begin(&self, id: &str, why: Why) -> Result<Busy, ApiError> {
        let mut held: Option<(Arc<Sandbox>, OwnedMutexGuard<()>)> = None;
        loop {
            let busy = {
                let mut table = self.table();
                if *self.closing.borrow() {
                    return Err(ApiError::ShuttingDown);
                }
                match table.get(id) {
                    Some(Entry::Running(sandbox)) => {
                        let sandbox = Arc::clone(sandbox);
                        let own = held.take().filter(|(own, _)| Arc::ptr_eq(own, &sandbox));
                        let free = || Arc::clone(&sandbox.body.saving).try_lock_owned().ok();
                        if let Some(turn) = own.map(|(_, turn)| turn).or_else(free) {
                            table.insert(id.to_owned(), Entry::Busy(Arc::clone(&sandbox), why));
                            return Ok(Busy {
                                sandbox,
                                _turn: turn,
                            });
                        }
                        sandbox
                    }
                    Some(Entry::Busy(sandbox, Why::Save | Why::Reset)) => Arc::clone(sandbox),
                    Some(Entry::Busy(_, other)) => return Err(conflict(id, other.words())),
                    Some(Entry::Paused(_)) => return Err(conflict(id, "is paused already")),
                    Some(Entry::Resuming(..)) => return Err(conflict(id, "is being resumed")),
                    Some(Entry::Creating) | None => return Err(missing(id)),
                }
            };
            drop(held.take());
            let turn = Arc::clone(&busy.body.saving).lock_owned().await;
            held = Some((busy, turn));
        }
    }

    /// Busy → Running, with the machine it has. False if it has been killed meanwhile.
    pub(super) fn go_on(&self, sandbox: &Arc<Sandbox>) -> bool {
        let mut table = self.table();
        let there = table.get(&sandbox.id).is_some_and(|e| e.is_of(sandbox));
        if there {
            table.insert(sandbox.id.clone(), Entry::Running(Arc::clone(sandbox)));
        }
        there
    }

    /// Busy → Running, with another machine. False if it has been killed meanwhile.
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

    /// Busy → Paused. False if it has been killed meanwhile.
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
            Some(Entry::Busy(sandbox, _)) => Resume::Busy(Arc::clone(sandbox)),
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
    /// Somebody works at its machine.
    Busy(Arc<Sandbox>),
    /// Somebody else resumes it; the receiver ends when that is over.
    Resuming(watch::Receiver<()>),
    /// The caller is to resume it, and to drop the sender then.
    Begun(Arc<Paused>, watch::Sender<()>),
}

/// A sandbox whose machine nobody else saves or replaces.
pub(super) struct Busy {
    pub(super) sandbox: Arc<Sandbox>,
    /// Held until the next one may begin.
    _turn: OwnedMutexGuard<()>,
}

/// Ends what clients have open, and lets go of the machine.
fn cut(sandbox: &Sandbox) {
    sandbox.gone.send_replace(true);
    sandbox.link.close();
}

/// 404 for an id, shortened.
pub(super) fn missing(id: &str) -> ApiError {
    ApiError::SandboxNotFound(id.chars().take(64).collect())
}

fn conflict(id: &str, what: &str) -> ApiError {
    ApiError::Conflict(format!("Sandbox {id:?} {what}"))
}
