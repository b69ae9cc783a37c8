//! One stream of a link: what arrived and was not consumed, what may be sent, how it ended.

use crate::LinkError;
use crate::io::{Outgoing, Shared};
use crate::queue::Queue;
use crate::types::{Answer, Entry};
use bytes::{Bytes, BytesMut};
use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};
use tokio::sync::Notify;
use wire::{
    DataChannel, FlowError, INPUT_WINDOW, MAX_PAYLOAD, Message, OUTPUT_WINDOW, RecvWindow,
    ResetCode, SendWindow,
};

/// An owned [`wire::StreamEvent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Started { pid: u32 },
    Opened(Entry),
}

/// How a stream ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Answer(Answer),
    Reset { code: ResetCode, message: String },
    Closed(String),
}

impl End {
    fn error(self) -> Result<Answer, LinkError> {
        match self {
            Self::Answer(answer) => Ok(answer),
            Self::Reset { code, message } => Err(LinkError::Reset { code, message }),
            Self::Closed(why) => Err(LinkError::Closed(why)),
        }
    }
}

#[derive(Debug)]
struct State {
    queue: Queue,
    receive: RecvWindow,
    send: SendWindow,
    news: Option<News>,
    end: Option<End>,
    consumer: Option<Waker>,
}

/// The half that the reader task and the handles share.
#[derive(Debug)]
pub(crate) struct Core {
    state: Mutex<State>,
    /// Credit came, or the stream ended.
    sendable: Notify,
}

impl Core {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                queue: Queue::default(),
                receive: RecvWindow::new(OUTPUT_WINDOW),
                send: SendWindow::new(INPUT_WINDOW),
                news: None,
                end: None,
                consumer: None,
            }),
            sendable: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.lock();
            change(&mut state);
            state.consumer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Bytes arrived.
    pub(crate) fn data(&self, channel: DataChannel, bytes: BytesMut) -> Result<(), FlowError> {
        let mut outcome = Ok(());
        self.update(|state| {
            outcome = state
                .receive
                .receive(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            if outcome.is_ok() {
                state.queue.push(channel, bytes);
            }
        });
        outcome
    }

    /// An event arrived; `false` when one is waiting already, which no request has.
    pub(crate) fn news(&self, news: News) -> bool {
        let mut accepted = false;
        self.update(|state| {
            accepted = state.news.is_none();
            state.news.get_or_insert(news);
        });
        accepted
    }

    /// The agent consumed `bytes`.
    pub(crate) fn credit(&self, bytes: u32) -> Result<(), FlowError> {
        let outcome = self.lock().send.grant(bytes);
        self.sendable.notify_waiters();
        outcome
    }

    /// The stream is over; the first end counts.
    pub(crate) fn end(&self, end: End) {
        self.update(|state| {
            state.end.get_or_insert(end);
        });
        self.sendable.notify_waiters();
    }

    fn ended(&self) -> Option<End> {
        self.lock().end.clone()
    }
}

/// The consumer's handle. Dropping it before the end gives the stream up.
#[derive(Debug)]
pub(crate) struct Stream {
    id: u32,
    core: Arc<Core>,
    shared: Arc<Shared>,
}

impl Stream {
    pub(crate) fn new(id: u32, core: Arc<Core>, shared: Arc<Shared>) -> Self {
        Self { id, core, shared }
    }

    /// The side that sends bytes on this stream.
    pub(crate) fn sender(&self, channel: DataChannel) -> Sender {
        Sender {
            id: self.id,
            channel,
            core: self.core.clone(),
            shared: self.shared.clone(),
        }
    }

    /// The stream's event; an error when it ends without one.
    pub(crate) async fn news(&mut self, request: &'static str) -> Result<News, LinkError> {
        poll_fn(|context| {
            let mut state = self.core.lock();
            if let Some(news) = state.news.take() {
                return Poll::Ready(Ok(news));
            }
            if let Some(end) = state.end.clone() {
                return Poll::Ready(match end.error() {
                    Ok(answer) => Err(answer.unexpected(request)),
                    Err(error) => Err(error),
                });
            }
            state.consumer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The next bytes; `None` once the stream has ended and all was consumed. Grants the agent
    /// credit for what it returns.
    pub(crate) fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(DataChannel, Bytes)>> {
        let mut state = self.core.lock();
        if let Some((channel, bytes)) = state.queue.pop() {
            state
                .receive
                .consume(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            let grant = if state.end.is_none() {
                state.receive.take_grant()
            } else {
                None
            };
            drop(state);
            if let Some(grant) = grant {
                self.shared.control(self.id, &Message::Credit(grant));
            }
            return Poll::Ready(Some((channel, bytes)));
        }
        if state.end.is_some() {
            return Poll::Ready(None);
        }
        state.consumer = Some(context.waker().clone());
        Poll::Pending
    }

    /// As [`Stream::poll_data`].
    pub(crate) async fn data(&mut self) -> Option<(DataChannel, Bytes)> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// How the stream ended, if it has.
    pub(crate) fn ended(&self) -> Option<Result<Answer, LinkError>> {
        self.core.ended().map(End::error)
    }

    /// The answer. Bytes that come before it are thrown away.
    pub(crate) async fn answer(mut self) -> Result<Answer, LinkError> {
        while self.data().await.is_some() {}
        self.ended()
            .unwrap_or_else(|| Err(LinkError::Closed("the stream vanished".into())))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.core.ended().is_none() {
            self.shared.forget(self.id);
            let cancelled = Message::Reset {
                code: ResetCode::Cancelled,
                message: "",
            };
            self.shared.control(self.id, &cancelled);
            self.core
                .end(End::Closed("this side gave the stream up".into()));
        }
    }
}

/// Sends bytes on a stream, as fast as the agent grants credit.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    id: u32,
    channel: DataChannel,
    core: Arc<Core>,
    shared: Arc<Shared>,
}

impl Sender {
    /// Sends all of `bytes`. Dropping the future sends a part. Pieces of concurrent calls mix.
    ///
    /// # Errors
    /// The stream ended first; [`Stream::ended`] says how.
    pub(crate) async fn send(&self, mut bytes: Bytes) -> Result<(), StreamEnded> {
        while !bytes.is_empty() {
            let want = bytes.len().min(MAX_PAYLOAD);
            self.until_credit().await?;
            // Room on the connection first, credit second: a future dropped here loses neither.
            let permit = self.shared.room(want).await.ok_or(StreamEnded)?;
            let take = {
                let mut state = self.core.lock();
                if state.end.is_some() {
                    return Err(StreamEnded);
                }
                let available = usize::try_from(state.send.available()).unwrap_or(usize::MAX);
                let take = want.min(available);
                // Cannot fail: `take` is at most what is available.
                let _ = state.send.take(u32::try_from(take).unwrap_or(0));
                take
            };
            if take == 0 {
                continue;
            }
            let piece = bytes.split_to(take);
            let message = Message::Data {
                channel: self.channel,
                bytes: &piece,
            };
            self.shared
                .queue(Outgoing::message(self.id, &message, Some(permit)));
        }
        Ok(())
    }

    async fn until_credit(&self) -> Result<(), StreamEnded> {
        loop {
            let notified = self.core.sendable.notified();
            tokio::pin!(notified);
            // Registered before the check, so that no grant slips between.
            notified.as_mut().enable();
            {
                let state = self.core.lock();
                if state.end.is_some() {
                    return Err(StreamEnded);
                }
                if state.send.available() > 0 {
                    return Ok(());
                }
            }
            notified.await;
        }
    }

    /// No more bytes will follow.
    pub(crate) fn end(&self) {
        if self.core.ended().is_none() {
            self.shared.control(self.id, &Message::End);
        }
    }
}

/// The stream ended before all bytes were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnded;
