//! One running sandbox, as everything outside the registry sees it.

use crate::link::Link;
use jiff::Timestamp;
use std::collections::BTreeMap;
use tokio::sync::watch;

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
    pub(crate) end_at: watch::Sender<Timestamp>,
    pub(crate) gone: watch::Receiver<bool>,
}

impl Sandbox {
    /// When the sandbox will be killed.
    #[must_use]
    pub fn end_at(&self) -> Timestamp {
        *self.end_at.borrow()
    }

    /// Whether the sandbox has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Completes when the sandbox has ended. From then on the data plane answers 502.
    pub async fn gone(&self) {
        let mut gone = self.gone.clone();
        // An error means that the registry's entry is dropped, which is gone too.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}
