//! The handles of one stream: its consumer, and who sends on it.

use crate::LinkError;
use crate::core::{StreamCore, StreamEnd, StreamNews};
use crate::shared::{LinkState, OutgoingFrames};
use crate::types::AgentAnswer;
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use wire::{DataChannel, MAX_PAYLOAD, Message, ResetCode};

/// The consumer's handle. Dropping it before the end gives the stream up.
#[derive(Debug)]
pub(crate) struct AgentStream {
    id: u32,
    core: Arc<StreamCore>,
    shared: Arc<LinkState>,
}

impl AgentStream {
    pub(crate) fn new(id: u32, core: Arc<StreamCore>, shared: Arc<LinkState>) -> Self {
        Self { id, core, shared }
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn shared(&self) -> &Arc<LinkState> {
        &self.shared
    }

    /// Whether the agent has ended its half; what is left of it may still be consumed.
    pub(crate) fn is_data_over(&self) -> bool {
        self.core.lock().data_over
    }

    /// The bytes that may be sent, once there are any; `None` when the stream has ended.
    pub(crate) fn poll_credit(&mut self, context: &mut Context<'_>) -> Poll<Option<usize>> {
        let mut state = self.core.lock();
        if state.end.is_some() {
            return Poll::Ready(None);
        }
        match usize::try_from(state.send.available()).unwrap_or(usize::MAX) {
            0 => {
                state.sender = Some(context.waker().clone());
                Poll::Pending
            }
            credit => Poll::Ready(Some(credit)),
        }
    }

    /// Takes credit that [`AgentStream::poll_credit`] has shown; false when the stream has ended.
    pub(crate) fn spend_credit(&mut self, bytes: usize) -> bool {
        let mut state = self.core.lock();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        state.end.is_none() && state.send.take(bytes).is_ok()
    }

    /// The side that sends bytes on this stream.
    pub(crate) fn sender(&self, channel: DataChannel) -> StreamSender {
        StreamSender {
            id: self.id,
            channel,
            core: self.core.clone(),
            shared: self.shared.clone(),
        }
    }

    /// The stream's event; an error when it ends without one.
    pub(crate) async fn news(&mut self, request: &'static str) -> Result<StreamNews, LinkError> {
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

    /// The next bytes; `None` once the stream, or the agent's half of it, has ended and all was
    /// consumed. Grants the agent
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
        if state.end.is_some() || state.data_over {
            return Poll::Ready(None);
        }
        state.consumer = Some(context.waker().clone());
        Poll::Pending
    }

    /// As [`AgentStream::poll_data`].
    pub(crate) async fn data(&mut self) -> Option<(DataChannel, Bytes)> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// How the stream ended, if it has.
    pub(crate) fn ended(&self) -> Option<Result<AgentAnswer, LinkError>> {
        self.core.ended().map(StreamEnd::error)
    }

    /// The answer to `request`, which is no bytes.
    pub(crate) async fn answer(mut self, request: &'static str) -> Result<AgentAnswer, LinkError> {
        if let Some((channel, _)) = self.data().await {
            return Err(unasked_data(request, channel));
        }
        self.ended()
            .unwrap_or_else(|| Err(LinkError::Closed("the stream vanished".into())))
    }
}

/// The error for bytes of a channel that does not belong to `request`: who read on would read for
/// as long as a guest sends.
pub(crate) fn unasked_data(request: &'static str, channel: DataChannel) -> LinkError {
    LinkError::Unexpected {
        request,
        got: format!("data of its {channel:?} channel"),
    }
}

impl Drop for AgentStream {
    fn drop(&mut self) {
        if self.core.ended().is_none() {
            self.shared.forget(self.id);
            let cancelled = Message::Reset {
                code: ResetCode::Cancelled,
                message: "",
            };
            self.shared.control(self.id, &cancelled);
            self.core
                .end(StreamEnd::Closed("this side gave the stream up".into()));
        }
    }
}

/// Sends bytes on a stream, as fast as the agent grants credit.
#[derive(Clone, Debug)]
pub(crate) struct StreamSender {
    id: u32,
    channel: DataChannel,
    core: Arc<StreamCore>,
    shared: Arc<LinkState>,
}

impl StreamSender {
    /// Sends all of `bytes`. Dropping the future sends a part. Pieces of concurrent calls mix.
    ///
    /// # Errors
    /// The stream ended first; [`AgentStream::ended`] says how.
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
                .queue(OutgoingFrames::message(self.id, &message, Some(permit)));
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
