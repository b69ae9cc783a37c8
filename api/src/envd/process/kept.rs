//! Processes that live on in a paused sandbox: what the host knows about them beside the guest.

use super::{Feed, Listeners, Process, Processes, lock, pump};
use crate::envd::message::ProcessConfig;
use crate::sandbox::Sandbox;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::timeout;

/// How long the agent may take to connect one process again.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// A process as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptProcess {
    pid: u32,
    tag: Option<String>,
    feed: FeedV1,
    stdin_closed: bool,
    config: ProcessConfig,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FeedV1 {
    Nothing,
    Stdin,
    Pty,
}

impl Processes {
    /// The running processes, to be written down.
    #[must_use]
    pub fn kept(&self) -> Vec<KeptProcess> {
        let keep = |process: &Arc<Process>| {
            let Listeners::Running { config, .. } = &*lock(&process.listeners) else {
                return None;
            };
            Some(KeptProcess {
                pid: process.pid,
                tag: process.tag.clone(),
                feed: match process.feed {
                    Feed::Nothing => FeedV1::Nothing,
                    Feed::Stdin => FeedV1::Stdin,
                    Feed::Pty => FeedV1::Pty,
                },
                // Held by a writer: then it is open.
                stdin_closed: process.closed.try_lock().is_ok_and(|closed| *closed),
                config: config.clone(),
            })
        };
        lock(&self.table).iter().filter_map(keep).collect()
    }

    /// Listens again to processes of a sandbox that has been resumed. Those that the guest does not
    /// have any more are left out.
    pub async fn resume(&self, sandbox: &Arc<Sandbox>, kept: &[KeptProcess]) {
        join_all(kept.iter().map(|kept| self.attach(sandbox, kept))).await;
    }

    async fn attach(&self, sandbox: &Arc<Sandbox>, kept: &KeptProcess) {
        let stream = match timeout(ATTACH_TIMEOUT, sandbox.link.attach(kept.pid)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let (id, pid) = (&sandbox.id, kept.pid);
                tracing::debug!(sandbox_id = id, pid, %error, "a process has not lived on");
                return;
            }
            Err(_) => {
                let (id, pid) = (&sandbox.id, kept.pid);
                tracing::warn!(sandbox_id = id, pid, "the agent does not attach a process");
                return;
            }
        };
        let process = Arc::new(Process {
            pid: kept.pid,
            tag: kept.tag.clone(),
            feed: match kept.feed {
                FeedV1::Nothing => Feed::Nothing,
                FeedV1::Stdin => Feed::Stdin,
                FeedV1::Pty => Feed::Pty,
            },
            input: stream.input(),
            closed: tokio::sync::Mutex::new(kept.stdin_closed),
            listeners: Mutex::new(Listeners::Running {
                config: kept.config.clone(),
                senders: Vec::new(),
            }),
        });
        self.add(&process);
        let (table, sandbox) = (self.clone(), Arc::clone(sandbox));
        tokio::spawn(pump(table, sandbox, process, stream, None));
    }
}
