//! What is typed: flags, and environment variables under them.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use control::JailMode;
use hatchery::config::{ConfigFile, Overrides, Settings};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Parser)]
#[command(
    name = "hatchery",
    version,
    about = "MicroVM sandboxes behind the E2B API"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the server until SIGTERM or SIGINT
    Serve(Box<ServeArgs>),
    /// Say what this host can and cannot do; exit status 0 fine, 1 degraded, 2 unusable
    Doctor(Box<DoctorArgs>),
    /// Print the version
    Version,
}

#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) typed: TypedSettings,
    /// Log filter, as `RUST_LOG` has it
    #[arg(long, env = "HATCHERY_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Log as JSON lines
    #[arg(long, env = "HATCHERY_LOG_JSON")]
    pub(crate) log_json: bool,
}

#[derive(clap::Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) typed: TypedSettings,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is over the configuration file.
#[derive(clap::Args)]
pub(crate) struct TypedSettings {
    /// Configuration file
    #[arg(long, env = "HATCHERY_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Address and port to listen on [default: 127.0.0.1:3000]
    #[arg(long, env = "HATCHERY_LISTEN")]
    listen: Option<SocketAddr>,
    /// Folder for all that the server keeps [default: hatchery-data]
    #[arg(long, env = "HATCHERY_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Domain of the sandboxes' host names
    #[arg(long, env = "HATCHERY_DOMAIN")]
    domain: Option<String>,
    /// Folder of the programs and images [default: this program's]
    #[arg(long, env = "HATCHERY_IMAGE_DIR")]
    image_dir: Option<PathBuf>,
    /// The program that runs one virtual machine
    #[arg(long, env = "HATCHERY_VMM")]
    vmm: Option<PathBuf>,
    /// Where a wall around VM processes cannot be had: "required" starts no sandbox, "degraded"
    /// starts them without it [default: required]
    #[arg(long, env = "HATCHERY_JAIL", value_name = "MODE")]
    jail: Option<JailMode>,
    /// The guest agent
    #[arg(long, env = "HATCHERY_AGENT")]
    agent: Option<PathBuf>,
    /// The guest kernel
    #[arg(long, env = "HATCHERY_KERNEL")]
    kernel: Option<PathBuf>,
    /// Most sandboxes at one time [default: 64]
    #[arg(long, env = "HATCHERY_MAX_SANDBOXES")]
    max_sandboxes: Option<usize>,
    /// Warm VMs of each template, kept ready for the next sandboxes [default: 2]
    #[arg(long = "pool-size", env = "HATCHERY_POOL_SIZE", value_name = "SIZE")]
    size: Option<usize>,
    /// The same under its old name
    #[arg(long, env = "HATCHERY_HUSKS", hide = true)]
    husks: Option<usize>,
    /// Address and port at which `GET /metrics` is answered, without a key
    #[arg(long, env = "HATCHERY_METRICS_LISTEN", value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// Address and port at which TLS is spoken, once there is a certificate [default: 0.0.0.0:443]
    #[arg(long, env = "HATCHERY_TLS_LISTEN", value_name = "ADDRESS")]
    tls_listen: Option<SocketAddr>,
    /// PEM file with the certificate of the domain's host names, then those of who signed it
    #[arg(long, env = "HATCHERY_TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long, env = "HATCHERY_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

impl TypedSettings {
    /// Over the file.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            listen: self.listen,
            data_dir: self.data_dir.clone(),
            domain: self.domain.clone(),
            image_dir: self.image_dir.clone(),
            vmm: self.vmm.clone(),
            jail: self.jail,
            agent: self.agent.clone(),
            kernel: self.kernel.clone(),
            // Only from the environment: everybody can read a program's flags.
            api_keys: std::env::var("HATCHERY_API_KEYS").ok(),
            max_sandboxes: self.max_sandboxes,
            pool_size: self.size,
            husks: self.husks,
            metrics_listen: self.metrics_listen,
            tls_listen: self.tls_listen,
            tls_certificate: self.tls_certificate.clone(),
            tls_key: self.tls_key.clone(),
        }
    }

    /// What the server runs with.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let file = self
            .config
            .as_deref()
            .map(ConfigFile::read)
            .transpose()?
            .unwrap_or_default();
        Ok(Settings::new(file, self.overrides(), &program_dir()?)?)
    }
}

/// Where this program is, and what comes with it.
pub(crate) fn program_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("Cannot find this program's own folder")?;
    Ok(program
        .parent()
        .context("This program has no folder")?
        .to_owned())
}
