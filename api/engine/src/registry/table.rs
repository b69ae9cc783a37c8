//! The table itself: who is in which state. What a request may do there is decided by
//! [`transition`]; that an entry is still the caller's own sandbox is checked here.

use crate::error::EngineError;
use crate::facts::SandboxFacts;
use crate::owner::{Caller, OwnerId};
use crate::registry::counted::{Counted as _, CountedTable};
use crate::registry::entry::TableEntry;
use crate::registry::sandboxes::{EndReason, SandboxRegistry};
use crate::registry::transitions::{BusyReason, SandboxRequest, Transition, transition};
use crate::registry::view::{RouteState, SandboxView};
use crate::sandbox::Sandbox;
use crate::store::checkpoint_tree::CheckpointTree;
use crate::store::paused::PausedSandbox;
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::sync::{OwnedMutexGuard, watch};

/// Most requests that wait for one sandbox's turn, a pause apart.
const MAX_WAITING: usize = 256;

/// What a transition that does not proceed says to whoever asked.
fn refused(id: &str, transition: Transition) -> EngineError {
    match transition {
        Transition::Conflict(what) => EngineError::Conflict(format!("Sandbox {id:?} {what}")),
        Transition::ShuttingDown => EngineError::ShuttingDown,
        _ => EngineError::no_sandbox(id),
    }
}

impl SandboxRegistry {
    pub(super) fn table(&self) -> MutexGuard<'_, CountedTable<TableEntry>> {
        // No code panics while it holds the lock; if some does, the table is still whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a request to this entry now. For whoever holds the table.
    pub(super) fn transition(
        &self,
        entry: Option<&TableEntry>,
        request: SandboxRequest,
    ) -> Transition {
        transition(TableEntry::state(entry), request, *self.closing.borrow())
    }

    /// How many sandboxes have a machine, or will.
    pub(super) fn alive(&self) -> usize {
        self.table().all().alive
    }

    /// Whose a sandbox is that is there for the caller: one that is another's is as one that is not
    /// there.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`].
    pub(super) fn own(&self, who: &Caller, id: &str) -> Result<Option<OwnerId>, EngineError> {
        let table = self.table();
        match table.get(id).filter(|entry| entry.is_seen_by(who)) {
            Some(TableEntry::Creating(_)) | None => Err(EngineError::no_sandbox(id)),
            Some(entry) => Ok(entry.owner().cloned()),
        }
    }

    /// A running sandbox of the caller's.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`], also for a paused one; [`EngineError::Conflict`] for one
    /// that is being paused, resumed or reset.
    pub fn running_one(&self, who: &Caller, id: &str) -> Result<Arc<Sandbox>, EngineError> {
        let table = self.table();
        let entry = table.get(id).filter(|entry| entry.is_seen_by(who));
        match (self.transition(entry, SandboxRequest::Use), entry) {
            (
                Transition::Proceed,
                Some(TableEntry::Running(sandbox) | TableEntry::Busy(sandbox, _)),
            ) => Ok(Arc::clone(sandbox)),
            (other, _) => Err(refused(id, other)),
        }
    }

    /// What traffic to a sandbox meets.
    pub(super) fn route_state(&self, id: &str) -> RouteState {
        let table = self.table();
        let entry = table.get(id);
        match (self.transition(entry, SandboxRequest::Traffic), entry) {
            (Transition::Proceed, Some(TableEntry::Running(sandbox))) => {
                RouteState::Running(Arc::clone(sandbox))
            }
            (Transition::Wait, Some(TableEntry::Busy(sandbox, _))) => {
                RouteState::Quiesced(Arc::clone(sandbox))
            }
            (Transition::Conflict(_), Some(TableEntry::Busy(sandbox, _))) => {
                RouteState::Pausing(Arc::clone(&sandbox.facts))
            }
            (
                Transition::Become(_),
                Some(TableEntry::Paused(paused) | TableEntry::Resuming(paused, _)),
            ) => RouteState::Paused(Arc::clone(&paused.facts)),
            _ => RouteState::Missing,
        }
    }

    /// All running sandboxes, in no order.
    #[must_use]
    pub fn running(&self) -> Vec<Arc<Sandbox>> {
        let running = |entry: &TableEntry| match entry {
            TableEntry::Running(sandbox) => Some(Arc::clone(sandbox)),
            _ => None,
        };
        self.table().values().filter_map(running).collect()
    }

    /// A sandbox that the caller can see.
    #[must_use]
    pub fn look(&self, who: &Caller, id: &str) -> Option<SandboxView> {
        let table = self.table();
        let entry = table.get(id).filter(|entry| entry.is_seen_by(who));
        SandboxView::of(entry?)
    }

    /// A sandbox that anybody can see, whosever it is: for traffic that has its token.
    #[must_use]
    pub fn look_any(&self, id: &str) -> Option<SandboxView> {
        SandboxView::of(self.table().get(id)?)
    }

    /// All sandboxes that the caller can see, in no order.
    #[must_use]
    pub fn list(&self, who: &Caller) -> Vec<SandboxView> {
        let table = self.table();
        let seen = table.values().filter(|entry| entry.is_seen_by(who));
        seen.filter_map(SandboxView::of).collect()
    }

    /// All sandboxes that anybody can see, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<SandboxView> {
        self.table().values().filter_map(SandboxView::of).collect()
    }

    /// The facts and checkpoints of a sandbox of the caller's in any state.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`].
    pub(super) fn tree_of(
        &self,
        who: &Caller,
        id: &str,
    ) -> Result<(Arc<SandboxFacts>, Arc<CheckpointTree>), EngineError> {
        let table = self.table();
        let entry = table.get(id).filter(|entry| entry.is_seen_by(who));
        match entry {
            Some(TableEntry::Running(sandbox) | TableEntry::Busy(sandbox, _)) => Ok((
                Arc::clone(&sandbox.facts),
                Arc::clone(&sandbox.machine.tree),
            )),
            Some(TableEntry::Paused(paused) | TableEntry::Resuming(paused, _)) => {
                Ok((Arc::clone(&paused.facts), Arc::clone(&paused.tree)))
            }
            Some(TableEntry::Creating(_)) | None => {
                Err(refused(id, self.transition(entry, SandboxRequest::View)))
            }
        }
    }

    /// Running or Busy → Gone: from this call on the data plane answers 502. False if this
    /// sandbox had no machine any more. The machine is stopped in the background.
    pub(super) fn end(&self, sandbox: &Arc<Sandbox>, reason: &EndReason) -> bool {
        {
            let mut table = self.table();
            if !table.get(&sandbox.id).is_some_and(|e| e.is_of(sandbox)) {
                return false;
            }
            table.remove(&sandbox.id);
        }
        if let EndReason::Ended(how) = reason {
            let _ = sandbox.ended.set(how.clone());
        }
        cut(sandbox);
        self.delete_tree(&sandbox.machine.tree);
        reason.note(&sandbox.id);
        true
    }

    /// Running → Busy, one after the other: who comes while somebody else is at it waits.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`]; [`EngineError::Conflict`] for a sandbox that is paused, or
    /// about to be paused or resumed, or that too many wait for; [`EngineError::LimitReached`] for
    /// a pause that there is no place for; [`EngineError::ShuttingDown`].
    pub(super) async fn begin_work(
        &self,
        id: &str,
        reason: BusyReason,
    ) -> Result<BusySandbox, EngineError> {
        let mut held: Option<(Arc<Sandbox>, OwnedMutexGuard<()>)> = None;
        loop {
            let busy = {
                let mut table = self.table();
                let entry = table.get(id);
                match (self.transition(entry, SandboxRequest::Work(reason)), entry) {
                    (Transition::Become(_), Some(TableEntry::Running(sandbox))) => {
                        let sandbox = Arc::clone(sandbox);
                        let own = held.take().filter(|(own, _)| Arc::ptr_eq(own, &sandbox));
                        let free = || Arc::clone(&sandbox.machine.turn).try_lock_owned().ok();
                        if reason == BusyReason::Pause {
                            self.admit_pause(&table, sandbox.owner.as_ref())?;
                        }
                        if let Some(turn) = own.map(|(_, turn)| turn).or_else(free) {
                            let busy = TableEntry::Busy(Arc::clone(&sandbox), reason);
                            table.insert(id.to_owned(), busy);
                            return Ok(BusySandbox {
                                sandbox,
                                _turn: turn,
                            });
                        }
                        sandbox
                    }
                    (Transition::Wait, Some(TableEntry::Busy(sandbox, _))) => Arc::clone(sandbox),
                    (other, _) => return Err(refused(id, other)),
                }
            };
            drop(held.take());
            // Those of a client that leaves wait on, in tasks of their own.
            let waiting = Arc::strong_count(&busy.machine.turn);
            if waiting > MAX_WAITING && reason != BusyReason::Pause {
                return Err(EngineError::Conflict(format!(
                    "Sandbox {id:?} has {MAX_WAITING} requests that wait for each other to save or \
                     reset it: send this one again when they are done"
                )));
            }
            let turn = Arc::clone(&busy.machine.turn).lock_owned().await;
            held = Some((busy, turn));
        }
    }

    /// Busy → Running, with the machine it has. False if it has been killed meanwhile.
    pub(super) fn go_on(&self, sandbox: &Arc<Sandbox>) -> bool {
        let running = TableEntry::Running(Arc::clone(sandbox));
        self.change(sandbox, SandboxRequest::GoOn, running)
    }

    /// Busy → Running, with another machine. False if it has been killed meanwhile.
    pub(super) fn replace(&self, old: &Arc<Sandbox>, new: &Arc<Sandbox>) -> bool {
        let running = TableEntry::Running(Arc::clone(new));
        let replaced = self.change(old, SandboxRequest::GoOn, running);
        if replaced {
            cut(old);
        }
        replaced
    }

    /// Busy → Paused. False if it has been killed meanwhile.
    pub(super) fn finish_pause(&self, sandbox: &Arc<Sandbox>, paused: &Arc<PausedSandbox>) -> bool {
        let paused = TableEntry::Paused(Arc::clone(paused));
        let changed = self.change(sandbox, SandboxRequest::FinishPause, paused);
        if changed {
            cut(sandbox);
        }
        changed
    }

    /// The sandbox's entry from now on. False if it has been killed meanwhile.
    fn change(&self, sandbox: &Arc<Sandbox>, request: SandboxRequest, next: TableEntry) -> bool {
        let mut table = self.table();
        let entry = table.get(&sandbox.id);
        let allowed = matches!(self.transition(entry, request), Transition::Become(_));
        let changed = allowed && entry.is_some_and(|entry| entry.is_of(sandbox));
        if changed {
            table.insert(sandbox.id.clone(), next);
        }
        changed
    }

    /// Paused → Resuming, or what is in the way.
    pub(super) fn begin_resume(&self, id: &str) -> Result<ResumeStart, EngineError> {
        let mut table = self.table();
        let entry = table.get(id);
        Ok(
            match (self.transition(entry, SandboxRequest::Resume), entry) {
                (Transition::Proceed, Some(TableEntry::Running(sandbox))) => {
                    ResumeStart::Running(Arc::clone(sandbox))
                }
                (Transition::Wait, Some(TableEntry::Busy(sandbox, _))) => {
                    ResumeStart::Busy(Arc::clone(sandbox))
                }
                (Transition::Wait, Some(TableEntry::Resuming(_, done))) => {
                    ResumeStart::Resuming(done.clone())
                }
                (Transition::Become(_), Some(TableEntry::Paused(paused))) => {
                    let paused = Arc::clone(paused);
                    self.admit_resume(&table, paused.facts.owner.as_ref())?;
                    let (sender, done) = watch::channel(());
                    let resuming = TableEntry::Resuming(Arc::clone(&paused), done);
                    table.insert(id.to_owned(), resuming);
                    ResumeStart::Begun(paused, sender)
                }
                (other, _) => return Err(refused(id, other)),
            },
        )
    }

    /// Resuming → Running. False if it has been killed meanwhile.
    pub(super) fn finish_resume(
        &self,
        paused: &Arc<PausedSandbox>,
        sandbox: &Arc<Sandbox>,
    ) -> bool {
        let running = TableEntry::Running(Arc::clone(sandbox));
        self.end_resume(paused, SandboxRequest::FinishResume, running)
    }

    /// Resuming → Paused. False if it has been killed meanwhile.
    pub(super) fn fail_resume(&self, paused: &Arc<PausedSandbox>) -> bool {
        let again = TableEntry::Paused(Arc::clone(paused));
        self.end_resume(paused, SandboxRequest::FailResume, again)
    }

    fn end_resume(
        &self,
        paused: &Arc<PausedSandbox>,
        request: SandboxRequest,
        next: TableEntry,
    ) -> bool {
        let mut table = self.table();
        let id = &paused.facts.id;
        let entry = table.get(id);
        let allowed = matches!(self.transition(entry, request), Transition::Become(_));
        let own = |entry: &TableEntry| match entry {
            TableEntry::Resuming(own, _) => Arc::ptr_eq(own, paused),
            _ => false,
        };
        let changed = allowed && entry.is_some_and(own);
        if changed {
            table.insert(id.clone(), next);
        }
        changed
    }
}

/// What whoever wants a sandbox to run finds.
pub(super) enum ResumeStart {
    /// It does.
    Running(Arc<Sandbox>),
    /// Somebody works at its machine.
    Busy(Arc<Sandbox>),
    /// Somebody else resumes it; the receiver ends when that is over.
    Resuming(watch::Receiver<()>),
    /// The caller is to resume it, and to drop the sender then.
    Begun(Arc<PausedSandbox>, watch::Sender<()>),
}

/// A sandbox whose machine nobody else saves or replaces.
#[derive(Debug)]
pub(super) struct BusySandbox {
    pub(super) sandbox: Arc<Sandbox>,
    /// Held until the next one may begin.
    _turn: OwnedMutexGuard<()>,
}

/// Ends what clients have open, and lets go of the machine.
fn cut(sandbox: &Sandbox) {
    sandbox.gone.send_replace(true);
    sandbox.link.close();
}
