//! Keeps a counting lab running for as long as somebody uses it.
//!
//! A lab that counts instructions skips idle time: with nothing to do, its clock rushes from timer
//! to timer and takes a processor of this machine. So it stands still unless a command runs in it.
//! Everybody who runs one holds a shared lock on a file; the last to leave stops the machine.

use super::qmp::QmpClient;
use super::state::LabPlace;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::File;
use std::path::PathBuf;

/// While this exists, the lab runs.
pub(super) struct AwakeLab {
    users: File,
    qmp: PathBuf,
}

impl AwakeLab {
    /// Makes the lab run, unless it does already.
    pub(super) fn take(place: &LabPlace) -> Result<Self> {
        let path = place.users();
        let users = File::options().create(true).append(true).open(&path);
        let users = users.with_context(|| format!("Opening {}", path.display()))?;
        users
            .lock_shared()
            .with_context(|| format!("Locking {}", path.display()))?;
        let qmp = place.qmp();
        QmpClient::connect(&qmp)?.execute("cont", &json!({}))?;
        Ok(Self { users, qmp })
    }
}

impl Drop for AwakeLab {
    fn drop(&mut self) {
        // Whoever comes next waits for this lock, so its "cont" follows our "stop".
        if self.users.unlock().is_ok() && self.users.try_lock().is_ok() {
            let _ =
                QmpClient::connect(&self.qmp).and_then(|mut qmp| qmp.execute("stop", &json!({})));
        }
    }
}
