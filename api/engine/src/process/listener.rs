//! One listener of a process: a bounded channel, with room kept for the last word.

use crate::process::notice::ProcessNotice;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::time::timeout;

/// Notices that wait for one listener, each of at most 32 KiB, one message of the link.
const BACKLOG: usize = 4;
/// How long a listener may hold a process up without taking anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// The sending side of a listener's channel.
#[derive(Debug)]
pub(super) struct ProcessListener {
    pid: u32,
    sender: mpsc::Sender<ProcessNotice>,
    /// Room for what nothing follows; `None` once that was said.
    last: Mutex<Option<OwnedPermit<ProcessNotice>>>,
}

impl ProcessListener {
    /// A listener of the process `pid`, which has been told that it listens.
    pub(super) fn new(pid: u32) -> (Self, mpsc::Receiver<ProcessNotice>) {
        // One more for the last word.
        let (sender, notices) = mpsc::channel(BACKLOG + 1);
        // The channel is empty: neither can fail.
        let last = sender.clone().try_reserve_owned().ok();
        let _ = sender.try_send(ProcessNotice::Started { pid });
        let listener = Self {
            pid,
            sender,
            last: Mutex::new(last),
        };
        (listener, notices)
    }

    /// It has gone, or has heard the last.
    pub(super) fn has_left(&self) -> bool {
        self.sender.is_closed() || self.lock().is_none()
    }

    /// Tells it, waiting while it does not read; cuts it off if it takes nothing for too long.
    pub(super) async fn tell(&self, notice: &ProcessNotice) {
        let Err(TrySendError::Full(notice)) = self.sender.try_send(notice.clone()) else {
            return;
        };
        let sent = timeout(PATIENCE, self.sender.send(notice)).await;
        if sent.is_err() {
            let (pid, after) = (self.pid, PATIENCE);
            self.finish(ProcessNotice::CutOff { pid, after });
        }
    }

    /// Tells it the last, at once.
    pub(super) fn finish(&self, notice: ProcessNotice) {
        if let Some(room) = self.lock().take() {
            room.send(notice);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<OwnedPermit<ProcessNotice>>> {
        // Nothing panics while it holds the lock.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use bytes::Bytes;
    use link::OutputChannel;
    use wire::{ProcessEnd, ProcessExit};

    fn output() -> ProcessNotice {
        ProcessNotice::Output(OutputChannel::Stdout, Bytes::from_static(b"x"))
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_read_is_cut_off_and_learns_why() {
        let (listener, mut notices) = ProcessListener::new(7);
        for _ in 0..BACKLOG - 1 {
            listener.tell(&output()).await;
        }
        assert!(!listener.has_left());
        listener.tell(&output()).await;
        assert!(listener.has_left(), "it has waited and given up");
        let mut heard = Vec::new();
        drop(listener);
        while let Some(notice) = notices.recv().await {
            heard.push(notice);
        }
        assert_eq!(heard[0], ProcessNotice::Started { pid: 7 });
        let (pid, after) = (7, PATIENCE);
        assert_eq!(heard.last(), Some(&ProcessNotice::CutOff { pid, after }));
        assert_eq!(heard.len(), BACKLOG + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_reads_slowly_is_waited_for() {
        let (listener, mut notices) = ProcessListener::new(7);
        let reader = tokio::spawn(async move {
            let mut count = 0;
            while let Some(notice) = notices.recv().await {
                count += 1;
                if matches!(notice, ProcessNotice::Ended(_)) {
                    break;
                }
                tokio::time::sleep(PATIENCE / 2).await;
            }
            count
        });
        for _ in 0..20 {
            listener.tell(&output()).await;
        }
        let end: ProcessEnd = ProcessExit::Code(0).into();
        listener.finish(ProcessNotice::Ended(end));
        assert_eq!(reader.await.unwrap(), 22);
    }
}
