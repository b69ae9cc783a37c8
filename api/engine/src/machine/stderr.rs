//! Log lines of a VM process: bounded, rate-limited, with the sandbox's id.

use crate::machine::name::MachineName;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

/// Most bytes of one line; the rest of it is dropped.
const MAX_LINE: usize = 1024;
/// Most lines in one [`WINDOW`]; more are counted, not shown.
const MAX_LINES: u32 = 50;
const WINDOW: Duration = Duration::from_secs(1);

/// Copies what comes out of `stderr` into the log until its end. Must be called on the runtime.
pub(crate) fn copy_to_log(name: MachineName, stderr: OwnedFd) {
    match pipe::Receiver::from_owned_fd(stderr) {
        Ok(pipe) => drop(tokio::spawn(copy(name, pipe))),
        Err(error) => tracing::warn!(sandbox_id = %name, %error, "no log from the VM process"),
    }
}

async fn copy(name: MachineName, mut pipe: pipe::Receiver) {
    let mut lines = LineLimiter::new(Instant::now());
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
        for byte in &chunk[..read] {
            if let Some(line) = lines.push(*byte, Instant::now()) {
                tracing::info!(target: "vmm", sandbox_id = %name, "{line}");
            }
        }
        if let Some(dropped) = lines.take_dropped(Instant::now()) {
            tracing::warn!(target: "vmm", sandbox_id = %name, dropped, "log lines dropped");
        }
    }
    if let Some(line) = lines.push(b'\n', Instant::now()) {
        tracing::info!(target: "vmm", sandbox_id = %name, "{line}");
    }
}

/// Cuts bytes into lines and keeps the rate. Time is passed in.
struct LineLimiter {
    line: Vec<u8>,
    window: Instant,
    shown: u32,
    dropped: u32,
}

impl LineLimiter {
    fn new(now: Instant) -> Self {
        Self {
            line: Vec::new(),
            window: now,
            shown: 0,
            dropped: 0,
        }
    }

    /// The finished line, made printable, if there is one and the rate allows it.
    fn push(&mut self, byte: u8, now: Instant) -> Option<String> {
        if byte != b'\n' {
            if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
            return None;
        }
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return None;
        }
        if now.duration_since(self.window) >= WINDOW && self.dropped == 0 {
            (self.window, self.shown) = (now, 0);
        }
        if self.shown == MAX_LINES {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        self.shown += 1;
        let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Some(
            String::from_utf8_lossy(&line)
                .chars()
                .map(printable)
                .collect(),
        )
    }

    /// How many lines the past window dropped, once that window is over.
    fn take_dropped(&mut self, now: Instant) -> Option<u32> {
        if self.dropped == 0 || now.duration_since(self.window) < WINDOW {
            return None;
        }
        (self.window, self.shown) = (now, 0);
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn push(lines: &mut LineLimiter, text: &str, now: Instant) -> Vec<String> {
        text.bytes()
            .filter_map(|byte| lines.push(byte, now))
            .collect()
    }

    #[test]
    fn lines_are_cut_and_cleaned() {
        let now = Instant::now();
        let mut lines = LineLimiter::new(now);
        assert_eq!(push(&mut lines, "a\n\nb\x1bc\nd", now), ["a", "b\u{fffd}c"]);
        let long = "x".repeat(5000) + "\n";
        assert_eq!(push(&mut lines, &long, now)[0].len(), MAX_LINE);
    }

    #[test]
    fn a_flood_is_counted_not_shown() {
        let now = Instant::now();
        let mut lines = LineLimiter::new(now);
        assert_eq!(push(&mut lines, &"x\n".repeat(1000), now).len(), 50);
        assert_eq!(lines.take_dropped(now), None);
        let later = now + WINDOW;
        assert_eq!(lines.take_dropped(later), Some(950));
        assert_eq!(push(&mut lines, "y\n", later), ["y"]);
    }
}
