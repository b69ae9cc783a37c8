//! Raw records: every sample as one line of JSON, kept beside a description of the machine.
//!
//! Figures in reports are made from these lines and nothing else, so that anybody can make others.

use crate::renamed;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The version of [`Record`].
pub(crate) const SCHEMA: u32 = 1;
/// Where the clock counts instructions.
pub(crate) const COUNTED: &str = "lab";
/// An emulated host whose clock does not: its times are good for ratios only.
pub(crate) const UNCOUNTED: &str = "lab-wall";
/// Bare guests on a machine's own KVM, in real time.
pub(crate) const BASELINE: &str = "baseline";
/// What record files end with.
const EXTENSION: &str = "jsonl";
/// Most bytes of a record file that are read.
const MAX_FILE: u64 = 1 << 30;

/// One sample: something was done once, and this is what it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// `baseline`, `lab`, `lab-wall` or `metal`; never mixed in one figure.
    pub(crate) place: String,
    /// The scenario's name in its definition.
    pub(crate) scenario: String,
    /// What was measured.
    pub(crate) engine: String,
    /// Its number among the scenario's samples, from 0.
    pub(crate) sample: u64,
    /// When it was over, nanoseconds since the run began.
    pub(crate) at_ns: u64,
    /// Whether it did what it should; if not, it counts as a failure and its values do not count.
    pub(crate) ok: bool,
    /// What the guest wrote, and was expected to write; or whatever else proves the work.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) verified: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The figures. The end of a name is its unit: `_ns`, `_insns` (instructions of the emulated
    /// host), `_kib`, `_per_s`; without one it is a count.
    pub(crate) values: BTreeMap<String, u64>,
}

impl Record {
    /// Whatever it was called when it was written.
    fn under_todays_names(mut self) -> Self {
        self.place = renamed::place(self.place);
        self.scenario = renamed::scenario(self.scenario);
        let values = self.values.into_iter();
        self.values = values
            .map(|(name, value)| (renamed::value(name), value))
            .collect();
        self
    }
}

/// What one sample gave, before it is a record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// See [`Record::verified`].
    pub(crate) verified: String,
    /// See [`Record::values`].
    pub(crate) values: BTreeMap<String, u64>,
}

impl Sample {
    /// With figures, and the proof that the work was done.
    pub(crate) fn new(verified: impl Into<String>, values: &[(&str, u64)]) -> Self {
        Self {
            verified: verified.into(),
            values: values.iter().map(|(k, v)| ((*k).into(), *v)).collect(),
        }
    }

    /// With more figures.
    pub(crate) fn add(&mut self, values: &[(&str, u64)]) {
        let owned = values.iter().map(|(k, v)| ((*k).into(), *v));
        self.values.extend(owned);
    }
}

/// Appends records to a file.
pub(crate) struct RecordFile {
    out: BufWriter<File>,
    place: String,
    began_ns: u64,
    counts: BTreeMap<String, u64>,
}

impl RecordFile {
    /// Begins `<folder>/<name>.jsonl`; samples of an earlier run of the same name are replaced.
    pub(crate) fn create(folder: &Path, name: &str, place: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("Creating {}", folder.display()))?;
        let path = folder.join(name).with_extension(EXTENSION);
        let file = File::create(&path).with_context(|| format!("Creating {}", path.display()))?;
        Ok(Self {
            out: BufWriter::new(file),
            place: place.into(),
            began_ns: crate::engine::now_ns(),
            counts: BTreeMap::new(),
        })
    }

    /// Keeps one sample, good or failed; a failure is said at once.
    pub(crate) fn keep(
        &mut self,
        scenario: &str,
        engine: &str,
        sample: Result<Sample>,
    ) -> Result<()> {
        let number = self.counts.entry(scenario.into()).or_default();
        let (ok, error, sample) = match sample {
            Ok(sample) => (true, None, sample),
            Err(error) => (false, Some(format!("{error:#}")), Sample::default()),
        };
        if let Some(error) = &error {
            eprintln!("{scenario}: sample {number} failed: {error}");
        }
        let record = Record {
            schema: SCHEMA,
            place: self.place.clone(),
            scenario: scenario.into(),
            engine: engine.into(),
            sample: *number,
            at_ns: crate::engine::now_ns() - self.began_ns,
            ok,
            verified: sample.verified,
            error,
            values: sample.values,
        };
        *number += 1;
        serde_json::to_writer(&mut self.out, &record)?;
        self.out.write_all(b"\n")?;
        Ok(self.out.flush()?)
    }
}

/// Prints records, one a line behind `record: `, from a place that keeps no files: whoever runs
/// this program there writes them down.
pub(crate) struct RecordPrinter {
    /// Whether the clock counts instructions, as in the lab.
    pub(crate) icount: bool,
    counts: BTreeMap<(String, String), u64>,
    began_ns: u64,
}

impl RecordPrinter {
    /// Nothing is printed yet.
    pub(crate) fn new(icount: bool) -> Self {
        Self {
            icount,
            counts: BTreeMap::new(),
            began_ns: crate::engine::now_ns(),
        }
    }

    /// Prints one sample that succeeded.
    pub(crate) fn keep(&mut self, scenario: &str, engine: &str, values: &[(&str, u64)]) {
        self.sample(scenario, engine, Ok(Sample::new("", values)));
    }

    /// Prints one sample, good or failed; a failure is said at once. Values whose name ends in
    /// `_time` are what the clock counts.
    pub(crate) fn sample(&mut self, scenario: &str, engine: &str, sample: Result<Sample>) {
        let unit = if self.icount { "_insns" } else { "_ns" };
        let named = |(name, value): (String, u64)| match name.strip_suffix("_time") {
            Some(name) => (format!("{name}{unit}"), value),
            None => (name, value),
        };
        let key = (scenario.to_owned(), engine.to_owned());
        let number = self.counts.entry(key).or_default();
        let (ok, error, sample) = match sample {
            Ok(sample) => (true, None, sample),
            Err(error) => (false, Some(format!("{error:#}")), Sample::default()),
        };
        if let Some(error) = &error {
            eprintln!("{scenario}: sample {number} failed: {error}");
        }
        let record = Record {
            schema: SCHEMA,
            place: if self.icount { COUNTED } else { UNCOUNTED }.into(),
            scenario: scenario.into(),
            engine: engine.into(),
            sample: *number,
            at_ns: crate::engine::now_ns() - self.began_ns,
            ok,
            verified: sample.verified,
            error,
            values: sample.values.into_iter().map(named).collect(),
        };
        *number += 1;
        if let Ok(json) = serde_json::to_string(&record) {
            crate::output::say(&format!("record: {json}"));
        }
    }
}

/// Every record of a folder, or of one file.
pub(crate) fn read(path: &Path) -> Result<Vec<Record>> {
    if path.is_dir() {
        return read_folder(path);
    }
    let mut records = Vec::new();
    read_file(path, &mut records).with_context(|| format!("Reading {}", path.display()))?;
    Ok(records)
}

/// Every record of a folder, files in the order of their names.
pub(crate) fn read_folder(folder: &Path) -> Result<Vec<Record>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("Listing {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == EXTENSION));
    files.sort();
    let mut records = Vec::new();
    for path in files {
        read_file(&path, &mut records).with_context(|| format!("Reading {}", path.display()))?;
    }
    Ok(records)
}

fn read_file(path: &Path, records: &mut Vec<Record>) -> Result<()> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    ensure!(len <= MAX_FILE, "it has {len} bytes, over {MAX_FILE}");
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let record: Record =
            serde_json::from_str(&line?).with_context(|| format!("line {}", number + 1))?;
        ensure!(
            record.schema == SCHEMA,
            "line {}: schema {} is not {SCHEMA}",
            number + 1,
            record.schema
        );
        records.push(record.under_todays_names());
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = RecordFile::create(folder.path(), "baseline", BASELINE).unwrap();
        let sample = Sample::new("kfpa", &[("claim_ns", 7)]);
        recorder.keep("claim", "hatchery", Ok(sample)).unwrap();
        let failed = Err(anyhow::anyhow!("wrong answer"));
        recorder.keep("claim", "hatchery", failed).unwrap();
        let records = read_folder(folder.path()).unwrap();
        assert_eq!(records.len(), 2);
        assert!(records[0].ok && records[0].values["claim_ns"] == 7);
        assert_eq!(records[0].verified, "kfpa");
        assert_eq!((records[1].ok, records[1].sample), (false, 1));
        assert_eq!(records[1].error.as_deref(), Some("wrong answer"));
    }

    #[test]
    fn an_old_record_has_todays_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("floor.jsonl");
        let line = r#"{"schema":1,"place":"floor","scenario":"husks","engine":"hatchery","sample":0,"at_ns":0,"ok":true,"values":{"husks":100,"private_kib":900}}"#;
        std::fs::write(&path, format!("{line}\n")).unwrap();
        let record = read(&path).unwrap().remove(0);
        assert_eq!(
            (record.place.as_str(), record.scenario.as_str()),
            (BASELINE, "warm-vms")
        );
        let values: Vec<_> = record
            .values
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        assert_eq!(values, [("private_kib", 900), ("warm_vms", 100)]);
        assert_eq!(record.clone().under_todays_names(), record);
    }

    #[test]
    fn another_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let line = r#"{"schema":2,"place":"baseline","scenario":"x","engine":"x","sample":0,"at_ns":0,"ok":true,"values":{}}"#;
        std::fs::write(folder.path().join("x.jsonl"), format!("{line}\n")).unwrap();
        let error = read_folder(folder.path()).unwrap_err();
        assert!(format!("{error:#}").contains("schema 2"), "{error:#}");
    }
}
