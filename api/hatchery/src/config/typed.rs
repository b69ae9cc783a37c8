//! What was typed: the configuration file, and what is over it.

use crate::config::error::{ConfigError, read_text};
use control::{CgroupMode, JailMode};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The configuration file as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Address and port to listen on. Default `127.0.0.1:3000`.
    pub listen: Option<SocketAddr>,
    /// Folder for all that the server keeps: paused sandboxes, snapshots and checkpoints, which
    /// outlive it; disk layers and notes of what runs, which do not. Made if missing; one server
    /// per folder. Default `hatchery-data`.
    pub data_dir: Option<PathBuf>,
    /// Domain of the sandboxes' host names (`{port}-{id}.{domain}`), told to clients. Default: on a
    /// loopback address `localhost` with the port of `listen`; else none.
    pub domain: Option<String>,
    /// Whether every new sandbox has a token, also one that is created by the old API without
    /// `secure`. Clients from before tokens cannot use it then. Default false.
    pub require_token: Option<bool>,
    /// Keys that clients send as `X-API-KEY`.
    #[serde(default)]
    pub api_keys: Vec<String>,
    /// A file with one key per line; `#` begins a comment.
    pub api_keys_file: Option<PathBuf>,
    /// The name that the keys of both, or of the environment, have together. No default: each is an
    /// owner of its own.
    pub api_keys_name: Option<String>,
    /// Keys with a name and limits.
    #[serde(default)]
    pub keys: Vec<KeyFile>,
    /// Folder in which the names below are looked up when they are relative. Default: the folder of
    /// the `hatchery` program.
    pub image_dir: Option<PathBuf>,
    /// The program that runs one virtual machine. Default `hatchery-vmm`.
    pub vmm: Option<PathBuf>,
    /// Where a wall around VM processes cannot be had: `required` starts no sandbox, `degraded`
    /// starts them without it. Default `required`.
    pub jail: Option<JailMode>,
    /// The guest agent. Default `hatchery-agent`.
    pub agent: Option<PathBuf>,
    /// The guest kernel, an ELF `vmlinux`. Default `vmlinux`.
    pub kernel: Option<PathBuf>,
    /// TLS for the domain.
    #[serde(default)]
    pub tls: TlsFile,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsFile,
    /// Sandboxes as clones of their template's machine.
    #[serde(default)]
    pub clones: ClonesFile,
    /// Clones that are made ahead.
    #[serde(default)]
    pub pool: PoolFile,
    /// What sandboxes may have of the network.
    #[serde(default)]
    pub network: NetworkFile,
    /// What is counted.
    #[serde(default)]
    pub metrics: MetricsFile,
    /// What machines may take of the host.
    #[serde(default)]
    pub resources: ResourcesFile,
    /// Templates by name. Default: `base` with the image `base.ext4`.
    #[serde(default)]
    pub templates: BTreeMap<String, TemplateFile>,
}

/// One `[[keys]]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// Whose is what these keys make.
    pub name: String,
    /// SHA-256 hashes of keys.
    #[serde(default)]
    pub hashes: Vec<String>,
    /// A variable of the environment with keys, separated by commas.
    pub key_env: Option<String>,
    /// A file with one key per line; `#` begins a comment.
    pub key_file: Option<PathBuf>,
    /// Whether these keys see everything. Default false.
    pub admin: Option<bool>,
    /// Most sandboxes with a machine. No default: `limits.max_sandboxes` is all there is.
    pub max_running: Option<usize>,
    /// Most paused sandboxes. No default.
    pub max_paused: Option<usize>,
    /// Most snapshots. No default.
    pub max_snapshots: Option<usize>,
    /// Most bytes in the store. No default.
    pub max_stored_bytes: Option<u64>,
    /// Most sandboxes that are asked for in a second. No default.
    pub max_creates_per_second: Option<u32>,
}

/// The `[tls]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFile {
    /// Address and port at which TLS is spoken, beside `listen`. Default `0.0.0.0:443`.
    pub listen: Option<SocketAddr>,
    /// A PEM file with the certificate of `*.{domain}`, then those of who signed it. No default: no
    /// TLS.
    pub certificate: Option<PathBuf>,
    /// A PEM file with its private key. No default.
    pub key: Option<PathBuf>,
}

/// The `[limits]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    /// Most sandboxes at one time; more are refused with 429. Default 64.
    pub max_sandboxes: Option<usize>,
    /// Most paused sandboxes; more are refused with 429. Default 1000.
    pub max_paused: Option<usize>,
    /// Most snapshots; more are refused with 429. Default 1000.
    pub max_snapshots: Option<usize>,
    /// Most bytes of what is stored; above it nothing more is, with 429. Default 1099511627776.
    pub max_stored_bytes: Option<u64>,
    /// Most checkpoints of one sandbox; more are refused with 409. Default 64.
    pub max_checkpoints: Option<usize>,
    /// Memory that has to be left when a creation, a batch, a warm VM or a resumption begins, MiB;
    /// else it is refused with 503. 0: nobody looks. Default 128.
    pub min_memory_mb: Option<u64>,
    /// Longest time to live a client may ask for, seconds. Default 86400.
    pub max_timeout: Option<u32>,
    /// Longest wait for a new sandbox's agent, seconds. Default 60.
    pub boot_timeout: Option<u32>,
    /// Most client connections at one time. Default 4096.
    pub max_connections: Option<usize>,
    /// Most of them from one address, for IPv6 from one network of 64 bits. 0: as many as there
    /// are, as behind a proxy, where all clients have one address. Default 0.
    pub max_peer_connections: Option<usize>,
    /// Most connections to ports of one sandbox at one time, 1024 at most; more are refused with
    /// 429. Default 1024.
    pub max_port_connections: Option<usize>,
    /// Longest time for a request's head to arrive, seconds. Default 10.
    pub header_timeout: Option<u32>,
    /// Longest time a connection may stay without a request, and one to a port of a sandbox without
    /// a byte either way, seconds. Default 620.
    pub idle_timeout: Option<u32>,
    /// Most bytes of a control-plane request's body. Default 1048576.
    pub max_json_bytes: Option<usize>,
    /// Memory that all request bodies together may take while they are read and used, MiB; more
    /// wait their turn, and are refused after 20 s. Default 256.
    pub body_memory_mb: Option<usize>,
}

/// The `[clones]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClonesFile {
    /// Whether each template is booted once and cloned from then on. Default true.
    pub enabled: Option<bool>,
    /// Whether stored machines begin before their memory is there: a pager brings it while they
    /// run. Default false.
    pub lazy: Option<bool>,
    /// The name of `pool.size` until it had that one; still read.
    pub husks: Option<usize>,
}

/// The `[pool]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolFile {
    /// Warm VMs of each template that are kept ready for the next sandboxes. Default 2.
    pub size: Option<usize>,
}

/// The `[network]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFile {
    /// Addresses with a port that every sandbox may reach though they are private, or the host's.
    #[serde(default)]
    pub openings: Vec<SocketAddr>,
    /// A file of certificate authorities, PEM, that hosts of `network.rules` are verified with
    /// beside those of the host. Default: none.
    pub extra_roots: Option<PathBuf>,
    /// Most flows (connections, and peers of datagrams) of one sandbox at a time. Default 1024.
    pub max_flows: Option<u32>,
    /// Most bytes a second of one sandbox, both ways together. 0: as many as there are. Default 0.
    pub max_bytes_per_second: Option<u64>,
    /// Most frames a second of one sandbox, both ways together. 0: as many as there are. Default 0.
    pub max_packets_per_second: Option<u64>,
}

/// The `[metrics]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsFile {
    /// Address and port at which `GET /metrics` is answered, without a key. No default: nowhere.
    pub listen: Option<SocketAddr>,
}

/// The `[resources]` table as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourcesFile {
    /// Whether each VM process has a control group: `auto`, where the host lets us make them;
    /// `required`, or no sandbox starts; `off`. Default `auto`.
    pub cgroup: Option<CgroupMode>,
    /// The folder of the group under which they are made. No default: the server's own.
    pub cgroup_parent: Option<PathBuf>,
    /// Memory of a VM process beside its guest's, MiB. Default 128.
    pub memory_overhead_mb: Option<u64>,
    /// Room that has to be left on the volume of the data folder for something to begin or be
    /// stored, MiB; else it is refused with 503. 0: nobody looks. Default 512.
    pub disk_reserve_mb: Option<u64>,
}

/// One `[templates.NAME]` table as typed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateFile {
    /// The root file system, a raw ext4 image.
    pub image: PathBuf,
    /// vCPUs. Default 1.
    pub cpu_count: Option<u8>,
    /// Memory, MiB. Default 512.
    pub memory_mb: Option<u32>,
    /// Root disk, MiB. Default: the size of the image.
    pub disk_size_mb: Option<u64>,
    /// Other names for this template.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// A kernel of its own. Default: the `kernel` above.
    pub kernel: Option<PathBuf>,
    /// Added to the kernel command line. Default: empty.
    pub cmdline_extra: Option<String>,
    /// The user that commands run as when the request names none. Default `user`.
    pub default_user: Option<String>,
    /// The working directory when the request names none. Default: the user's home.
    pub default_workdir: Option<String>,
    /// A command that is running in every copy. Default: none.
    pub start_cmd: Option<String>,
    /// Succeeds once `start_cmd` is ready to be cloned. Default: ready at once.
    pub ready_cmd: Option<String>,
}

/// What environment variables and flags say; each field is over the file's.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `listen`.
    pub listen: Option<SocketAddr>,
    /// `data_dir`.
    pub data_dir: Option<PathBuf>,
    /// `domain`.
    pub domain: Option<String>,
    /// `image_dir`.
    pub image_dir: Option<PathBuf>,
    /// `vmm`.
    pub vmm: Option<PathBuf>,
    /// `jail`.
    pub jail: Option<JailMode>,
    /// `agent`.
    pub agent: Option<PathBuf>,
    /// `kernel`.
    pub kernel: Option<PathBuf>,
    /// Keys, separated by commas; instead of the file's.
    pub api_keys: Option<String>,
    /// `limits.max_sandboxes`.
    pub max_sandboxes: Option<usize>,
    /// `pool.size`.
    pub pool_size: Option<usize>,
    /// The same under its old name.
    pub husks: Option<usize>,
    /// `metrics.listen`.
    pub metrics_listen: Option<SocketAddr>,
    /// `tls.listen`.
    pub tls_listen: Option<SocketAddr>,
    /// `tls.certificate`.
    pub tls_certificate: Option<PathBuf>,
    /// `tls.key`.
    pub tls_key: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })
    }
}
