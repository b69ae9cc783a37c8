//! What the host knows about a process beside the guest, and how it is written down.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a process was started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSpec {
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its own environment, beside the sandbox's.
    pub env: BTreeMap<String, String>,
    /// The working directory that was asked for.
    pub cwd: Option<String>,
}

/// What a process takes as input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Nothing.
    Nothing,
    /// Its standard input.
    Stdin,
    /// Its terminal.
    Pty,
}

/// A process that is to be attached again in a machine that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessRecord {
    /// Its id in the guest.
    pub pid: u32,
    /// The label that its starter gave it.
    pub tag: Option<String>,
    /// What it takes as input.
    pub input: InputKind,
    /// Whether its standard input has been closed.
    pub stdin_closed: bool,
    /// What it was started with.
    pub spec: ProcessSpec,
}

/// A [`ProcessRecord`] as it lies on the disk, JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRecordV1 {
    pid: u32,
    tag: Option<String>,
    feed: FeedV1,
    stdin_closed: bool,
    config: ConfigV1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FeedV1 {
    Nothing,
    Stdin,
    Pty,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct ConfigV1 {
    cmd: String,
    args: Vec<String>,
    envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
}

impl From<&ProcessRecord> for ProcessRecordV1 {
    fn from(record: &ProcessRecord) -> Self {
        let ProcessSpec {
            program,
            args,
            env,
            cwd,
        } = record.spec.clone();
        Self {
            pid: record.pid,
            tag: record.tag.clone(),
            feed: match record.input {
                InputKind::Nothing => FeedV1::Nothing,
                InputKind::Stdin => FeedV1::Stdin,
                InputKind::Pty => FeedV1::Pty,
            },
            stdin_closed: record.stdin_closed,
            config: ConfigV1 {
                cmd: program,
                args,
                envs: env,
                cwd,
            },
        }
    }
}

impl From<ProcessRecordV1> for ProcessRecord {
    fn from(record: ProcessRecordV1) -> Self {
        let ConfigV1 {
            cmd,
            args,
            envs,
            cwd,
        } = record.config;
        Self {
            pid: record.pid,
            tag: record.tag,
            input: match record.feed {
                FeedV1::Nothing => InputKind::Nothing,
                FeedV1::Stdin => InputKind::Stdin,
                FeedV1::Pty => InputKind::Pty,
            },
            stdin_closed: record.stdin_closed,
            spec: ProcessSpec {
                program: cmd,
                args,
                env: envs,
                cwd,
            },
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// As the first version of this program wrote it.
    const GOLDEN: &str = r#"{"pid":7,"tag":"t","feed":"stdin","stdin_closed":true,"config":{"cmd":"/bin/sh","args":["-c","x"],"envs":{"A":"b"},"cwd":"/tmp"}}"#;

    #[test]
    fn a_record_is_written_as_ever() {
        let read: ProcessRecordV1 = serde_json::from_str(GOLDEN).unwrap();
        let record = ProcessRecord::from(read);
        assert_eq!((record.pid, record.input), (7, InputKind::Stdin));
        assert_eq!(record.spec.env["A"], "b");
        let written = serde_json::to_string(&ProcessRecordV1::from(&record)).unwrap();
        assert_eq!(written, GOLDEN);
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let with = GOLDEN.replace("\"pid\":7", "\"pid\":7,\"novelty\":1");
        serde_json::from_str::<ProcessRecordV1>(&with).unwrap_err();
    }
}
