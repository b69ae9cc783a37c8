//! What the barometer says in a place that keeps no files: records for a file, the rest for people.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// What a record's line begins with.
const RECORD: &[u8] = b"record: ";

/// Sorts lines as they come in pieces.
pub(super) struct Lines {
    path: Option<PathBuf>,
    file: Option<File>,
    /// A line whose end is still to come.
    begun: Vec<u8>,
}

impl Lines {
    /// Records go to `path`; without one they are dropped.
    pub(super) const fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            file: None,
            begun: Vec::new(),
        }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.begun.extend_from_slice(bytes);
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            match line.strip_prefix(RECORD) {
                Some(record) => self.keep(record)?,
                None => std::io::stdout().write_all(&line)?,
            }
        }
        Ok(())
    }

    fn keep(&mut self, record: &[u8]) -> Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(
                File::create(path).with_context(|| format!("Creating {}", path.display()))?,
            ),
        };
        Ok(file.write_all(record)?)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn records_in_pieces_are_kept_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        let mut lines = Lines::new(Some(path.clone()));
        for piece in ["record: {\"a", "\":1}\nwor", "ds\nrecord: {}\n"] {
            lines.take(piece.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read(path).unwrap(), b"{\"a\":1}\n{}\n");
    }
}
