//! A server of our own for measuring, with a pool that stands still while it is looked at.
//!
//! Warm VMs hold slots under `max_sandboxes` like sandboxes do. A server with exactly as many slots
//! as warm VMs therefore does not refill its pool before sandboxes end: what a creation costs and
//! what the next warm VM costs are seen apart, and both are printed.

use super::client::{ApiClient, KEY};
use crate::processes;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that does not come up, or a pool that does not fill, is given up after this long, by
/// the measured machine's own clock.
const UP: Duration = Duration::from_secs(120);
/// A server ends all its machines within this.
const DOWN: Duration = Duration::from_secs(120);
/// Between two looks: at first, and after a while. Looking at hundreds of processes takes millions
/// of instructions.
const PAUSE: Duration = Duration::from_millis(10);
const LONG_PAUSE: Duration = Duration::from_millis(200);

/// What a server is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerShape {
    /// Copies that stand ready.
    pub(crate) pool: u32,
    /// Most machines at once, warm VMs and sandboxes together.
    pub(crate) machines: u32,
    /// Its machines are stand-ins, which have none: what the server starts itself is counted.
    pub(crate) stand_ins: bool,
}

/// How long clients wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientPatience {
    /// For a sandbox that is made, used or ended.
    pub(crate) quick: Duration,
    /// For one that is forked, stored or reset, and for the first of a server.
    pub(crate) slow: Duration,
}

/// A running server; it and all its machines end when this is dropped.
pub(crate) struct BenchServer {
    child: Child,
    address: SocketAddr,
    wanted: ServerShape,
    patience: ClientPatience,
    data: tempfile::TempDir,
}

impl BenchServer {
    /// Starts the server that is in `dist` and waits until copies can be made. Its clients wait for
    /// bytes with `patience`.
    pub(crate) fn start(
        dist: &Path,
        wanted: ServerShape,
        patience: ClientPatience,
    ) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = data.path().join("hatchery.toml");
        let text = format!(
            "[limits]\nmax_sandboxes = {}\n[pool]\nsize = {}\n\
             [templates.base]\nimage = \"base.ext4\"\n\
             cpu_count = 1\nmemory_mb = 512\ndefault_user = \"{}\"\n",
            wanted.machines,
            wanted.pool,
            // A stand-in's guest is this machine, whose other users nobody knows.
            if wanted.stand_ins { "root" } else { "user" }
        );
        fs::write(&config, text)?;
        let log = File::create(data.path().join("log"))?;
        let child = Command::new(dist.join("hatchery"))
            .args(["serve", "--listen", &address.to_string(), "--config"])
            .arg(&config)
            .arg("--image-dir")
            .arg(dist)
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .env("HATCHERY_API_KEYS", KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("Starting {}/hatchery serve", dist.display()))?;
        let server = Self {
            child,
            address,
            wanted,
            patience,
            data,
        };
        server.up().context("The server did not come up")?;
        Ok(server)
    }

    fn up(&self) -> Result<()> {
        let healthy = || Ok(self.client().is_ok());
        self.wait("a healthy server", healthy)?;
        // The first creation waits for the template VM. It also proves that all is well.
        let mut client = self.patient_client()?;
        let (sandbox, steps) = client.create("base")?;
        client.exec_true(&sandbox)?;
        client.delete(&sandbox.id)?;
        let booted = steps.iter().any(|(name, _)| name == "hello");
        ensure!(
            !booted,
            "its sandboxes are not copies, they boot{}",
            self.tail()
        );
        self.settle(0)
    }

    /// A connection of its own, for quick requests.
    pub(crate) fn client(&self) -> Result<ApiClient> {
        ApiClient::connect(self.address, self.patience.quick)
    }

    /// A connection of its own, for any request.
    pub(crate) fn patient_client(&self) -> Result<ApiClient> {
        ApiClient::connect(self.address, self.patience.slow)
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder of state.
    pub(crate) fn data(&self) -> PathBuf {
        self.data.path().join("data")
    }

    /// The machines that there are, warm VMs and sandboxes.
    pub(crate) fn machines(&self) -> Result<Vec<u32>> {
        if self.wanted.stand_ins {
            return processes::children(self.pid());
        }
        processes::machines(self.pid())
    }

    /// Waits until there are so many sandboxes' machines and a full pool, and nothing more.
    pub(crate) fn settle(&self, sandboxes: u32) -> Result<()> {
        let free = self.wanted.machines.saturating_sub(sandboxes);
        let expected = sandboxes + self.wanted.pool.min(free);
        let what = format!("{expected} machines");
        self.wait(&what, || {
            Ok(u32::try_from(self.machines()?.len())? == expected)
        })?;
        // A warm VM's process is there a little before the warm VM is ready.
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    }

    fn wait(&self, what: &str, there: impl Fn() -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        let mut pause = PAUSE;
        while !there()? {
            if !fs::exists(format!("/proc/{}/exe", self.pid())).unwrap_or(false)
                || begin.elapsed() > UP
            {
                let machines = self.machines().map(|m| m.len());
                bail!(
                    "There is not {what} after {:?}, but {machines:?} machines{}",
                    begin.elapsed(),
                    self.tail()
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONG_PAUSE);
        }
        Ok(())
    }

    /// The end of its log, for an error.
    fn tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut log = File::open(self.data.path().join("log"))?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
            let mut bytes = Vec::new();
            log.take(2000).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        format!("; the end of its log:\n{}", read().unwrap_or_default())
    }
}

impl Drop for BenchServer {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < DOWN {
            std::thread::sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
