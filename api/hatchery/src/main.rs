//! `hatchery serve | doctor | version`.

mod args;
mod examine;

use crate::args::{Cli, Command, ServeArgs};
use crate::examine::examine;
use anyhow::Context as _;
use clap::Parser as _;
use e2b::server::{Listeners, serve as serve_clients};
use e2b::state::AppState;
use e2b::tls::TlsServer;
use engine::data_folder::DataFolder;
use engine::image::pager::PagerClient;
use engine::launch::launcher::MachineLauncher;
use engine::machine::group_tree::GroupTree;
use engine::machine::spawner::VmSpawner;
use engine::registry::SandboxRegistry;
use engine::store::vault::ImageVault;
use hatchery::config::Settings;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// See [`tick`]: shorter than what requests wait for.
const TICK: Duration = Duration::from_secs(1);

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
    let settings = args.typed.settings()?;
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    settings.network.check().map_err(anyhow::Error::msg)?;
    let tls = tls(&settings)?;
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
        let listeners = listen_to_clients(&settings, tls).await?;
        let metrics = match settings.metrics_listen {
            Some(address) => Some(listen("metrics.listen", address).await?),
            None => None,
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if let Some(metrics) = &metrics {
            tracing::info!(listen = %metrics.local_addr()?, "metrics are ready");
        }
        tracing::info!(listen = %listeners.plain.local_addr()?, "hatchery is ready");
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
        let served = tokio::spawn(serve_clients(app, listeners, stop));
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

/// One end of TLS, and where, if that is set up.
fn tls(settings: &Settings) -> anyhow::Result<Option<(SocketAddr, Arc<TlsServer>)>> {
    let Some(tls) = &settings.tls else {
        return Ok(None);
    };
    let server = TlsServer::open(tls.files.clone(), &tls.domain)?;
    Ok(Some((tls.listen, Arc::new(server))))
}

/// Where clients come in.
async fn listen_to_clients(
    settings: &Settings,
    tls: Option<(SocketAddr, Arc<TlsServer>)>,
) -> anyhow::Result<Listeners> {
    let plain = listen("listen", settings.listen).await?;
    let Some((address, server)) = tls else {
        return Ok(Listeners { plain, tls: None });
    };
    let listener = listen("tls.listen", address).await?;
    let domain = settings.domain.as_deref().unwrap_or_default();
    tracing::info!(listen = %listener.local_addr()?, domain, "TLS is ready");
    let tls = Some((listener, server));
    Ok(Listeners { plain, tls })
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
