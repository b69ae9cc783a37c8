//! What happened to a running sandbox that its user should know: a few recent entries.

use jiff::Timestamp;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Most entries; the oldest give way.
const MAX_ENTRIES: usize = 128;
/// Most bytes of one value.
const MAX_VALUE: usize = 256;

/// How much an entry matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For whoever looks for something.
    Debug,
    /// What is normal.
    Info,
    /// What a user may not have expected.
    Warn,
    /// What did not work.
    Error,
}

/// One entry.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// When.
    pub at: Timestamp,
    /// How much it matters.
    pub level: LogLevel,
    /// What happened.
    pub message: &'static str,
    /// With which values, at most 256 bytes each.
    pub fields: Vec<(&'static str, String)>,
}

/// The entries of one sandbox, at most 128. Clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct SandboxLog(Arc<Mutex<VecDeque<LogEntry>>>);

impl SandboxLog {
    /// Adds an entry; values that are too long are cut.
    pub(crate) fn push(
        &self,
        level: LogLevel,
        message: &'static str,
        fields: Vec<(&'static str, String)>,
    ) {
        let cut = |(name, value): (&'static str, String)| {
            let end = value.floor_char_boundary(MAX_VALUE);
            (name, value[..end].to_owned())
        };
        let entry = LogEntry {
            at: Timestamp::now(),
            level,
            message,
            fields: fields.into_iter().map(cut).collect(),
        };
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == MAX_ENTRIES {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// All entries, the oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<LogEntry> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().cloned().collect()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn it_keeps_the_last_entries_and_cuts_what_is_long() {
        let log = SandboxLog::default();
        for number in 0..300 {
            log.push(
                LogLevel::Info,
                "counted",
                vec![("number", number.to_string())],
            );
        }
        log.push(LogLevel::Warn, "long", vec![("text", "é".repeat(1000))]);
        let entries = log.entries();
        assert_eq!(entries.len(), MAX_ENTRIES);
        assert_eq!(entries[0].fields, [("number", "173".to_owned())]);
        let last = &entries[MAX_ENTRIES - 1];
        assert_eq!(
            (last.level, last.fields[0].1.len()),
            (LogLevel::Warn, MAX_VALUE)
        );
    }
}
