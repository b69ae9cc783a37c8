//! Where a lab keeps its files, and what it remembers about itself.

use super::intel_model::IntelModel;
use crate::cache;
use crate::dist::target_dir;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The agent's port inside the lab.
pub(super) const AGENT_PORT: u16 = 1;

/// QEMU's control socket, in the lab's folder.
pub(super) const QMP_NAME: &str = "qmp.sock";
/// What the lab's kernel says, in the lab's folder.
pub(super) const CONSOLE_NAME: &str = "console.log";
/// Raised with every change to `frame` or to the state file.
const PROTOCOL: u32 = 3;

/// The folders of a lab.
#[derive(Clone)]
pub(super) struct LabPlace {
    /// What tells it from other labs of this workspace.
    pub(super) name: String,
    /// `target/lab/<name>`: everything the lab writes on this machine.
    pub(super) dir: PathBuf,
    /// `/share` in the lab, writable on both sides.
    pub(super) share: PathBuf,
    /// `/dist` in the lab.
    pub(super) dist: PathBuf,
    /// `/image` in the lab.
    pub(super) images: PathBuf,
}

/// What a running lab was started with; written by whoever started it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LabState {
    /// [`PROTOCOL`] of whoever started it.
    #[serde(default)]
    protocol: u32,
    pub(super) token: String,
    pub(super) icount: bool,
    /// The Intel processor that Bochs emulates; `None` for QEMU's AMD.
    #[serde(default)]
    pub(super) intel: Option<IntelModel>,
    pub(super) memory_mib: u32,
    pub(super) forwards: Vec<PortForward>,
}

/// A port of loopback that leads into the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortForward {
    pub(super) host: u16,
    pub(super) lab: u16,
    /// The emulator's own port, which the keeper passes connections on to; without, `host` is.
    pub(super) via: Option<u16>,
}

impl LabPlace {
    /// The place of the lab with this name.
    pub(super) fn new(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
            bail!("{name:?} cannot name a lab: use up to 32 letters, digits, '-' or '_'");
        }
        let target = std::path::absolute(target_dir())?;
        let dir = target.join("lab").join(name);
        Ok(Self {
            name: name.to_owned(),
            share: dir.join("share"),
            dist: target.join("dist"),
            images: cache::root()?.join("image"),
            dir,
        })
    }

    /// Makes its folders.
    pub(super) fn make(&self) -> Result<()> {
        for dir in [&self.share, &self.dist, &self.images] {
            fs::create_dir_all(dir).with_context(|| format!("Creating {}", dir.display()))?;
        }
        Ok(())
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }

    pub(super) fn bochs_pid_file(&self) -> PathBuf {
        self.dir.join("bochs.pid")
    }

    /// Bochs' configuration.
    pub(super) fn bochsrc(&self) -> PathBuf {
        self.dir.join("bochsrc")
    }

    pub(super) fn qmp(&self) -> PathBuf {
        self.dir.join(QMP_NAME)
    }

    /// Where the keeper is asked for forwards; see `keeper`.
    pub(super) fn keeper(&self) -> PathBuf {
        self.dir.join("keeper.sock")
    }

    /// Locked by the keeper.
    pub(super) fn keeper_lock(&self) -> PathBuf {
        self.dir.join("keeper.lock")
    }

    /// What the keeper says.
    pub(super) fn keeper_log(&self) -> PathBuf {
        self.dir.join("keeper.log")
    }

    /// Locked by everybody who runs a command; see `awake`.
    pub(super) fn users(&self) -> PathBuf {
        self.dir.join("users")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.dir.join(CONSOLE_NAME)
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// The last lines of the lab's console.
    pub(super) fn console_tail(&self, lines: usize) -> String {
        tail(&self.console(), lines)
    }

    /// Waits until nobody else starts, stops or changes this lab; released when dropped.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("Opening {}", path.display()))?;
        file.lock()
            .with_context(|| format!("Locking {}", path.display()))?;
        Ok(file)
    }

    /// What the running lab was started with.
    pub(super) fn load(&self) -> Result<LabState> {
        let path = self.dir.join("state.json");
        let text = fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
        let state: LabState = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged: stop the lab", path.display()))?;
        if state.protocol != PROTOCOL {
            bail!(
                "The lab {:?} was started by another version of this program: stop it",
                self.name
            );
        }
        Ok(state)
    }

    /// Replaces the state; only this user can read it, as the token is in it.
    pub(super) fn save(&self, state: &LabState) -> Result<()> {
        let path = self.dir.join("state.json");
        let fresh = self.dir.join("state.json.new");
        let _ = fs::remove_file(&fresh);
        let mut options = File::options();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        serde_json::to_writer(file, state)?;
        fs::rename(&fresh, &path).with_context(|| format!("Writing {}", path.display()))
    }
}

/// The last lines of a log; empty if there is none.
pub(super) fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let skip = text.lines().count().saturating_sub(lines);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}

impl LabState {
    /// A lab to be, with a new token and a port for its agent.
    pub(super) fn new(icount: bool, memory_mib: u32, intel: Option<IntelModel>) -> Result<Self> {
        let agent = PortForward {
            host: free_port()?,
            lab: AGENT_PORT,
            via: None,
        };
        Ok(Self {
            protocol: PROTOCOL,
            token: token()?,
            icount,
            intel,
            memory_mib,
            forwards: vec![agent],
        })
    }

    /// The emulator's port that leads to a port of the lab, if the keeper uses one already.
    pub(super) fn via(&self, lab: u16) -> Option<u16> {
        let to = self.forwards.iter().filter(|forward| forward.lab == lab);
        to.filter_map(|forward| forward.via).next()
    }

    /// The port of loopback that leads to a port of the lab.
    pub(super) fn host_port(&self, lab: u16) -> Option<u16> {
        self.forwards
            .iter()
            .find(|forward| forward.lab == lab)
            .map(|forward| forward.host)
    }
}

/// A port of loopback that nobody listens on. Somebody may before it is used: then
/// whoever was to use it says so.
pub(crate) fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("Looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// 128 bits that nobody can guess.
fn token() -> Result<String> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(hex::encode(bytes))
}
