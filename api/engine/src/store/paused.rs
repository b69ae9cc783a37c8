//! One paused sandbox, and how it is written down.

use crate::error::chain;
use crate::facts::{
    IngressPolicy, KeptState, LifecyclePolicy, MAX_TLS_PORTS, SandboxFacts, SandboxOrigin,
    TimeoutAction,
};
use crate::ids::is_sandbox_id;
use crate::image::machine_image::MachineShape;
use crate::network::EgressPolicy;
use crate::owner::OwnerId;
use crate::process::{ProcessRecord, ProcessRecordV1};
use crate::restore_point::RestorePoint;
use crate::store::checkpoint_tree::CheckpointTree;
use crate::store::egress_record::EgressV1;
use crate::store::record::{bad_env, record_version};
use crate::store::vault::StoredHeader;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use snapshot_store::{SnapshotId, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Names of paused sandboxes in the store begin with it.
pub const PREFIX: &str = "paused-";
/// The last [`SandboxRecordV1::version`].
const VERSION: u32 = 4;
/// The one of a sandbox whose requests get no headers, which an older program reads.
const VERSION_WITHOUT_HEADERS: u32 = 3;
/// The one of a sandbox whose ports and network are as they were before, which an older program
/// reads.
const VERSION_WITHOUT_NETWORK: u32 = 2;
/// Most bytes of a token, user, folder or template name that is read back.
const MAX_TEXT: usize = 4096;
/// Most processes, metadata entries and checkpoints that are read back.
const MAX_ENTRIES: usize = 4096;

/// A sandbox without a machine; that is in the store.
#[derive(Debug)]
pub struct PausedSandbox {
    /// What it is.
    pub facts: Arc<SandboxFacts>,
    /// When it was paused.
    pub paused_at: Timestamp,
    /// What is kept of it.
    pub kept: KeptState,
    /// The processes that clients had started.
    pub processes: Vec<ProcessRecord>,
    /// Where it went on first, if that is in memory still.
    pub restore_point: Option<Arc<RestorePoint>>,
    /// Its checkpoints.
    pub tree: Arc<CheckpointTree>,
}

/// Why a record is refused.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It does not decode.
    #[error("The record of a paused sandbox does not decode")]
    Decode(#[from] serde_json::Error),
    /// It is of another version of this program.
    #[error("The record of a paused sandbox has version {0}, this program reads up to {VERSION}")]
    Version(u32),
    /// It decodes and is wrong.
    #[error("The record of a paused sandbox has a bad {what}: {value}")]
    Invalid {
        /// Which field.
        what: &'static str,
        /// Its value, shortened.
        value: String,
    },
}

/// The record as it lies on the disk, JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SandboxRecordV1 {
    version: u32,
    id: String,
    template_id: String,
    base: String,
    alias: Option<String>,
    cpu_count: u8,
    memory_mb: u32,
    disk_size_mb: u64,
    forked: bool,
    metadata: BTreeMap<String, String>,
    env: BTreeMap<String, String>,
    access_token: Option<String>,
    default_user: String,
    default_workdir: Option<String>,
    started_at_us: i64,
    paused_at_us: i64,
    timeout_s: u64,
    on_timeout: OnTimeoutV1,
    auto_resume: bool,
    kept: KeptV1,
    processes: Vec<ProcessRecordV1>,
    /// The checkpoint that it descends from, and that one's ancestors.
    #[serde(default)]
    checkpoints: Vec<String>,
    /// From version 2 on; none: everybody's.
    #[serde(default)]
    owner: Option<String>,
    /// From version 3 on; none: what is allowed to everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    egress: Option<EgressV1>,
    /// From version 3 on; none: its ports are open, and nothing is masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ingress: Option<IngressV1>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IngressV1 {
    traffic_token: Option<String>,
    mask_host: Option<String>,
    tls_ports: BTreeSet<u16>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnTimeoutV1 {
    Kill,
    PauseMemory,
    PauseFiles,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptV1 {
    Memory,
    Files,
}

/// The name of a sandbox's state in the store.
///
/// # Errors
/// [`StoreError::Name`] for an id that is none.
pub fn stored_name(id: &str) -> Result<SnapshotId, StoreError> {
    SnapshotId::new(&format!("{PREFIX}{id}"))
}

impl PausedSandbox {
    /// The record to store.
    ///
    /// # Errors
    /// When it does not encode.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let SandboxFacts {
            id,
            owner,
            origin,
            metadata,
            env,
            access_token,
            ingress,
            default_user,
            default_workdir,
            started_at,
            lifecycle,
            egress,
        } = &*self.facts;
        let ingress = IngressV1::of(ingress);
        let egress: Option<EgressV1> = (*egress != EgressPolicy::default()).then(|| egress.into());
        let record = SandboxRecordV1 {
            version: match (&ingress, &egress) {
                (None, None) => VERSION_WITHOUT_NETWORK,
                (_, Some(egress)) if egress.has_authority() => VERSION,
                _ => VERSION_WITHOUT_HEADERS,
            },
            id: id.clone(),
            template_id: origin.template_id.clone(),
            base: origin.base.clone(),
            alias: origin.alias.clone(),
            cpu_count: origin.cpu_count,
            memory_mb: origin.memory_mb,
            disk_size_mb: origin.disk_size_mb,
            forked: origin.forked,
            metadata: metadata.clone(),
            env: env.clone(),
            access_token: access_token.clone(),
            default_user: default_user.clone(),
            default_workdir: default_workdir.clone(),
            started_at_us: started_at.as_microsecond(),
            paused_at_us: self.paused_at.as_microsecond(),
            timeout_s: lifecycle.timeout.as_secs(),
            on_timeout: match lifecycle.on_timeout {
                TimeoutAction::Kill => OnTimeoutV1::Kill,
                TimeoutAction::Pause(KeptState::Memory) => OnTimeoutV1::PauseMemory,
                TimeoutAction::Pause(KeptState::Files) => OnTimeoutV1::PauseFiles,
            },
            auto_resume: lifecycle.auto_resume,
            kept: match self.kept {
                KeptState::Memory => KeptV1::Memory,
                KeptState::Files => KeptV1::Files,
            },
            processes: self.processes.iter().map(Into::into).collect(),
            checkpoints: self.tree.current(),
            owner: owner.as_ref().map(|owner| owner.as_str().to_owned()),
            egress,
            ingress,
        };
        Ok(serde_json::to_vec(&record)?)
    }

    /// Reads a record that belongs to a machine of this shape, stored under this name; beside it,
    /// where in the tree of its checkpoints, which is not in the record, it stands.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(
        bytes: &[u8],
        name: &SnapshotId,
        shape: MachineShape,
    ) -> Result<(Self, Vec<String>), RecordError> {
        let version = record_version(bytes)?;
        if !(1..=VERSION).contains(&version) {
            return Err(RecordError::Version(version));
        }
        let record: SandboxRecordV1 = serde_json::from_slice(bytes)?;
        record.check(name, shape)?;
        let owner = record.owner()?;
        let egress = record.egress()?;
        let time = |us| Timestamp::from_microsecond(us).map_err(|_| invalid("time", us));
        let on_timeout = match record.on_timeout {
            OnTimeoutV1::Kill => TimeoutAction::Kill,
            OnTimeoutV1::PauseMemory => TimeoutAction::Pause(KeptState::Memory),
            OnTimeoutV1::PauseFiles => TimeoutAction::Pause(KeptState::Files),
        };
        let facts = SandboxFacts {
            id: record.id,
            owner,
            origin: SandboxOrigin {
                template_id: record.template_id,
                base: record.base,
                alias: record.alias,
                cpu_count: record.cpu_count,
                memory_mb: record.memory_mb,
                disk_size_mb: record.disk_size_mb,
                forked: record.forked,
            },
            metadata: record.metadata,
            env: record.env,
            access_token: record.access_token,
            ingress: record.ingress.map(Into::into).unwrap_or_default(),
            default_user: record.default_user,
            default_workdir: record.default_workdir,
            started_at: time(record.started_at_us)?,
            lifecycle: LifecyclePolicy {
                timeout: Duration::from_secs(record.timeout_s),
                on_timeout,
                auto_resume: record.auto_resume,
            },
            egress,
        };
        let paused = Self {
            facts: Arc::new(facts),
            paused_at: time(record.paused_at_us)?,
            kept: match record.kept {
                KeptV1::Memory => KeptState::Memory,
                KeptV1::Files => KeptState::Files,
            },
            processes: record.processes.into_iter().map(Into::into).collect(),
            restore_point: None,
            tree: Arc::default(),
        };
        Ok((paused, record.checkpoints))
    }
}

impl IngressV1 {
    /// `None` where ports are as they were before there was anything to say about them.
    fn of(policy: &IngressPolicy) -> Option<Self> {
        let IngressPolicy {
            traffic_token,
            mask_host,
            tls_ports,
        } = policy.clone();
        let said = Self {
            traffic_token,
            mask_host,
            tls_ports,
        };
        (*policy != IngressPolicy::default()).then_some(said)
    }
}

impl From<IngressV1> for IngressPolicy {
    fn from(stored: IngressV1) -> Self {
        Self {
            traffic_token: stored.traffic_token,
            mask_host: stored.mask_host,
            tls_ports: stored.tls_ports,
        }
    }
}

impl SandboxRecordV1 {
    /// Whose it is.
    fn owner(&self) -> Result<Option<OwnerId>, RecordError> {
        match &self.owner {
            Some(owner) if self.version >= 2 => {
                let known = OwnerId::parse(owner).ok_or_else(|| invalid("owner", owner));
                known.map(Some)
            }
            Some(owner) => Err(invalid("owner in version 1", owner)),
            None => Ok(None),
        }
    }

    /// What it may reach.
    fn egress(&self) -> Result<EgressPolicy, RecordError> {
        match &self.egress {
            Some(egress) => egress
                .policy()
                .map_err(|why| invalid("network policy", why)),
            None => Ok(EgressPolicy::default()),
        }
    }

    /// The one gate: what passes is a sandbox that this server could have made.
    fn check(&self, name: &SnapshotId, shape: MachineShape) -> Result<(), RecordError> {
        let own = stored_name(&self.id).is_ok_and(|own| own == *name);
        if !own || !is_sandbox_id(&self.id) {
            return Err(invalid("id", &self.id));
        }
        let size = (self.cpu_count, self.memory_mb, self.disk_size_mb);
        if size != (shape.vcpus, shape.memory_mib, shape.disk_size >> 20) {
            return Err(invalid(
                "size",
                format!("{size:?} for a machine of {shape:?}"),
            ));
        }
        let ingress = self.ingress.as_ref();
        let network = ingress.is_some() || self.egress.is_some();
        if network && self.version <= VERSION_WITHOUT_NETWORK {
            return Err(invalid("version with a network's settings", self.version));
        }
        let headers = self.egress.as_ref().is_some_and(EgressV1::has_authority);
        if headers && self.version <= VERSION_WITHOUT_HEADERS {
            return Err(invalid("version with headers", self.version));
        }
        if let Some(ports) = ingress.map(|ingress| &ingress.tls_ports)
            && (ports.len() > MAX_TLS_PORTS || ports.contains(&0))
        {
            return Err(invalid("list of TLS ports", format!("{ports:?}")));
        }
        let texts = [
            ("template", Some(&self.template_id)),
            ("base", Some(&self.base)),
            ("alias", self.alias.as_ref()),
            ("user", Some(&self.default_user)),
            ("working directory", self.default_workdir.as_ref()),
            ("token", self.access_token.as_ref()),
            (
                "traffic token",
                ingress.and_then(|i| i.traffic_token.as_ref()),
            ),
            ("masked host", ingress.and_then(|i| i.mask_host.as_ref())),
        ];
        for (what, text) in texts {
            if text.is_some_and(|t| t.is_empty() || t.len() > MAX_TEXT || t.contains('\0')) {
                return Err(invalid(what, text.map_or("", String::as_str)));
            }
        }
        let entries = self.metadata.len().max(self.processes.len());
        if entries.max(self.checkpoints.len()) > MAX_ENTRIES {
            return Err(invalid("number of entries", entries));
        }
        match bad_env(&self.env) {
            Some(why) => Err(invalid("environment", why)),
            None => Ok(()),
        }
    }
}

fn invalid(what: &'static str, value: impl std::fmt::Display) -> RecordError {
    RecordError::Invalid {
        what,
        value: value.to_string().chars().take(200).collect(),
    }
}

/// What is wrong with the record of a paused sandbox.
///
/// # Errors
/// That, in words.
pub fn readable(header: &StoredHeader) -> Result<(), String> {
    let decoded = PausedSandbox::decode(&header.record, &header.id, header.shape);
    decoded.map(drop).map_err(|error| chain(&error))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::network::egress_test::with_header;

    const SHAPE: MachineShape = MachineShape {
        vcpus: 1,
        memory_mib: 512,
        disk_size: 1 << 30,
    };
    /// As version 3 is written, but for the version and what ports have.
    const REST: &str = r#""id":"i1","template_id":"t","base":"t","alias":null,"cpu_count":1,"memory_mb":512,"disk_size_mb":1024,"forked":false,"metadata":{},"env":{},"access_token":null,"default_user":"u","default_workdir":null,"started_at_us":1,"paused_at_us":2,"timeout_s":15,"on_timeout":"kill","auto_resume":false,"kept":"files","processes":[],"checkpoints":[],"owner":null"#;
    const INGRESS: &str =
        r#","ingress":{"traffic_token":"t1","mask_host":"h:${PORT}","tls_ports":[443,8443]}"#;

    fn read(version: u32, ingress: &str) -> Result<PausedSandbox, RecordError> {
        let text = format!("{{\"version\":{version},{REST}{ingress}}}");
        let name = stored_name("i1").unwrap();
        let decoded = PausedSandbox::decode(text.as_bytes(), &name, SHAPE);
        decoded.map(|(paused, _)| paused)
    }

    fn written(paused: &PausedSandbox) -> String {
        String::from_utf8(paused.encode().unwrap()).unwrap()
    }

    #[test]
    fn how_ports_are_reached_is_kept_and_what_has_nothing_to_say_stays_version_2() {
        let paused = read(3, INGRESS).unwrap();
        let expected = IngressPolicy {
            traffic_token: Some("t1".into()),
            mask_host: Some("h:${PORT}".into()),
            tls_ports: BTreeSet::from([443, 8443]),
        };
        assert_eq!(paused.facts.ingress, expected);
        assert_eq!(
            written(&paused),
            format!("{{\"version\":3,{REST}{INGRESS}}}")
        );
        let paused = read(2, "").unwrap();
        assert_eq!(paused.facts.ingress, IngressPolicy::default());
        assert_eq!(written(&paused), format!("{{\"version\":2,{REST}}}"));
    }

    #[test]
    fn headers_are_kept_and_make_a_record_version_4() {
        let mut paused = read(2, "").unwrap();
        let policy = with_header("a.net", "x-key", "v1")
            .authorized(None)
            .unwrap();
        let facts = SandboxFacts {
            egress: policy.clone(),
            ..(*paused.facts).clone()
        };
        paused.facts = Arc::new(facts);
        let text = written(&paused);
        let name = stored_name("i1").unwrap();
        let decode = |text: &str| PausedSandbox::decode(text.as_bytes(), &name, SHAPE);
        assert_eq!(decode(&text).unwrap().0.facts.egress, policy);
        let older = text.replace("\"version\":4", "\"version\":3");
        assert_ne!(older, text);
        decode(&older).unwrap_err();
    }

    #[test]
    fn settings_of_ports_that_cannot_be_are_refused() {
        read(2, INGRESS).unwrap_err();
        read(5, "").unwrap_err();
        for wrong in [
            r#""traffic_token":"","mask_host":null,"tls_ports":[]"#,
            r#""traffic_token":null,"mask_host":"a\u0000","tls_ports":[]"#,
            r#""traffic_token":null,"mask_host":null,"tls_ports":[0]"#,
            r#""traffic_token":null,"mask_host":null,"tls_ports":[65536]"#,
            r#""traffic_token":null,"mask_host":null,"tls_ports":[],"more":1"#,
        ] {
            read(3, &format!(",\"ingress\":{{{wrong}}}")).unwrap_err();
        }
    }
}
