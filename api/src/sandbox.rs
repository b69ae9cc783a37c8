//! One running sandbox, as everything outside the registry sees it.

use crate::checkpoints::Tree;
use crate::config::Template;
use crate::image::{Basis, Shape};
use crate::link::Link;
use crate::machine::Hand;
use crate::registry::{Handover, Start};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Facts about the template that a sandbox was made from, fixed at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// E2B's `templateID`: a template's name in the configuration, or a snapshot's id.
    pub template_id: String,
    /// The template in the configuration whose kernel and image it has.
    pub base: String,
    /// The first alias, if the template has any.
    pub alias: Option<String>,
    /// vCPUs.
    pub cpu_count: u8,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Root disk, MiB.
    pub disk_size_mb: u64,
    /// Whether it began in the middle of another sandbox, of which nothing is stored.
    pub forked: bool,
}

impl Origin {
    /// Of a sandbox that begins at its template's beginning; the size of its disk is not known yet.
    #[must_use]
    pub fn of(template: &Template) -> Self {
        Self {
            template_id: template.name.clone(),
            base: template.name.clone(),
            alias: template.aliases.first().cloned(),
            cpu_count: template.cpu_count,
            memory_mb: template.memory_mb,
            disk_size_mb: 0,
            forked: false,
        }
    }
}

/// What a sandbox is to its clients, from its creation to its end: it stays the same when the sandbox
/// is paused and resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `i` and 19 characters of `[a-z0-9]`.
    pub id: String,
    /// The template.
    pub origin: Origin,
    /// Set at creation, never changed.
    pub metadata: BTreeMap<String, String>,
    /// Environment that every process of the sandbox starts with, before its own: `E2B_SANDBOX`,
    /// `E2B_SANDBOX_ID`, `E2B_TEMPLATE_ID`, then the creator's `envVars` (api/PROTOCOL.md §7.8).
    pub env: BTreeMap<String, String>,
    /// What `X-Access-Token` must equal on the data plane; `None` leaves it open
    /// (api/PROTOCOL.md §7.5).
    pub access_token: Option<String>,
    /// The user when a request names none.
    pub default_user: String,
    /// The working directory when a request names none; `None`: the user's home.
    pub default_workdir: Option<String>,
    /// When the creation was answered.
    pub started_at: Timestamp,
    /// What happens at its deadline, and after.
    pub lifecycle: Lifecycle,
}

/// What happens to a sandbox at its deadline, and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    /// The time to live that its creator asked for.
    pub timeout: Duration,
    /// At the deadline.
    pub on_timeout: OnTimeout,
    /// Whether traffic to the paused sandbox resumes it.
    pub auto_resume: bool,
}

/// What happens at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// The sandbox ends.
    Kill,
    /// It is paused, and this is kept.
    Pause(Kept),
}

/// What is kept of a paused sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Everything: its processes go on where they stood.
    Memory,
    /// Its files: it boots when it is resumed.
    Files,
}

/// A running sandbox. Shared as `Arc<Sandbox>`; holding one does not keep the virtual machine
/// alive: when the machine ends, [`Sandbox::gone`] completes and the link's calls fail.
#[derive(Debug)]
pub struct Sandbox {
    /// What it is; a sandbox has the fields of its facts.
    pub facts: Arc<Facts>,
    /// The connection to the guest agent.
    pub link: Link,
    /// What the envd facade knows about this sandbox's processes.
    pub(crate) processes: crate::envd::Processes,
    pub(crate) deadline: watch::Sender<Deadline>,
    pub(crate) gone: watch::Sender<bool>,
    /// How, if it ended by itself.
    pub(crate) ended: OnceLock<String>,
    pub(crate) body: MachineBody,
}

/// What the registry needs of a sandbox's machine while another task owns it.
#[derive(Debug)]
pub(crate) struct MachineBody {
    pub(crate) hand: Hand,
    pub(crate) shape: Shape,
    /// What it began at; `None` if it booted.
    pub(crate) basis: Option<Arc<Basis>>,
    /// Where it went on first; `None`: it began at its template's beginning.
    pub(crate) start: Option<Arc<Start>>,
    /// Its checkpoints.
    pub(crate) tree: Arc<Tree>,
    /// Whoever saves it, or puts another in its place, holds this: one at a time.
    pub(crate) saving: Arc<tokio::sync::Mutex<()>>,
    /// How whoever resets it gets its machine.
    pub(crate) handover: Handover,
}

impl std::ops::Deref for Sandbox {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.facts
    }
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

impl Facts {
    /// The environment that its creator asked for.
    #[must_use]
    pub fn asked_env(&self) -> BTreeMap<String, String> {
        let own = ["E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID"];
        let asked = self.env.iter().filter(|(key, _)| !own.contains(&&***key));
        asked.map(|(k, v)| (k.clone(), v.clone())).collect()
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

    /// Completes when nobody saves or replaces its machine at this moment.
    pub async fn settled(&self) {
        drop(self.body.saving.lock().await);
    }

    /// Completes when the sandbox has ended. From then on the data plane answers 502.
    pub async fn gone(&self) {
        let mut gone = self.gone.subscribe();
        // The sender is in `self`, so this cannot fail.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}
