//! Warnings of the devices, which know no sandbox, as log lines of this one.
//!
//! A guest may be able to cause them at will, so no more than [`PER_SECOND`] are written.

use crate::log::SandboxLog;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Most warnings written in a second; the number left out is in the next one.
const PER_SECOND: u32 = 10;

/// Gives events to a [`SandboxLog`].
pub(crate) struct Trace {
    log: SandboxLog,
    window: Mutex<Window>,
}

struct Window {
    start: Instant,
    lines: u32,
    dropped: u64,
}

impl Window {
    /// Whether a line may be written now, and how many were not since the last one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.start) >= Duration::from_secs(1) {
            self.start = now;
            self.lines = 0;
        }
        if self.lines == PER_SECOND {
            self.dropped += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

impl Trace {
    /// Makes this the receiver of all events of the process. Only the first one counts.
    pub(crate) fn install(log: SandboxLog) {
        let window = Window {
            start: Instant::now(),
            lines: 0,
            dropped: 0,
        };
        let _ = tracing::subscriber::set_global_default(Self {
            log,
            window: Mutex::new(window),
        });
    }
}

/// The fields of an event, message first, in one line.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let written = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, ", {name} {value:?}"),
        };
        // Writing into a String does not fail.
        let _ = written;
    }
}

impl Subscriber for Trace {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let admitted = self
            .window
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(Instant::now());
        let Some(dropped) = admitted else { return };
        let mut line = Line::default();
        event.record(&mut line);
        if dropped > 0 {
            let _ = write!(line.0, " ({dropped} lines left out before)");
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => "info",
        };
        self.log.line(level, &line.0);
    }

    // No spans are used here.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let start = Instant::now();
        let mut window = Window {
            start,
            lines: 0,
            dropped: 0,
        };
        let admitted = (0..1000).filter(|_| window.admit(start).is_some()).count();
        assert_eq!(admitted, 10);
        assert_eq!(window.admit(start + Duration::from_secs(1)), Some(990));
        assert_eq!(window.admit(start + Duration::from_secs(1)), Some(0));
    }
}
