//! The messages of `process.Process` (api/PROTOCOL.md §7.7).

use crate::connect::json::{nullable, optional_bytes, optional_u32};
use crate::connect::stream::StreamItem;
use crate::connect::{ConnectCode, ConnectError, envelope};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use engine::process::{ProcessFeed, ProcessNotice, ProcessSelector, ProcessSpec, ProcessSummary};
use link::{OutputChannel, end_status, exit_status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use wire::{ProcessEnd, ProcessExit};

/// `ProcessConfig`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct ProcessConfig {
    #[serde(deserialize_with = "nullable")]
    pub(super) cmd: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cwd: Option<String>,
}

impl From<ProcessConfig> for ProcessSpec {
    fn from(config: ProcessConfig) -> Self {
        Self {
            program: config.cmd,
            args: config.args,
            env: config.envs,
            cwd: config.cwd,
        }
    }
}

/// A running process in a list: `ProcessInfo`.
pub(super) fn process_info(process: ProcessSummary) -> Value {
    let config = ProcessConfig {
        cmd: process.spec.program,
        args: process.spec.args,
        envs: process.spec.env,
        cwd: process.spec.cwd,
    };
    let mut info = json!({ "config": config, "pid": process.pid });
    if let Some(tag) = process.tag {
        info["tag"] = json!(tag);
    }
    info
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SizeMessage {
    #[serde(deserialize_with = "optional_u32")]
    cols: Option<u32>,
    #[serde(deserialize_with = "optional_u32")]
    rows: Option<u32>,
}

/// `PTY`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PtyMessage {
    size: Option<SizeMessage>,
}

impl PtyMessage {
    /// Columns and rows.
    ///
    /// # Errors
    /// `invalid_argument` for a size beyond what a terminal can have.
    pub(super) fn size(self) -> Result<(u16, u16), ConnectError> {
        let size = self.size.unwrap_or_default();
        let (cols, rows) = (size.cols.unwrap_or(0), size.rows.unwrap_or(0));
        match (u16::try_from(cols), u16::try_from(rows)) {
            (Ok(cols), Ok(rows)) => Ok((cols, rows)),
            _ => Err(ConnectError::invalid(format!(
                "A terminal of {cols} columns and {rows} rows is over 65535"
            ))),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StartRequest {
    pub(super) process: Option<ProcessConfig>,
    pub(super) pty: Option<PtyMessage>,
    pub(super) tag: Option<String>,
    pub(super) stdin: Option<bool>,
}

/// Which process is meant.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SelectorMessage {
    #[serde(deserialize_with = "optional_u32")]
    pid: Option<u32>,
    tag: Option<String>,
}

impl From<SelectorMessage> for ProcessSelector {
    fn from(SelectorMessage { pid, tag }: SelectorMessage) -> Self {
        Self { pid, tag }
    }
}

/// Requests that only name a process: `ConnectRequest`, `CloseStdinRequest`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SelectRequest {
    #[serde(deserialize_with = "nullable")]
    pub(super) process: SelectorMessage,
}

/// `ProcessInput`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct InputMessage {
    #[serde(deserialize_with = "optional_bytes")]
    stdin: Option<Bytes>,
    #[serde(deserialize_with = "optional_bytes")]
    pty: Option<Bytes>,
}

impl InputMessage {
    /// What is fed.
    ///
    /// # Errors
    /// `invalid_argument` for none or both of the fields.
    pub(super) fn feed(self) -> Result<ProcessFeed, ConnectError> {
        match (self.stdin, self.pty) {
            (Some(bytes), None) => Ok(ProcessFeed::Stdin(bytes)),
            (None, Some(bytes)) => Ok(ProcessFeed::Pty(bytes)),
            _ => Err(ConnectError::invalid(
                "The input needs one of stdin and pty",
            )),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SendInputRequest {
    #[serde(deserialize_with = "nullable")]
    pub(super) process: SelectorMessage,
    #[serde(deserialize_with = "nullable")]
    pub(super) input: InputMessage,
}

/// One message of a `StreamInput`; one of the fields is set.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamInputRequest {
    pub(super) start: Option<SelectRequest>,
    pub(super) data: Option<StreamInputData>,
    pub(super) keepalive: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamInputData {
    #[serde(deserialize_with = "nullable")]
    pub(super) input: InputMessage,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct UpdateRequest {
    #[serde(deserialize_with = "nullable")]
    pub(super) process: SelectorMessage,
    pub(super) pty: Option<PtyMessage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SendSignalRequest {
    #[serde(deserialize_with = "nullable")]
    pub(super) process: SelectorMessage,
    signal: Value,
}

impl SendSignalRequest {
    /// The signal's number: SIGTERM or SIGKILL, by name or number.
    ///
    /// # Errors
    /// `invalid_argument` for any other.
    pub(super) fn signal(&self) -> Result<u8, ConnectError> {
        match &self.signal {
            Value::String(name) if name == "SIGNAL_SIGTERM" => Ok(15),
            Value::String(name) if name == "SIGNAL_SIGKILL" => Ok(9),
            Value::Number(number) if number.as_u64() == Some(15) => Ok(15),
            Value::Number(number) if number.as_u64() == Some(9) => Ok(9),
            other => Err(ConnectError::invalid(format!(
                "Signal {other} is not one of SIGNAL_SIGTERM, SIGNAL_SIGKILL"
            ))),
        }
    }
}

/// The sealed frame of the start event.
fn start_frame(pid: u32) -> Bytes {
    envelope::message(&json!({ "event": { "start": { "pid": pid } } }))
}

/// The sealed frame of a keepalive event.
pub(super) fn keepalive_frame() -> Bytes {
    envelope::message(&json!({ "event": { "keepalive": {} } }))
}

/// The sealed frame of a data event. Written by hand: this is the hot path.
fn data_frame(output: OutputChannel, bytes: &[u8]) -> Bytes {
    let name = match output {
        OutputChannel::Stdout => "stdout",
        OutputChannel::Stderr => "stderr",
        OutputChannel::Pty => "pty",
    };
    let mut text = String::with_capacity(48 + bytes.len().div_ceil(3) * 4);
    text.push_str(r#"{"event":{"data":{""#);
    text.push_str(name);
    text.push_str(r#"":""#);
    STANDARD.encode_string(bytes, &mut text);
    text.push_str(r#""}}}"#);
    envelope::message_text(text.as_bytes())
}

/// The sealed frame of the end event.
fn end_frame(end: ProcessEnd) -> Bytes {
    let (code, exited, status) = exit_status(end.exit);
    let mut message = json!({ "exitCode": code, "exited": exited, "status": status });
    if end.exit != ProcessExit::Code(0) {
        message["error"] = Value::String(end_status(end));
    }
    envelope::message(&json!({ "event": { "end": message } }))
}

/// What a listener of a process hears, as an item of its stream.
pub(super) fn stream_item(notice: ProcessNotice) -> StreamItem {
    match notice {
        ProcessNotice::Started { pid } => StreamItem::Frame(start_frame(pid)),
        ProcessNotice::Output(output, bytes) => StreamItem::Frame(data_frame(output, &bytes)),
        ProcessNotice::Ended(end) => StreamItem::Last(end_frame(end)),
        ProcessNotice::CutOff { pid, after } => StreamItem::End(Err(ConnectError::new(
            ConnectCode::Aborted,
            format!(
                "this listener took no output for {} s and was cut off; the process goes on: \
                 connect to pid {pid} to hear what it writes from then on",
                after.as_secs()
            ),
        ))),
        ProcessNotice::Lost(why) => StreamItem::Abort(why.into()),
    }
}

/// Fuzz entry point: any bytes as each of the request messages.
pub fn fuzz_process_json(data: &[u8]) {
    use crate::connect::request::parse;
    let _ = parse::<StartRequest>(data).map(|start| start.pty.map(PtyMessage::size));
    let _ = parse::<SelectRequest>(data);
    let _ = parse::<SendInputRequest>(data);
    let _ = parse::<StreamInputRequest>(data);
    let _ = parse::<UpdateRequest>(data);
    let _ = parse::<SendSignalRequest>(data).map(|request| request.signal());
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn text(frame: &Bytes) -> Value {
        serde_json::from_slice(&frame[5..]).unwrap()
    }

    #[test]
    fn end_events_word_the_exit_as_go_does() {
        let of = |exit: ProcessExit| text(&end_frame(exit.into()))["event"]["end"].clone();
        let ok = json!({"exitCode": 0, "exited": true, "status": "exit status 0"});
        assert_eq!(of(ProcessExit::Code(0)), ok);
        let one = json!({"exitCode": 1, "exited": true, "status": "exit status 1",
            "error": "exit status 1"});
        assert_eq!(of(ProcessExit::Code(1)), one);
        let killed = json!({"exitCode": -1, "exited": false, "status": "signal: killed",
            "error": "signal: killed"});
        assert_eq!(of(ProcessExit::Signal(9)), killed);
        assert_eq!(of(ProcessExit::Signal(15))["status"], "signal: terminated");
        assert_eq!(of(ProcessExit::Signal(40))["status"], "signal: signal 40");
        let hungry = ProcessEnd {
            exit: ProcessExit::Code(137),
            out_of_memory: true,
        };
        let hungry = text(&end_frame(hungry))["event"]["end"].clone();
        assert_eq!(hungry["status"], "exit status 137");
        let error = hungry["error"].as_str().unwrap();
        assert!(
            error.starts_with("exit status 137: out of memory"),
            "{error}"
        );
    }

    #[test]
    fn requests_of_the_sdks_parse() {
        let start: StartRequest = serde_json::from_str(
            r#"{"process":{"cmd":"/bin/bash","args":["-l","-c","x"],"envs":{"A":"1"}},
                "pty":{"size":{"cols":80,"rows":"24"}},"stdin":false,"novelty":{}}"#,
        )
        .unwrap();
        assert_eq!(start.stdin, Some(false));
        assert_eq!(start.pty.unwrap().size(), Ok((80, 24)));
        assert_eq!(start.process.unwrap().envs["A"], "1");
        let signal = |json: &str| {
            serde_json::from_str::<SendSignalRequest>(json)
                .unwrap()
                .signal()
        };
        assert_eq!(signal(r#"{"signal":"SIGNAL_SIGKILL"}"#), Ok(9));
        assert_eq!(signal(r#"{"signal":15}"#), Ok(15));
        signal(r#"{"signal":"SIGNAL_UNSPECIFIED"}"#).unwrap_err();
        signal("{}").unwrap_err();
        let big = serde_json::from_str::<PtyMessage>(r#"{"size":{"cols":65536}}"#).unwrap();
        big.size().unwrap_err();
    }

    proptest! {
        #[test]
        fn data_frames_are_json(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let value = text(&data_frame(OutputChannel::Stderr, &bytes));
            let data = value["event"]["data"]["stderr"].as_str().unwrap();
            prop_assert_eq!(STANDARD.decode(data).unwrap(), bytes);
        }

        #[test]
        fn nothing_panics(json in r#"[\{\}\[\]":,a-z0-9]{0,80}"#) {
            fuzz_process_json(json.as_bytes());
        }
    }
}
