//! QEMU's control socket: a line of JSON each way, and events in between.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

/// Most bytes of a line.
const MAX_LINE: u64 = 1 << 20;

/// A connection, ready for commands.
pub(super) struct QmpClient {
    stream: BufReader<UnixStream>,
}

impl QmpClient {
    /// Takes the greeting and switches to commands.
    pub(super) fn new(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        let greeting = qmp.line()?;
        ensure!(greeting.get("QMP").is_some(), "QEMU greets with {greeting}");
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Has a command done.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let answer = self.line()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU's {command}: {error}");
            }
        }
    }

    /// Starts a migration, or takes one in, and waits until it is over.
    pub(super) fn migrate(&mut self, command: &str, uri: &str) -> Result<()> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        // Memory that stands in a file is not written a second time.
        let capabilities = json!({ "capabilities": [on("events"), on("x-ignore-shared")] });
        self.execute("migrate-set-capabilities", &capabilities)?;
        let line = json!({ "execute": command, "arguments": { "uri": uri } }).to_string() + "\n";
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let told = self.line()?;
            if let Some(error) = told.get("error") {
                bail!("QEMU's {command}: {error}");
            }
            if told["event"] != "MIGRATION" {
                continue;
            }
            match told["data"]["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("QEMU's {command} of {uri}: {told}"),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let got = (&mut self.stream).take(MAX_LINE).read_line(&mut line);
        ensure!(
            got.context("Reading from QEMU")? > 0,
            "QEMU closed its control socket"
        );
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }
}
