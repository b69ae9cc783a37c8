//! Log lines: one JSON object per line on standard error, with the sandbox's id.
//!
//! A line that does not fit into the pipe is dropped: nobody who reads slowly may stop a guest.

use serde_json::json;
use std::io::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes lines for one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct SandboxLog {
    sandbox: Arc<str>,
    console_live: bool,
}

impl SandboxLog {
    /// For the sandbox with this id. With `console_live` the guest's console goes to standard
    /// output as it is, for people who watch.
    pub(crate) fn new(sandbox: &str, console_live: bool) -> Self {
        Self {
            sandbox: sandbox.into(),
            console_live,
        }
    }

    /// One line.
    pub(crate) fn line(&self, level: &str, message: &str) {
        self.put(&json!({ "level": level, "sandbox": &*self.sandbox, "message": message }));
    }

    fn put(&self, value: &serde_json::Value) {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut value = value.clone();
        value["time"] = json!(since.as_secs_f64());
        // One write per line, so that lines of several threads stay whole.
        let _ = std::io::stderr()
            .lock()
            .write_all(format!("{value}\n").as_bytes());
    }
}

impl devices::LineSink for SandboxLog {
    fn line(&mut self, line: &[u8]) {
        if self.console_live {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(line).and_then(|()| out.write_all(b"\n"));
            return;
        }
        let text = String::from_utf8_lossy(line);
        self.put(&json!({ "level": "info", "sandbox": &*self.sandbox, "console": text }));
    }

    fn dropped(&mut self, count: u64) {
        Self::line(
            self,
            "warn",
            &format!("{count} console lines dropped: more than 200 a second"),
        );
    }
}
