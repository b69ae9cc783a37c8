//! The methods of `process.Process` (api/PROTOCOL.md §7.7).

use crate::connect::ConnectError;
use crate::connect::request::{self, MessageStream};
use crate::connect::stream::{StreamTiming, later};
use crate::envd::fail;
use crate::envd::message::{
    InputMessage, SelectRequest, SelectorMessage, SendInputRequest, SendSignalRequest,
    StartRequest, StreamInputRequest, UpdateRequest, keepalive_frame, process_info,
};
use crate::envd::paths::GuestCaller;
use engine::process::{GuestProcess, ProcessNotice};
use engine::sandbox::Sandbox;
use hyper::HeaderMap;
use link::{LinkError, ProcessCommand};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Silence between keepalives when the client does not say.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// A stream that is ready to be answered.
pub(super) type ProcessStreaming = (mpsc::Receiver<ProcessNotice>, StreamTiming);

fn timing(headers: &HeaderMap, deadline: Option<Instant>) -> StreamTiming {
    let period = headers
        .get("keepalive-ping-interval")
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .filter(|seconds| *seconds > 0)
        .map_or(KEEPALIVE, Duration::from_secs);
    StreamTiming {
        keepalive: Some((period, keepalive_frame())),
        deadline,
    }
}

/// `Start`.
pub(super) async fn start(
    sandbox: &Arc<Sandbox>,
    headers: &HeaderMap,
    messages: MessageStream,
) -> Result<ProcessStreaming, ConnectError> {
    let deadline = request::timeout(headers)?.map(|timeout| later(Instant::now(), timeout));
    let user = crate::envd::auth::username(headers)?;
    let request: StartRequest = messages.only().await?;
    let config = request
        .process
        .filter(|config| !config.cmd.is_empty())
        .ok_or_else(|| ConnectError::invalid("The request names no command in process.cmd"))?;
    if let Some(name) = config
        .envs
        .keys()
        .find(|name| name.is_empty() || name.contains('='))
    {
        return Err(ConnectError::invalid(format!(
            "The environment variable {name:?} is empty or has a '='"
        )));
    }
    let mut caller = GuestCaller::unchecked(sandbox, user);
    let cwd = caller
        .cwd(config.cwd.as_deref().unwrap_or_default())
        .await?;
    // Later entries win in the agent: the request's come last.
    let env = sandbox
        .env
        .iter()
        .chain(&config.envs)
        .map(|(key, value)| format!("{key}={value}"));
    let pty = request
        .pty
        .map(crate::envd::message::PtyMessage::size)
        .transpose()?;
    let command = ProcessCommand {
        argv: std::iter::once(&config.cmd)
            .chain(&config.args)
            .cloned()
            .collect(),
        env: env.collect(),
        cwd,
        user: caller.name.clone(),
        stdin: pty.is_none() && request.stdin.unwrap_or(true),
        pty,
        tag: request.tag.clone().unwrap_or_default(),
    };
    let processes = sandbox.processes.clone();
    // A task of its own: a client that leaves now must not lose the process.
    let task = tokio::spawn(async move {
        let start = processes.start(command, config.into(), request.tag, deadline);
        start.await
    });
    let started = task
        .await
        .unwrap_or_else(|why| Err(LinkError::Closed(why.to_string())));
    match started {
        Ok(items) => Ok((items, timing(headers, deadline))),
        Err(error) => Err(fail::start(sandbox, error, &caller.name).await),
    }
}

/// `Connect`.
pub(super) async fn connect(
    sandbox: &Arc<Sandbox>,
    headers: &HeaderMap,
    messages: MessageStream,
) -> Result<ProcessStreaming, ConnectError> {
    let deadline = request::timeout(headers)?.map(|timeout| later(Instant::now(), timeout));
    let request: SelectRequest = messages.only().await?;
    let notices = sandbox.processes.listen(&request.process.into());
    Ok((
        notices.map_err(|error| fail::process(&error))?,
        timing(headers, deadline),
    ))
}

/// `List`.
pub(super) fn list(sandbox: &Sandbox) -> Value {
    let processes = sandbox.processes.list().into_iter();
    json!({ "processes": processes.map(process_info).collect::<Vec<_>>() })
}

fn running(
    sandbox: &Sandbox,
    selector: SelectorMessage,
) -> Result<Arc<GuestProcess>, ConnectError> {
    let found = sandbox.processes.running(&selector.into());
    found.map_err(|error| fail::process(&error))
}

async fn feed(process: &GuestProcess, input: InputMessage) -> Result<(), ConnectError> {
    process
        .feed(input.feed()?)
        .await
        .map_err(|error| fail::process(&error))
}

/// `SendInput`.
pub(super) async fn send_input(
    sandbox: &Sandbox,
    request: SendInputRequest,
) -> Result<Value, ConnectError> {
    let process = running(sandbox, request.process)?;
    feed(&process, request.input).await?;
    Ok(json!({}))
}

/// `CloseStdin`.
pub(super) async fn close_stdin(
    sandbox: &Sandbox,
    request: SelectRequest,
) -> Result<Value, ConnectError> {
    let process = running(sandbox, request.process)?;
    process
        .close_stdin()
        .await
        .map_err(|error| fail::process(&error))?;
    Ok(json!({}))
}

/// `SendSignal`.
pub(super) async fn send_signal(
    sandbox: &Sandbox,
    request: SendSignalRequest,
) -> Result<Value, ConnectError> {
    let signal = request.signal()?;
    let process = running(sandbox, request.process)?;
    match sandbox.link.signal(process.pid(), signal).await {
        Ok(()) => Ok(json!({})),
        Err(error) => Err(fail::connect(sandbox, error).await),
    }
}

/// `Update`.
pub(super) async fn update(
    sandbox: &Sandbox,
    request: UpdateRequest,
) -> Result<Value, ConnectError> {
    let process = running(sandbox, request.process)?;
    let Some(pty) = request.pty else {
        return Ok(json!({}));
    };
    let (cols, rows) = pty.size()?;
    match sandbox.link.resize(process.pid(), cols, rows).await {
        Ok(()) => Ok(json!({})),
        Err(error) => Err(fail::connect(sandbox, error).await),
    }
}

/// `StreamInput`: the client streams, one empty message answers.
pub(super) async fn stream_input(
    sandbox: &Sandbox,
    mut messages: MessageStream,
) -> Result<Value, ConnectError> {
    let mut process = None;
    while let Some(message) = messages.next::<StreamInputRequest>().await? {
        if let Some(start) = message.start {
            process = Some(running(sandbox, start.process)?);
        } else if let Some(data) = message.data {
            let Some(process) = &process else {
                return Err(ConnectError::invalid("Data came before the start message"));
            };
            feed(process, data.input).await?;
        }
    }
    Ok(json!({}))
}
