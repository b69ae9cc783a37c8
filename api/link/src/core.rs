//! The half of a stream that the reader task and the handles share: what arrived and was not
//! consumed, what may be sent, how it ended.

use crate::LinkError;
use crate::queue::ReceiveQueue;
use crate::types::{AgentAnswer, FileEntry};
use bytes::BytesMut;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use tokio::sync::Notify;
use wire::{DataChannel, FlowError, INPUT_WINDOW, RecvWindow, Request, ResetCode, SendWindow};

/// An owned [`wire::StreamEvent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamNews {
    Started { pid: u32 },
    Opened(FileEntry),
    Connected,
}

impl StreamNews {
    /// The error for news that do not belong to `request`.
    pub(crate) fn unexpected(self, request: &'static str) -> LinkError {
        let got = match self {
            Self::Started { .. } => "a process",
            Self::Opened(_) => "an open file",
            Self::Connected => "a connection",
        };
        LinkError::Unexpected {
            request,
            got: got.into(),
        }
    }
}

/// How a stream ended.
#[derive(Clone, Debug)]
pub(crate) enum StreamEnd {
    Answer(AgentAnswer),
    Reset { code: ResetCode, message: String },
    Closed(String),
}

impl StreamEnd {
    pub(crate) fn error(self) -> Result<AgentAnswer, LinkError> {
        match self {
            Self::Answer(answer) => Ok(answer),
            Self::Reset { code, message } => Err(LinkError::Reset { code, message }),
            Self::Closed(why) => Err(LinkError::Closed(why)),
        }
    }
}

#[derive(Debug)]
pub(crate) struct StreamState {
    pub(crate) queue: ReceiveQueue,
    pub(crate) receive: RecvWindow,
    pub(crate) send: SendWindow,
    pub(crate) news: Option<StreamNews>,
    pub(crate) end: Option<StreamEnd>,
    /// The agent has ended its half of a connection to a port.
    pub(crate) data_over: bool,
    pub(crate) consumer: Option<Waker>,
    pub(crate) sender: Option<Waker>,
}

/// The half that the reader task and the handles share.
#[derive(Debug)]
pub(crate) struct StreamCore {
    state: Mutex<StreamState>,
    /// It is a connection to a port.
    pub(crate) is_port: bool,
    /// What the agent may have under way.
    pub(crate) window: u32,
    /// Credit came, or the stream ended.
    pub(crate) sendable: Notify,
}

impl StreamCore {
    /// Of a stream with this request.
    pub(crate) fn new(request: &Request<'_>) -> Self {
        let window = request.output_window();
        Self {
            is_port: request.is_port(),
            window,
            state: Mutex::new(StreamState {
                queue: ReceiveQueue::default(),
                receive: RecvWindow::new(window),
                send: SendWindow::new(INPUT_WINDOW),
                news: None,
                end: None,
                data_over: false,
                consumer: None,
                sender: None,
            }),
            sendable: Notify::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, StreamState> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut StreamState)) {
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
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            outcome = match state.data_over {
                false => state.receive.receive(length),
                true => Err(FlowError {
                    bytes: length,
                    allowed: 0,
                }),
            };
            if outcome.is_ok() {
                state.queue.push(channel, bytes);
            }
        });
        outcome
    }

    /// The agent has ended its half; `false` on a stream on which it does not do so.
    pub(crate) fn data_end(&self) -> bool {
        self.update(|state| state.data_over |= self.is_port);
        self.is_port
    }

    /// An event arrived; `false` when one is waiting already, which no request has.
    pub(crate) fn news(&self, news: StreamNews) -> bool {
        let mut accepted = false;
        self.update(|state| {
            accepted = state.news.is_none();
            state.news.get_or_insert(news);
        });
        accepted
    }

    /// The agent consumed `bytes`: some, and no more than were sent to it.
    pub(crate) fn credit(&self, bytes: u32) -> Result<(), FlowError> {
        let outcome = {
            let send = &mut self.lock().send;
            let allowed = INPUT_WINDOW.saturating_sub(send.available());
            if bytes == 0 || bytes > allowed {
                Err(FlowError { bytes, allowed })
            } else {
                send.grant(bytes)
            }
        };
        self.wake_sender();
        outcome
    }

    /// The stream is over; the first end counts.
    pub(crate) fn end(&self, end: StreamEnd) {
        self.update(|state| {
            state.end.get_or_insert(end);
        });
        self.wake_sender();
    }

    fn wake_sender(&self) {
        self.sendable.notify_waiters();
        let sender = self.lock().sender.take();
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    pub(crate) fn ended(&self) -> Option<StreamEnd> {
        self.lock().end.clone()
    }
}
