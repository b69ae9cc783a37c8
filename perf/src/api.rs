//! One exec through the whole service, as a client feels it: request sent to exit event read.

use crate::counters::{EventCounters, EventCounts};
use crate::engine::timed;
use crate::output::say;
use crate::record::RecordPrinter;
use anyhow::{Context, Result, ensure};
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use ureq::Agent;

const KEY: &str = "e2b_0000000000000000000000000000000000000000";
/// The largest answer that is read.
const MAX_ANSWER: u64 = 1024 * 1024;

/// Figures of the API path, nanoseconds or instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ApiExec {
    /// `POST /sandboxes` to its answer.
    pub(crate) create_ns: u64,
    /// `Process/Start` of /bin/true to the end of its stream, sandbox warm.
    pub(crate) exec_ns: u64,
    /// What the server and the VM process did during one such exec.
    pub(crate) server: EventCounts,
    /// The VM process's part.
    pub(crate) vm: EventCounts,
}

impl ApiExec {
    /// Prints the figures.
    pub(crate) fn print(&self, unit: &str) {
        say(&format!(
            "api: create, with the making of the template's machine, {} {unit}",
            self.create_ns
        ));
        say(&format!(
            "api: exec /bin/true {} {unit}; server {} system calls; vm process {} vm exits, {} \
             system calls",
            self.exec_ns, self.server.syscalls, self.vm.vm_exits, self.vm.syscalls
        ));
    }
}

impl ApiExec {
    /// Records the figures.
    pub(crate) fn keep(&self, printer: &mut RecordPrinter) {
        let values = [
            ("exec_time", self.exec_ns),
            ("server_syscalls", self.server.syscalls),
            ("vm_syscalls", self.vm.syscalls),
            ("vm_exits", self.vm.vm_exits),
        ];
        printer.keep("api-exec", "hatchery", &values);
    }
}

/// A server of our own that ends with this value.
struct ApiServer {
    child: Child,
    url: String,
    _data: tempfile::TempDir,
}

/// The longest a request may take by the measured machine's own clock. Under instruction counting
/// that is as many billion instructions, of which the dearest request needs a tenth of one.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);

/// Starts a server from `dist`, creates a sandbox, and measures. Twice, if the first time fails:
/// the emulator of the lab sometimes lets an interrupt through that the guest's kernel has masked,
/// which then waits for itself. Both failures are said.
pub(crate) fn exec(dist: &Path) -> Result<ApiExec> {
    measure(dist).or_else(|error| {
        eprintln!("the measurement through the API failed, once more: {error:#}");
        measure(dist)
    })
}

fn measure(dist: &Path) -> Result<ApiExec> {
    let server = ApiServer::start(dist)?;
    let client: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(REQUEST_LIMIT))
        .build()
        .new_agent();
    let (sandbox, create_ns) = timed(|| create(&client, &server.url))?;
    let run = || run_true(&client, &server.url, &sandbox);
    run()?;
    run()?;
    let ((), exec_ns) = timed(run)?;
    let counters = EventCounters::arm()?;
    let vms = crate::processes::children(server.child.id())?;
    ensure!(
        vms.len() == 1,
        "the server has {} child processes, not one VM",
        vms.len()
    );
    let ((), server_counts) = counters.during(&[server.child.id()], run)?;
    let ((), vm) = counters.during(&vms, run)?;
    Ok(ApiExec {
        create_ns,
        exec_ns,
        server: server_counts,
        vm,
    })
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreatedSandbox {
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    envd_access_token: String,
}

fn create(client: &Agent, url: &str) -> Result<CreatedSandbox> {
    let mut answer = client
        .post(format!("{url}/v2/sandboxes"))
        .header("X-API-KEY", KEY)
        .send_json(serde_json::json!({"templateID": "base"}))
        .context("Creating a sandbox")?;
    let text = answer.body_mut().read_to_string()?;
    ensure!(
        answer.status() == 201,
        "POST /v2/sandboxes: {} {text}",
        answer.status()
    );
    Ok(serde_json::from_str(&text)?)
}

/// Runs `/bin/true` and checks that its end event says so.
fn run_true(client: &Agent, url: &str, sandbox: &CreatedSandbox) -> Result<()> {
    let message = br#"{"process":{"cmd":"/bin/true"},"stdin":false}"#;
    let mut body = vec![0];
    body.extend(u32::try_from(message.len())?.to_be_bytes());
    body.extend(message);
    let answer = client
        .post(format!("{url}/process.Process/Start"))
        .header("Content-Type", "application/connect+json")
        .header("Connect-Protocol-Version", "1")
        .header("E2b-Sandbox-Id", &sandbox.sandbox_id)
        .header("E2b-Sandbox-Port", "49983")
        .header("X-Access-Token", &sandbox.envd_access_token)
        .send(&body[..])?;
    let mut text = Vec::new();
    answer
        .into_body()
        .into_reader()
        .take(MAX_ANSWER)
        .read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    ensure!(
        text.contains("exit status 0"),
        "/bin/true through the API: {text}"
    );
    Ok(())
}

impl ApiServer {
    fn start(dist: &Path) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(dist.join("hatchery"))
            .arg("serve")
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .arg("--data-dir")
            .arg(data.path())
            .env("HATCHERY_API_KEYS", KEY)
            // The one VM process is the sandbox's then.
            .env("HATCHERY_POOL_SIZE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("Starting hatchery serve")?;
        let server = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            _data: data,
        };
        server.wait_until_healthy()?;
        Ok(server)
    }

    fn wait_until_healthy(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match ureq::get(format!("{}/health", self.url)).call() {
                Ok(_) => return Ok(()),
                Err(e) if Instant::now() > deadline => {
                    return Err(e).context("The server does not answer /health");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
