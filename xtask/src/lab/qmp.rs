//! A few words of QEMU's machine protocol: JSON lines over a unix socket.

use super::unix;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Events that may precede an answer; more means that something is wrong.
const MAX_EVENTS: usize = 64;

/// A connection that is ready for commands.
pub(super) struct QmpClient {
    to: UnixStream,
    from: BufReader<UnixStream>,
}

impl QmpClient {
    /// Connects to the socket of a running QEMU.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let to = unix::connect(socket)
            .with_context(|| format!("Connecting to QEMU at {}", socket.display()))?;
        to.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut qmp = Self {
            from: BufReader::new(to.try_clone()?),
            to,
        };
        qmp.line()?; // the greeting
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.to.write_all(format!("{request}\n").as_bytes())?;
        for _ in 0..MAX_EVENTS {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
        bail!("QEMU did not answer {command}")
    }

    /// Forwards a port of loopback to a port of the lab; false if QEMU could not take the port.
    pub(super) fn forward(&mut self, host: u16, lab: u16) -> Result<bool> {
        let line = format!("hostfwd_add net tcp:127.0.0.1:{host}-:{lab}");
        let said = self.execute("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(said.as_str().is_some_and(|said| said.trim().is_empty()))
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.from
            .read_line(&mut line)
            .context("Reading from QEMU")?;
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }
}
