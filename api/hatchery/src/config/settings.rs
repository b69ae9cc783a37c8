//! What the program runs with: the file, what is over it, and the defaults, put together and
//! checked.

use crate::config::error::ConfigError;
use crate::config::keys::KeySettings;
use crate::config::limits::{LimitSettings, in_range};
use crate::config::network::network;
use crate::config::resources::ResourceSettings;
use crate::config::templates::templates;
use crate::config::tls::{TlsSettings, tls};
use crate::config::typed::{ConfigFile, Overrides};
use control::JailMode;
use e2b::auth::ApiKeys;
use e2b::options::ServerOptions;
use engine::network::NetworkSettings;
use engine::options::EngineOptions;
use engine::quota::{OwnerOptions, StoreLimits};
use engine::template::Template;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Sandboxes as clones, with defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloneSettings {
    /// Whether there are any; otherwise each sandbox boots.
    pub enabled: bool,
    /// How many warm VMs of each template are kept ready.
    pub pool_size: usize,
    /// Whether stored machines begin before their memory is there.
    pub lazy: bool,
}

/// What the program runs with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// All that the server keeps.
    pub data_dir: PathBuf,
    /// The sandboxes' domain; on a loopback address `localhost` with the port unless typed.
    pub domain: Option<String>,
    /// TLS beside it; `None`: none.
    pub tls: Option<TlsSettings>,
    /// Whether every creation gets a token.
    pub require_token: bool,
    /// Who may use the control plane.
    pub keys: ApiKeys,
    /// How much each of these may have.
    pub owners: Vec<OwnerOptions>,
    /// The VM program.
    pub vmm: PathBuf,
    /// What is done where walls around VM processes are missing.
    pub jail: JailMode,
    /// The guest agent.
    pub agent: PathBuf,
    /// Bounds.
    pub limits: LimitSettings,
    /// Clones.
    pub clones: CloneSettings,
    /// What sandboxes may have of the network.
    pub network: NetworkSettings,
    /// What machines may take of the host.
    pub resources: ResourceSettings,
    /// Where `GET /metrics` is answered; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// What the operator should know: settings under their old names.
    pub notes: Vec<String>,
    /// Templates by name.
    pub templates: BTreeMap<String, Template>,
}

impl Settings {
    /// Puts the file, the overrides and the defaults together. `program_dir` is where relative
    /// image names are looked up when `image_dir` is not set.
    ///
    /// # Errors
    /// The first thing that cannot be right.
    pub fn new(file: ConfigFile, over: Overrides, program_dir: &Path) -> Result<Self, ConfigError> {
        let mut notes = Vec::new();
        let clones = CloneSettings::new(&file, &over, &mut notes)?;
        let KeySettings { keys, owners } = KeySettings::new(&file, over.api_keys.as_deref())?;
        let domain = over.domain.clone().or(file.domain);
        let tls = tls(file.tls, &over, domain.as_deref())?;
        let dir = over
            .image_dir
            .or(file.image_dir)
            .unwrap_or_else(|| program_dir.to_owned());
        let find = |typed: Option<PathBuf>, default: &str| {
            dir.join(typed.unwrap_or_else(|| PathBuf::from(default)))
        };
        let kernel = find(over.kernel.or(file.kernel), "vmlinux");
        let default_listen = SocketAddr::from(([127, 0, 0, 1], 3000));
        let mut limits = LimitSettings::new(&file.limits)?;
        if let Some(max) = over.max_sandboxes {
            limits.max_sandboxes = in_range("max_sandboxes", max, 1..=65_536)?;
        }
        let vmm = find(over.vmm.or(file.vmm), "hatchery-vmm");
        let jail = over.jail.or(file.jail).unwrap_or_default();
        let listen = over.listen.or(file.listen).unwrap_or(default_listen);
        // Browsers and curl resolve every name below it.
        let local = || format!("localhost:{}", listen.port());
        let local = listen.ip().is_loopback().then(local);
        Ok(Self {
            listen,
            data_dir: over
                .data_dir
                .or(file.data_dir)
                .unwrap_or_else(|| "hatchery-data".into()),
            domain: domain.or(local),
            tls,
            require_token: file.require_token.unwrap_or(false),
            keys,
            owners,
            network: network(file.network, &vmm, jail)?,
            vmm,
            jail,
            agent: find(over.agent.or(file.agent), "hatchery-agent"),
            limits,
            clones,
            resources: ResourceSettings::new(&file.resources)?,
            metrics_listen: over.metrics_listen.or(file.metrics.listen),
            notes,
            templates: templates(file.templates, &dir, &kernel)?,
        })
    }

    /// What the engine is told.
    #[must_use]
    pub fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            max_sandboxes: self.limits.max_sandboxes,
            max_checkpoints: self.limits.max_checkpoints,
            store: StoreLimits {
                max_paused: self.limits.max_paused,
                max_snapshots: self.limits.max_snapshots,
                max_stored_bytes: self.limits.max_stored_bytes,
            },
            owners: self.owners.clone(),
            min_memory_mb: self.limits.min_memory_mb,
            disk_reserve_mb: self.resources.disk_reserve_mb,
            boot_timeout: self.limits.boot_timeout,
            pool_size: self.clones.enabled.then_some(self.clones.pool_size),
            network: self.network.clone(),
            variables: e2b::options::VARIABLES,
            templates: self.templates.values().cloned().collect(),
        }
    }

    /// What the server of E2B's protocol is told.
    #[must_use]
    pub fn server_options(&self) -> ServerOptions {
        ServerOptions {
            domain: self.domain.clone(),
            on_loopback: self.listen.ip().is_loopback(),
            require_token: self.require_token,
            keys: self.keys.clone(),
            max_timeout: self.limits.max_timeout,
            max_connections: self.limits.max_connections,
            max_peer_connections: self.limits.max_peer_connections,
            max_port_connections: self.limits.max_port_connections,
            header_timeout: self.limits.header_timeout,
            idle_timeout: self.limits.idle_timeout,
            max_json_bytes: self.limits.max_json_bytes,
            body_memory_mb: self.limits.body_memory_mb,
        }
    }
}

impl CloneSettings {
    fn new(
        file: &ConfigFile,
        over: &Overrides,
        notes: &mut Vec<String>,
    ) -> Result<Self, ConfigError> {
        let size = |name, value: Option<usize>| {
            let value = value.map(|value| in_range(name, value, 0..=1024));
            Ok((name, value.transpose()?))
        };
        let from_file = renamed(
            size("clones.husks", file.clones.husks)?,
            size("pool.size", file.pool.size)?,
            notes,
        )?;
        let typed = renamed(
            size("HATCHERY_HUSKS (--husks)", over.husks)?,
            size("HATCHERY_POOL_SIZE (--pool-size)", over.pool_size)?,
            notes,
        )?;
        Ok(Self {
            enabled: file.clones.enabled.unwrap_or(true),
            pool_size: typed.or(from_file).unwrap_or(2),
            lazy: file.clones.lazy.unwrap_or(false),
        })
    }
}

/// A setting that had another name, which is still read, with a word about it.
fn renamed<T>(
    (old, old_value): (&'static str, Option<T>),
    (new, new_value): (&'static str, Option<T>),
    notes: &mut Vec<String>,
) -> Result<Option<T>, ConfigError> {
    match (old_value, new_value) {
        (Some(_), Some(_)) => Err(ConfigError::OldName { old, new }),
        (Some(value), None) => {
            notes.push(format!("{old} is called {new} now: write it so"));
            Ok(Some(value))
        }
        (None, value) => Ok(value),
    }
}
