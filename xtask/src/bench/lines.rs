//! What the benchmark suite says in a place that keeps no files: records and a machine's
//! description for files, the rest for people.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a record's line begins with.
const RECORD: &[u8] = b"record: ";
/// What a machine's description begins with.
const MACHINE: &[u8] = b"machine: ";

/// Sorts lines as they come in pieces.
pub(super) struct OutputLines {
    files: Option<(PathBuf, String)>,
    records: Option<File>,
    /// A line whose end is still to come.
    begun: Vec<u8>,
}

impl OutputLines {
    /// Records go to `<folder>/<name>.jsonl`; without a folder they are dropped.
    pub(super) fn new(files: Option<(&Path, &str)>) -> Self {
        Self {
            files: files.map(|(folder, name)| (folder.into(), name.into())),
            records: None,
            begun: Vec::new(),
        }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.begun.extend_from_slice(bytes);
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            if let Some(record) = line.strip_prefix(RECORD) {
                self.keep(record)?;
            } else if let Some(machine) = line.strip_prefix(MACHINE) {
                self.machine(machine)?;
            } else {
                std::io::stdout().write_all(&line)?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, record: &[u8]) -> Result<()> {
        let Some((folder, name)) = &self.files else {
            return Ok(());
        };
        let file = match &mut self.records {
            Some(file) => file,
            none => none.insert(create(&folder.join(name).with_extension("jsonl"))?),
        };
        Ok(file.write_all(record)?)
    }

    fn machine(&self, machine: &[u8]) -> Result<()> {
        let Some((folder, _)) = &self.files else {
            return Ok(());
        };
        let read: serde_json::Value = serde_json::from_slice(machine)?;
        let place = read["place"].as_str().unwrap_or("unknown");
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        anyhow::ensure!(place.chars().all(plain), "{place:?} is not a place");
        let path = folder.join(format!("machine-{place}.json"));
        Ok(create(&path)?.write_all(machine)?)
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("Creating {}", path.display()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn records_in_pieces_are_kept_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = OutputLines::new(Some((folder.path(), "x")));
        for piece in [
            "record: {\"a",
            "\":1}\nwor",
            "ds\nmachine: {\"place\":\"lab\"}\nrecord: {}\n",
        ] {
            lines.take(piece.as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        let (records, machine) = (read("x.jsonl"), read("machine-lab.json"));
        let bad = lines.take(b"machine: {\"place\":\"../x\"}\n");
        assert_eq!(records, b"{\"a\":1}\n{}\n");
        assert_eq!(machine, b"{\"place\":\"lab\"}\n");
        bad.unwrap_err();
    }
}
