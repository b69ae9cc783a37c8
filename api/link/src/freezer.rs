//! Stopping all processes of a guest while its machine is saved.
//!
//! A machine that begins as another one was has nobody's name and the other's randomness until it
//! takes an identity. No process may go on before: they are stopped before the save, and go on with
//! the new identity there, with a thaw in the machine that was saved. A start that is under way is
//! waited for; one that comes meanwhile waits.

use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Whether processes are stopped, and the turns of those that start one.
#[derive(Debug)]
pub(crate) struct Freezer {
    /// The agent can stop processes.
    usable: bool,
    /// Read by each start that is under way, written while processes are stopped.
    starts: Arc<RwLock<()>>,
    held: Mutex<Option<OwnedRwLockWriteGuard<()>>>,
}

impl Freezer {
    pub(crate) fn new(usable: bool) -> Self {
        Self {
            usable,
            starts: Arc::default(),
            held: Mutex::default(),
        }
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.usable
    }

    /// Waits until processes may be started, and has them not stopped before this is dropped.
    pub(crate) async fn start(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.starts).read_owned().await
    }

    /// Waits for starts that are under way, and holds back those to come until
    /// [`Freezer::release`].
    pub(crate) async fn hold(&self) {
        let turn = Arc::clone(&self.starts).write_owned().await;
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
    }

    /// What holds starts back as long as it lives; `None` if nothing does.
    pub(crate) fn release(&self) -> Option<OwnedRwLockWriteGuard<()>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.take()
    }
}
