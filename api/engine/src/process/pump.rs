//! The task that owns a process's stream: it hands each event to every listener in turn and waits
//! for the slowest, so that a client that does not read blocks the process rather than filling
//! memory; with no listener it throws the output away. It outlives the client that started the
//! process.

use crate::process::GuestContext;
use crate::process::context::settle;
use crate::process::guest_process::GuestProcess;
use crate::process::notice::ProcessNotice;
use futures_util::future::join_all;
use link::{LinkError, ProcessEvent, ProcessStream};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use wire::ProcessExit;

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
        Ok(exit) => {
            let last = process.end(exit).into_iter();
            let last = last.map(|sender| deliver(sender, ProcessNotice::Ended(exit)));
            tokio::join!(join_all(last), sleep(REMEMBER));
        }
        Err(error) => {
            settle(context.gone(), &error).await;
            let (pid, why) = (process.pid(), error.to_string());
            tracing::warn!(sandbox_id = context.sandbox_id, pid, why, "lost a process");
            let lost = |sender| deliver(sender, ProcessNotice::Lost(why.clone()));
            join_all(process.senders().into_iter().map(lost)).await;
        }
    }
}

/// Hands each event to all listeners until the process ends.
async fn hand_out(
    process: &GuestProcess,
    stream: &mut ProcessStream,
) -> Result<ProcessExit, LinkError> {
    loop {
        match stream.next().await? {
            ProcessEvent::Exited(exit) => return Ok(exit),
            ProcessEvent::Output(output, bytes) => {
                let notice = ProcessNotice::Output(output, bytes);
                let senders = process.senders().into_iter();
                join_all(senders.map(|sender| deliver(sender, notice.clone()))).await;
            }
        }
    }
}

/// Tells one listener; one that has left is none of our business.
async fn deliver(sender: mpsc::Sender<ProcessNotice>, notice: ProcessNotice) {
    let _ = sender.send(notice).await;
}
