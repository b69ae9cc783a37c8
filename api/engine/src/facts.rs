//! What a sandbox is to its clients, whatever machine it has or has not.

use crate::network::EgressPolicy;
use crate::owner::OwnerId;
use crate::template::Template;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a sandbox was made from, fixed at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxOrigin {
    /// A template's name, or a snapshot's id.
    pub template_id: String,
    /// The template whose kernel and image it has.
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

impl SandboxOrigin {
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

/// Most ports of a sandbox on which programs speak TLS.
pub const MAX_TLS_PORTS: usize = 128;

/// What a sandbox is to its clients, from its creation to its end: it stays the same when the
/// sandbox is paused and resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxFacts {
    /// `i` and 19 characters of `[a-z0-9]`.
    pub id: String,
    /// Whose it is, for good; `None`: everybody's, as an older version stored it.
    pub owner: Option<OwnerId>,
    /// The template.
    pub origin: SandboxOrigin,
    /// Set at creation, never changed.
    pub metadata: BTreeMap<String, String>,
    /// Environment that every process of the sandbox starts with, before its own: what
    /// [`crate::environment`] makes.
    pub env: BTreeMap<String, String>,
    /// The secret that whoever runs programs in it and reaches its files has to show; `None` leaves
    /// them open.
    pub access_token: Option<String>,
    /// Who reaches its other ports, and as what.
    pub ingress: IngressPolicy,
    /// The user when a request names none.
    pub default_user: String,
    /// The working directory when a request names none; `None`: the user's home.
    pub default_workdir: Option<String>,
    /// When the creation was answered.
    pub started_at: Timestamp,
    /// What happens at its deadline, and after.
    pub lifecycle: LifecyclePolicy,
    /// What it may reach over the network, when it begins; a running sandbox has the present one.
    pub egress: EgressPolicy,
}

/// Who reaches the ports of a sandbox's programs, and as what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngressPolicy {
    /// The secret that whoever reaches them has to show; `None` leaves them open.
    pub traffic_token: Option<String>,
    /// The host that programs are told in place of the one the client named; may hold `${PORT}`.
    pub mask_host: Option<String>,
    /// Ports on which the programs speak TLS.
    pub tls_ports: BTreeSet<u16>,
}

/// What happens to a sandbox at its deadline, and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifecyclePolicy {
    /// The time to live that its creator asked for.
    pub timeout: Duration,
    /// At the deadline.
    pub on_timeout: TimeoutAction,
    /// Whether traffic to the paused sandbox resumes it.
    pub auto_resume: bool,
}

/// What happens at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    /// The sandbox ends.
    Kill,
    /// It is paused, and this is kept.
    Pause(KeptState),
}

/// What is kept of a sandbox in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptState {
    /// Everything: its processes go on where they were.
    Memory,
    /// Its files: it boots when it is resumed.
    Files,
}
