//! `hatchery serve | doctor | version`.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use control::JailMode;
use doctor::host::{HostQuestion, TemplateQuestion};
use doctor::{host, judge, report};
use e2b::state::AppState;
use engine::data_folder::DataFolder;
use engine::error::chain;
use engine::image::pager::PagerClient;
use engine::launch::launcher::MachineLauncher;
use engine::machine::group_tree::GroupTree;
use engine::machine::spawner::VmSpawner;
use engine::registry::SandboxRegistry;
use engine::store::vault::ImageVault;
use engine::template::Template;
use hatchery::config::{ConfigError, ConfigFile, Overrides, Settings};
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// See [`tick`]: shorter than what requests wait for.
const TICK: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(
    name = "hatchery",
    version,
    about = "MicroVM sandboxes behind the E2B API"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT
    Serve(Box<ServeArgs>),
    /// Say what this host can and cannot do; exit status 0 fine, 1 degraded, 2 unusable
    Doctor(Box<DoctorArgs>),
    /// Print the version
    Version,
}

#[derive(clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    typed: TypedSettings,
    /// Log filter, as `RUST_LOG` has it
    #[arg(long, env = "HATCHERY_LOG", default_value = "info")]
    log: String,
    /// Log as JSON lines
    #[arg(long, env = "HATCHERY_LOG_JSON")]
    log_json: bool,
}

#[derive(clap::Args)]
struct DoctorArgs {
    #[command(flatten)]
    typed: TypedSettings,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is over the configuration file.
#[derive(clap::Args)]
struct TypedSettings {
    /// Configuration file
    #[arg(long, env = "HATCHERY_CONFIG")]
    config: Option<PathBuf>,
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
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Doctor(args) => examine(&args),
        Command::Version => version(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn version() -> anyhow::Result<ExitCode> {
    println!("hatchery {}", env!("CARGO_PKG_VERSION"));
    Ok(ExitCode::SUCCESS)
}

fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    start_log(args);
    let settings = settings(&args.typed)?;
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    let state = DataFolder::open(&settings.data_dir)?;
    raise_file_limit();
    let lazy = settings.clones.lazy;
    let pagers = lazy.then(|| PagerClient::find(&settings.vmm)).flatten();
    let vault = ImageVault::open(state.snapshots(), state.layers(), pagers.is_some())?;
    let groups = Arc::new(GroupTree::open(
        &settings.resources.groups(),
        &settings.data_dir,
    ));
    let launcher = MachineLauncher {
        vmm: settings.vmm.clone(),
        spawner: VmSpawner::new(settings.jail),
        groups: Arc::clone(&groups),
        agent: settings.agent.clone(),
        layer_dir: state.layers().to_owned(),
        record_dir: state.machines().to_owned(),
        boot_timeout: settings.limits.boot_timeout,
        pagers,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let clean = runtime.block_on(async {
        let listener = listen("listen", settings.listen).await?;
        let metrics = match settings.metrics_listen {
            Some(address) => Some(listen("metrics.listen", address).await?),
            None => None,
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if let Some(metrics) = &metrics {
            tracing::info!(listen = %metrics.local_addr()?, "metrics are ready");
        }
        tracing::info!(listen = %listener.local_addr()?, "hatchery is ready");
        let (spawner, vmm) = (launcher.spawner.clone(), launcher.vmm.clone());
        tokio::task::spawn_blocking(move || spawner.begin(&vmm)).await?;
        let registry = SandboxRegistry::new(launcher, vault, settings.engine_options())?;
        let app = AppState::new(settings.server_options(), registry);
        if let Some(metrics) = metrics {
            tokio::spawn(e2b::metrics::serve(Arc::clone(&app), metrics));
        }
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tokio::spawn(tick());
        // In a worker, where a new connection is handled: this thread would have to be woken for
        // each.
        let served = tokio::spawn(e2b::server::serve(app, listener, stop));
        served.await.context("Serving")
    })?;
    // With it the last ends, and all that it still does: the groups are empty then.
    drop(runtime);
    drop(groups);
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A listener at the address of a setting.
async fn listen(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| {
        format!("Cannot listen on {address} ({setting}): is another server running?")
    })
}

/// Keeps the runtime's next timer near; nothing waits for it. Whoever sets one that is nearer than
/// all others has the runtime write to an event of its own and look again, which each request would
/// do several times.
async fn tick() {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
    }
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn examine(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let dir = program_dir()?;
    let file = args
        .typed
        .config
        .as_deref()
        .map(ConfigFile::read)
        .transpose();
    let (settings, problem) = match file {
        Err(problem) => (fallback(args.typed.overrides(), &dir)?, Some(problem)),
        Ok(file) => match Settings::new(file.unwrap_or_default(), args.typed.overrides(), &dir) {
            Ok(settings) => (settings, None),
            Err(problem) => (fallback(args.typed.overrides(), &dir)?, Some(problem)),
        },
    };
    let findings = judge::judge(&host::look(&question(&settings, problem.as_ref())));
    if args.json {
        println!("{}", report::json(&findings));
    } else {
        print!("{}", report::text(&findings));
    }
    Ok(doctor::exit_code(doctor::verdict(&findings)))
}

/// What is asked of the host; `problem` is what stood in the way of the settings.
fn question(settings: &Settings, problem: Option<&ConfigError>) -> HostQuestion {
    let template = |template: &Template| TemplateQuestion {
        name: template.name.clone(),
        kernel: template.kernel.clone(),
        image: template.image.clone(),
        memory_mb: template.memory_mb,
    };
    let lazy = settings.clones.lazy;
    HostQuestion {
        data_dir: settings.data_dir.clone(),
        config: match problem {
            None | Some(ConfigError::NoKeys) => Ok(()),
            Some(problem) => Err(chain(problem)),
        },
        has_key: !matches!(problem, Some(ConfigError::NoKeys)),
        vmm: settings.vmm.clone(),
        agent: settings.agent.clone(),
        network: settings.network.program.clone(),
        name_servers: engine::network::host_name_servers().map(|servers| servers.len()),
        pager: lazy.then(|| PagerClient::program(&settings.vmm)),
        jail: settings.jail,
        cgroup: settings.resources.cgroup,
        cgroup_parent: settings.resources.cgroup_parent.clone(),
        max_sandboxes: settings.limits.max_sandboxes,
        templates: settings.templates.values().map(template).collect(),
    }
}

/// Settings to look at the host with, when there are none to serve with.
fn fallback(mut over: Overrides, dir: &Path) -> anyhow::Result<Settings> {
    over.api_keys = Some("no-key-is-ever-this".into());
    // With both, or a bad one, there would be none.
    (over.husks, over.pool_size) = (None, None);
    Ok(Settings::new(ConfigFile::default(), over, dir)?)
}

fn settings(args: &TypedSettings) -> anyhow::Result<Settings> {
    let file = args
        .config
        .as_deref()
        .map(ConfigFile::read)
        .transpose()?
        .unwrap_or_default();
    Ok(Settings::new(file, args.overrides(), &program_dir()?)?)
}

fn program_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("Cannot find this program's own folder")?;
    Ok(program
        .parent()
        .context("This program has no folder")?
        .to_owned())
}

impl TypedSettings {
    fn overrides(&self) -> Overrides {
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
        }
    }
}

fn start_log(args: &ServeArgs) {
    let filter = tracing_subscriber::EnvFilter::new(&args.log);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if args.log_json {
        log.json().init();
    } else {
        log.init();
    }
}

/// Each sandbox takes a handful of descriptors here: take what the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, limit = now.current, "cannot raise the limit of open files");
    }
}
