//! The task that owns a process's stream: it hands each event to every listener and waits for the
//! slowest, so that a client that reads slowly holds the process up rather than filling memory; one
//! that does not read at all is cut off. With no listener it throws the output away. It outlives
//! the client that started the process.

use crate::process::GuestContext;
use crate::process::context::settle;
use crate::process::guest_process::GuestProcess;
use crate::process::notice::ProcessNotice;
use futures_util::future::join_all;
use link::{LinkError, ProcessEvent, ProcessStream};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use wire::ProcessEnd;

/// How long a late listener still learns how a process ended.
const REMEMBER: Duration = Duration::from_secs(30);
/// SIGKILL.
const KILL: u8 = 9;

/// Until the process is forgotten, or its sandbox has ended.
pub(super) async fn pump(
    context: &GuestContext,
    process: &GuestProcess,
    stream: ProcessStream,
    deadline: Option<Instant>,
) {
    tokio::select! {
        // Dropping the listeners breaks their connections, which is what clients are to see.
        () = context.gone() => {}
        () = run(context, process, stream, deadline) => {}
    }
}

async fn run(
    context: &GuestContext,
    process: &GuestProcess,
    mut stream: ProcessStream,
    deadline: Option<Instant>,
) {
    let kill = async {
        match deadline {
            Some(deadline) => {
                sleep_until(deadline).await;
                // Fails when the process has just ended or the link has: then there is nothing to
                // do.
                let _ = context.link.signal(process.pid(), KILL).await;
            }
            None => std::future::pending().await,
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = hand_out(process, &mut stream) => outcome,
        () = kill => return,
    };
    match outcome {
        Ok(end) => {
            process.end(end);
            sleep(REMEMBER).await;
        }
        Err(error) => {
            settle(context.gone(), &error).await;
            let (pid, why) = (process.pid(), error.to_string());
            tracing::warn!(sandbox_id = context.sandbox_id, pid, why, "lost a process");
            for listener in process.listeners() {
                listener.finish(ProcessNotice::Lost(why.clone()));
            }
        }
    }
}

/// Hands each event to all listeners until the process ends.
async fn hand_out(
    process: &GuestProcess,
    stream: &mut ProcessStream,
) -> Result<ProcessEnd, LinkError> {
    loop {
        match stream.next().await? {
            ProcessEvent::Exited(end) => return Ok(end),
            ProcessEvent::Output(output, bytes) => {
                let notice = ProcessNotice::Output(output, bytes);
                let listeners = process.listeners();
                join_all(listeners.iter().map(|listener| listener.tell(&notice))).await;
            }
        }
    }
}
