//! What a machine's task is asked to do, and who waits for the outcome.

use control::{ChannelError, Request, Reset, ResetSpec, SaveSpec, Saved, VmStats};
use std::os::fd::OwnedFd;
use tokio::sync::oneshot;

/// For the task that owns the VM process.
#[derive(Debug)]
pub(super) enum MachineCommand {
    Start,
    Stop,
    Stats(oneshot::Sender<VmStats>),
    /// And who waits for the word that memory was copied ahead.
    Save(Box<MachineOrder<SaveSpec, Saved>>, oneshot::Sender<()>),
    Pause,
    Reset(Box<MachineOrder<ResetSpec, Reset>>),
}

/// A request with files, and who waits for its outcome.
#[derive(Debug)]
pub(super) struct MachineOrder<S, T> {
    pub(super) spec: S,
    pub(super) files: Vec<OwnedFd>,
    pub(super) outcome: oneshot::Sender<Result<T, String>>,
}

/// Who waits for what.
#[derive(Debug, Default)]
pub(super) struct PendingReplies {
    pub(super) stats: Option<oneshot::Sender<VmStats>>,
    pub(super) save: Option<oneshot::Sender<Result<Saved, String>>>,
    pub(super) copied: Option<oneshot::Sender<()>>,
    pub(super) reset: Option<oneshot::Sender<Result<Reset, String>>>,
}

impl PendingReplies {
    /// A save is over, as it is told.
    pub(super) fn saved(&mut self, outcome: Result<Saved, String>) {
        self.copied = None;
        if let Some(reply) = self.save.take() {
            let _ = reply.send(outcome);
        }
    }

    /// Tells whoever waits for the outcome of a request that it was not sent.
    pub(super) fn not_sent(&mut self, request: &Request, error: &ChannelError) {
        match request {
            Request::Save(_) | Request::Pause => self.saved(Err(error.to_string())),
            Request::Reset(_) => {
                if let Some(reply) = self.reset.take() {
                    let _ = reply.send(Err(error.to_string()));
                }
            }
            _ => {}
        }
    }
}
