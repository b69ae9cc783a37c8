//! The stages that need a server: the published SDKs against it, natively and with microVMs.

use super::Tally;
use crate::dist::{Dist, target_dir};
use crate::lab::Options;
use crate::sdk::{self, Release, Target};
use crate::service::{API_KEY, LAB_DIST, Place, Service};
use anyhow::{Context, Result, bail};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The port of the server under fault, in the lab.
const LAB_PORT: u16 = 3100;
/// How much more patience the tests need in the lab.
const LAB_SCALE: &str = "10";
/// The large file of the suites in the lab, MiB; the README's programs move 100 MiB all the same.
const LAB_BIG_MIB: &str = "16";
/// A restarted server that is not there after this long is given up.
const START_LIMIT: Duration = Duration::from_secs(60);

/// SDK suites with the agent as an ordinary process.
pub(super) fn native() -> Result<Tally> {
    Ok(Tally::skip(
        "the native stand-in for a VM process is not there yet",
    ))
}

/// All SDK suites and the README's programs, with microVMs.
pub(super) fn vm() -> Result<Tally> {
    let dist = Dist::ensure()?;
    let mut place = Place::choose(&Options::default())?;
    let log = target_dir().join("test-vm.log");
    let service = Service::start(&mut place, &dist, free_port()?, &log)?;
    let target = target(&place, &service.url);
    let mut tally = Tally::default();
    let mut part = |what: &str, result: Result<Tally>| {
        tally.add(result.unwrap_or_else(|error| Tally::fail(format!("{what}: {error:#}"))));
    };
    let ordinary = ["-m", "not fault and not leaks"];
    part("Python", sdk::pytest(&target, &Release::Pinned, &ordinary));
    part("JavaScript", sdk::node_tests(&target, &Release::Pinned));
    part("README", sdk::snippets(&target));
    part(
        "Python, first API",
        sdk::pytest(&target, &Release::FirstApi, &["-m", "compat"]),
    );
    part(
        "Python, latest",
        sdk::pytest(&target, &Release::Latest, &["-m", "compat"]),
    );
    part(
        "JavaScript, latest",
        sdk::node_tests(&target, &Release::Latest),
    );
    drop(service);
    Ok(tally)
}

/// Faults and leaks: a server of its own, because it is killed.
pub(super) fn fault() -> Result<Tally> {
    let dist = Dist::ensure()?;
    let mut place = Place::choose(&Options::default())?;
    let server = Mortal::start(&mut place, &dist)?;
    let mut target = target(&place, &server.url);
    target
        .set("HATCHERY_HOST_CMD", server.host_command.join(" "))
        .set("HATCHERY_STATE_DIR", format!("{}/data", server.dir))
        .set("HATCHERY_SERVER_PID", server.pid_file())
        .set("HATCHERY_SERVER_START", server.start.as_str());
    sdk::pytest(&target, &Release::Pinned, &["-m", "fault or leaks"])
}

/// One short run of the benchmark command.
pub(super) fn bench() -> Result<Tally> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.args(["bench", "boot", "--samples", "1", "--no-peer"]);
    let (status, _) = super::tee(&mut command)?;
    Ok(Tally::of_status(status, "cargo xtask bench boot"))
}

fn target(place: &Place, url: &str) -> Target {
    let mut target = Target::new(url, API_KEY);
    if matches!(place, Place::Lab(_)) {
        target
            .set("HATCHERY_TIME_SCALE", LAB_SCALE)
            .set("HATCHERY_BIG_MIB", LAB_BIG_MIB);
    }
    target
}

/// A server that tests may kill and start again by a shell script on its host. Ends when dropped.
struct Mortal {
    url: String,
    /// Runs its next argument as a shell script on the server's host.
    host_command: Vec<String>,
    /// The script that starts the server in the background.
    start: String,
    /// A folder on that host with the process id, the log and the server's state.
    dir: String,
}

impl Mortal {
    fn start(place: &mut Place, dist: &Dist) -> Result<Self> {
        let programs = place.install(dist)?;
        let port = free_port()?;
        let (host_command, listen, dir) = match place {
            Place::Host => {
                let dir = std::fs::canonicalize(target_dir())?.join("test-fault");
                (
                    vec!["sh".into(), "-c".into()],
                    format!("127.0.0.1:{port}"),
                    dir.display().to_string(),
                )
            }
            Place::Lab(lab) => {
                lab.forward(port, LAB_PORT)?;
                let program = std::env::current_exe()?.display().to_string();
                let words = ["lab", "exec", "--", "sh", "-c"].map(String::from);
                let command = std::iter::once(program).chain(words).collect();
                (
                    command,
                    format!("0.0.0.0:{LAB_PORT}"),
                    format!("{LAB_DIST}/test-fault"),
                )
            }
        };
        let start = start_script(&programs, &listen, &dir);
        let server = Self {
            url: format!("http://127.0.0.1:{port}"),
            host_command,
            start,
            dir,
        };
        server.on_host(&format!("mkdir -p '{}'", server.dir))?;
        server.on_host(&server.start)?;
        server.wait(port)?;
        Ok(server)
    }

    fn pid_file(&self) -> String {
        format!("{}/pid", self.dir)
    }

    fn on_host(&self, script: &str) -> Result<()> {
        let (program, args) = self
            .host_command
            .split_first()
            .context("No command for the host")?;
        let status = Command::new(program)
            .args(args)
            .arg(script)
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("`{script}` on the server's host: {status}");
        }
        Ok(())
    }

    fn wait(&self, port: u16) -> Result<()> {
        let start = Instant::now();
        // The lab's forwarder accepts at once, so ask until somebody answers.
        while !answers(port) {
            if start.elapsed() > START_LIMIT {
                let _ = self.on_host(&format!("tail -n 20 '{}/log' >&2", self.dir));
                bail!("The server did not come up: the end of its log is above");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        // Killed hard only if it does not end by itself.
        let script = format!(
            "p=$(cat '{}') || exit 0; kill $p || exit 0; for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 $p \
             2>/dev/null || exit 0; sleep 1; done; kill -9 $p",
            self.pid_file()
        );
        let _ = self.on_host(&script);
    }
}

/// A shell script that starts a server in the background, away from the terminal.
fn start_script(programs: &Path, listen: &str, dir: &str) -> String {
    let programs = programs.display();
    format!(
        "HATCHERY_API_KEYS={API_KEY} setsid sh -c 'echo $$ > \"{dir}/pid\"; exec \"{programs}/hatchery\" \
         serve --listen {listen} --dist \"{programs}\" --data-dir \"{dir}/data\"' \
         >> '{dir}/log' 2>&1 < /dev/null &"
    )
}

fn answers(port: u16) -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 10];
        stream.read_exact(&mut head)?;
        Ok(head == *b"HTTP/1.1 2")
    };
    ask().unwrap_or(false)
}

/// A port of loopback that nobody listens on.
fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("Looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
