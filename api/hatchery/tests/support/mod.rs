//! A server with stand-in virtual machines, and the smallest client.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

pub(crate) mod envd;
pub(crate) mod programs;
pub(crate) mod told;

use bytes::Bytes;
use control::JailMode;
use e2b::server::Listeners;
use e2b::state::AppState;
use e2b::tls::TlsServer;
use engine::data_folder::DataFolder;
use engine::launch::launcher::MachineLauncher;
use engine::machine::group_tree::GroupTree;
use engine::machine::spawner::VmSpawner;
use engine::registry::SandboxRegistry;
use engine::store::vault::ImageVault;
use hatchery::config::{ClonesFile, ConfigFile, LimitsFile, Overrides, PoolFile, Settings};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The only key.
pub(crate) const KEY: &str = "e2b_0123456789abcdef0123456789abcdef01234567";

/// A running server.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The same for TLS.
    pub(crate) tls_address: Option<SocketAddr>,
    /// Its sandboxes.
    pub(crate) registry: Arc<SandboxRegistry>,
    /// Its folder.
    pub(crate) dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<bool>,
}

/// The guest agent, built on first use.
pub(crate) fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let built = Command::new(cargo)
            .args([
                "build",
                "--quiet",
                "--package",
                "guest-agent",
                "--bin",
                "hatchery-agent",
            ])
            .status()
            .unwrap();
        assert!(built.success(), "the guest agent does not build");
        Path::new(env!("CARGO_BIN_EXE_hatchery")).with_file_name("hatchery-agent")
    })
}

impl Server {
    /// With stand-ins that behave well.
    pub(crate) async fn start() -> Self {
        Self::start_with("", LimitsFile::default()).await
    }

    /// With stand-ins of this mode (see `src/bin/fake-vmm/main.rs`) and these limits.
    /// Every sandbox boots.
    pub(crate) async fn start_with(mode: &str, limits: LimitsFile) -> Self {
        Self::start_clones(mode, limits, None).await
    }

    /// The same with copies as configured.
    pub(crate) async fn start_clones(
        mode: &str,
        limits: LimitsFile,
        pool_size: Option<usize>,
    ) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), mode, limits, pool_size).await
    }

    /// With stand-ins of this mode, and what the operator says of missing walls.
    pub(crate) async fn start_jailed(mode: &str, jail: JailMode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let change = |file: &mut ConfigFile| file.jail = Some(jail);
        Self::start_changed(dir, mode, LimitsFile::default(), None, change).await
    }

    /// The same in a folder that may be another server's, which has stopped.
    pub(crate) async fn start_in(
        dir: tempfile::TempDir,
        mode: &str,
        limits: LimitsFile,
        pool_size: Option<usize>,
    ) -> Self {
        Self::start_changed(dir, mode, limits, pool_size, |_| {}).await
    }

    /// The same with more changed in the configuration.
    pub(crate) async fn start_changed(
        dir: tempfile::TempDir,
        mode: &str,
        limits: LimitsFile,
        pool_size: Option<usize>,
        change: impl FnOnce(&mut ConfigFile),
    ) -> Self {
        let mut file = ConfigFile {
            limits,
            clones: ClonesFile {
                enabled: Some(pool_size.is_some()),
                ..ClonesFile::default()
            },
            pool: PoolFile { size: pool_size },
            ..ConfigFile::default()
        };
        change(&mut file);
        Self::start_file(dir, mode, file).await
    }

    /// The same as a file says, with the only key if that has none.
    pub(crate) async fn start_file(
        dir: tempfile::TempDir,
        mode: &str,
        mut file: ConfigFile,
    ) -> Self {
        let vmm = dir.path().join(format!("fake-vmm-{mode}"));
        let _ = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_fake-vmm"), &vmm);
        for (name, size) in [("base.ext4", 1 << 20), ("vmlinux", 4096)] {
            if let Ok(file) = std::fs::File::create_new(dir.path().join(name)) {
                file.set_len(size).unwrap();
            }
        }
        let without = ["silent", "refuse", "panic", "noagent"];
        let agent = if without.contains(&mode) {
            dir.path().join("vmlinux")
        } else {
            agent().to_owned()
        };
        (file.vmm, file.agent) = (Some(vmm), Some(agent));
        file.jail.get_or_insert(JailMode::Required);
        if file.api_keys.is_empty() {
            file.api_keys.push(KEY.into());
        }
        let settings = Settings::new(file, Overrides::default(), dir.path()).unwrap();
        let state = DataFolder::open(&dir.path().join("data")).unwrap();
        let launcher = MachineLauncher {
            vmm: settings.vmm.clone(),
            spawner: VmSpawner::new(settings.jail),
            groups: Arc::new(GroupTree::open(&settings.resources.groups(), dir.path())),
            agent: settings.agent.clone(),
            layer_dir: state.layers().to_owned(),
            record_dir: state.machines().to_owned(),
            boot_timeout: settings.limits.boot_timeout,
            pagers: None,
        };
        let vault = open_vault(&state).await;
        let registry = SandboxRegistry::new(launcher, vault, settings.engine_options()).unwrap();
        let app = AppState::new(settings.server_options(), Arc::clone(&registry));
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = plain.local_addr().unwrap();
        let tls = tls(&settings).await;
        let tls_address = tls.as_ref().map(|(at, _)| at.local_addr().unwrap());
        let listeners = Listeners { plain, tls };
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(async move {
            let _state = state;
            e2b::server::serve(app, listeners, async {
                let _ = stopped.await;
            })
            .await
        });
        Self {
            address,
            tls_address,
            registry,
            dir,
            stop: Some(stop),
            done,
        }
    }

    /// Shuts the server down; true if nothing was left over.
    pub(crate) async fn stop(self) -> bool {
        self.close().await.1
    }

    /// Shuts the server down; its folder.
    pub(crate) async fn close(mut self) -> (tempfile::TempDir, bool) {
        drop(self.stop.take());
        let clean = (&mut self.done).await.unwrap();
        (self.dir, clean)
    }

    /// Shuts the server down, with nothing left over, and starts another one in its folder.
    pub(crate) async fn again(self, mode: &str, limits: LimitsFile) -> Self {
        let (dir, clean) = self.close().await;
        assert!(clean);
        Self::start_in(dir, mode, limits, None).await
    }

    /// A control-plane request with the key.
    pub(crate) async fn api(&self, method: &str, path: &str, body: Value) -> Answer {
        self.api_as(KEY, method, path, body).await
    }

    /// The same with another key.
    pub(crate) async fn api_as(&self, key: &str, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        self.send(method, path, &[("x-api-key", key)], body).await
    }

    /// `GET /sandboxes/{id}`.
    pub(crate) async fn get(&self, id: &str) -> Answer {
        self.api("GET", &format!("/sandboxes/{id}"), Value::Null)
            .await
    }

    /// A sandbox from `base`.
    pub(crate) async fn create(&self, body: Value) -> Answer {
        let mut wanted = serde_json::json!({ "templateID": "base", "timeout": 300 });
        for (key, value) in body.as_object().unwrap() {
            wanted[key] = value.clone();
        }
        self.api("POST", "/v2/sandboxes", wanted).await
    }

    /// Any request; the whole answer.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let response = self.open(method, path, headers, body).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        }
    }

    /// Any request over a connection of its own; the answer's head, the body to come.
    pub(crate) async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await
    }

    /// Waits until no slot is in use: every process is reaped.
    pub(crate) async fn idle(&self) {
        self.down_to(0).await;
    }

    /// Waits until no more slots than these are in use.
    pub(crate) async fn down_to(&self, count: usize) {
        let left = until(Duration::from_secs(10), || {
            Some(self.registry.in_use()).filter(|used| *used > count)
        })
        .await;
        assert_eq!(left, None, "sandboxes that are still there, {count} wanted");
    }
}

/// TLS on a free port, if it is set up.
async fn tls(settings: &Settings) -> Option<(TcpListener, Arc<TlsServer>)> {
    let tls = settings.tls.as_ref()?;
    let server = TlsServer::open(tls.files.clone(), &tls.domain).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Some((listener, Arc::new(server)))
}

/// A server before this one in the same process may be about to let go of it.
async fn open_vault(state: &DataFolder) -> ImageVault {
    for _ in 0..100 {
        if let Ok(vault) = ImageVault::open(state.snapshots(), state.layers(), false) {
            return vault;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ImageVault::open(state.snapshots(), state.layers(), false).unwrap()
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Status.
    pub(crate) status: u16,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// Body.
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The `sandboxID` of a 201.
    pub(crate) fn id(&self) -> String {
        assert_eq!(self.status, 201, "{self:?}");
        self.json()["sandboxID"].as_str().unwrap().to_owned()
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Looks again and again until nothing is left of what must go, and says what is left after
/// `limit`. For what tells nobody that it has happened: a process or a descriptor that is gone, a
/// blob swept.
pub(crate) async fn until<T>(limit: Duration, left: impl Fn() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        let now = left();
        if now.is_none() || begin.elapsed() > limit {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// No more descriptors than these are open, once connections have closed.
pub(crate) async fn no_more_files_than(most: usize) {
    let left = until(Duration::from_secs(5), || {
        Some(open_files()).filter(|now| *now > most)
    })
    .await;
    assert_eq!(
        left, None,
        "descriptors that are open, at most {most} wanted"
    );
}

/// How many descriptors this process has open.
pub(crate) fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The processes whose parent is this one, but for what only makes others.
pub(crate) fn children() -> Vec<String> {
    let (_, others) = zygotes_and_others();
    others
}

/// The children that are zygotes, and the others: a line of `/proc/PID/stat` each.
pub(crate) fn zygotes_and_others() -> (Vec<String>, Vec<String>) {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stats = all.filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok());
    let me = std::process::id().to_string();
    let is_child = |stat: &String| {
        let after = stat.rsplit(')').next().unwrap_or_default();
        after.split_whitespace().nth(1) == Some(&me)
    };
    let zygote = format!("({})", control::ZYGOTE_NAME.to_string_lossy());
    stats
        .filter(is_child)
        .partition(|stat| stat.contains(&zygote))
}
