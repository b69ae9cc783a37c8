//! A peer's process that answers on its HTTP socket, with nothing in it yet.

use super::peer::{PeerProcess, PeerVm, listen, remove};
use super::{no_xsave, now_ns};
use crate::http::HttpClient;
use anyhow::{Context, Result};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

/// The process, and the listener that its guest's agent is going to call.
pub(super) struct StartedEngine {
    process: PeerProcess,
    /// Its API.
    pub(super) api: HttpClient<UnixStream>,
    listener: UnixListener,
    /// When it was asked for, and when it answered.
    times: [u64; 2],
}

impl StartedEngine {
    /// Starts `program` and waits for its socket in `place`, which `flag` tells it.
    pub(super) fn new(program: &Path, flag: &str, place: &Path) -> Result<Self> {
        let socket = place.join("api");
        remove(&socket)?;
        let listener = listen(place)?;
        // Ours to do, not the peer's.
        let no_xsave = no_xsave::needed()?;
        let asked_ns = now_ns();
        let mut command = Command::new(program);
        command.arg(flag).arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = match &no_xsave {
            Some(program) => no_xsave::spawn(&mut command, program),
            None => command.spawn().map_err(Into::into),
        };
        let child = child.with_context(|| format!("Starting {}", program.display()))?;
        let mut process = PeerProcess(child);
        let api = api(&mut process, place)?;
        Ok(Self {
            process,
            api,
            listener,
            times: [asked_ns, now_ns()],
        })
    }

    /// The guest is loaded or boots: waits for its agent.
    pub(super) fn machine(mut self) -> Result<PeerVm> {
        let loaded_ns = now_ns();
        let (agent, ready) = self.process.agent(&self.listener)?;
        let [asked_ns, answers_ns] = self.times;
        Ok(PeerVm {
            process: self.process,
            agent,
            ready,
            times: [asked_ns, answers_ns, loaded_ns, now_ns()],
        })
    }
}

/// A connection to the API of a process that was started in `place`.
pub(super) fn api(process: &mut PeerProcess, place: &Path) -> Result<HttpClient<UnixStream>> {
    Ok(HttpClient::new(
        process.connect(&place.join("api"))?,
        "localhost",
    ))
}
