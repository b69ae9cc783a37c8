//! One running sandbox, as everything outside the registry sees it.

use crate::link::Link;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Facts about the template that a sandbox was made from, fixed at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The template's name in the configuration; E2B's `templateID`.
    pub template_id: String,
    /// The first alias, if the template has any.
    pub alias: Option<String>,
    /// vCPUs.
    pub cpu_count: u8,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Root disk, MiB.
    pub disk_size_mb: u64,
}

/// A running sandbox. Shared as `Arc<Sandbox>`; holding one does not keep the virtual machine
/// alive: when the machine ends, [`Sandbox::gone`] completes and the link's calls fail.
#[derive(Debug)]
pub struct Sandbox {
    /// `i` and 19 characters of `[a-z0-9]`.
    pub id: String,
    /// The template.
    pub origin: Origin,
    /// Set at creation, never changed.
    pub metadata: BTreeMap<String, String>,
    /// Environment that every process of the sandbox starts with, before its own: `E2B_SANDBOX`,
    /// `E2B_SANDBOX_ID`, `E2B_TEMPLATE_ID`, then the creator's `envVars` (e2b.md §3.2).
    pub env: BTreeMap<String, String>,
    /// What `X-Access-Token` must equal on the data plane; `None` leaves it open (e2b.md §3.1).
    pub access_token: Option<String>,
    /// The user when a request names none.
    pub default_user: String,
    /// The working directory when a request names none; `None`: the user's home.
    pub default_workdir: Option<String>,
    /// When the creation was answered.
    pub started_at: Timestamp,
    /// The connection to the guest agent.
    pub link: Link,
    /// What the envd facade knows about this sandbox's processes.
    pub(crate) processes: crate::envd::Processes,
    pub(crate) deadline: watch::Sender<Deadline>,
    pub(crate) gone: watch::Sender<bool>,
}

/// An end in both clocks: the wall's for clients, the machine's for waiting, so that setting the
/// clock neither kills nor revives a sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Timestamp,
    pub(crate) instant: Instant,
}

impl Deadline {
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

    /// Moves the end to `time` from now.
    pub(crate) fn set_timeout(&self, time: Duration) {
        self.deadline.send_replace(Deadline::after(time));
    }

    /// Moves the end to `time` from now if that is later than it is.
    pub(crate) fn extend(&self, time: Duration) {
        let new = Deadline::after(time);
        self.deadline.send_if_modified(|deadline| {
            let later = new.instant > deadline.instant;
            if later {
                *deadline = new;
            }
            later
        });
    }

    /// Whether the sandbox has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Completes when the sandbox has ended. From then on the data plane answers 502.
    pub async fn gone(&self) {
        let mut gone = self.gone.subscribe();
        // The sender is in `self`, so this cannot fail.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}
