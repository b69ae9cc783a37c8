//! A TCP connection to the gateway's name server: each message behind its length.

use crate::outbox::Outbox;
use crate::tcp_stack::{TcpEndpoint, TcpStack};
use smoltcp::socket::tcp::State;
use std::time::{Duration, Instant};

/// Most bytes of a question.
const MAX_QUESTION: usize = 4096;
/// Most questions of one connection that have no answer yet.
const MAX_ASKED: usize = 16;
/// A connection on which nothing is asked or answered for so long is reset.
const IDLE: Duration = Duration::from_secs(30);

/// One connection.
#[derive(Debug)]
pub(crate) struct DnsStream {
    pub(crate) endpoint: TcpEndpoint,
    /// What has come of the next question.
    input: Vec<u8>,
    asked: usize,
    used: Instant,
}

/// What a connection is after its turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamOutcome {
    /// It goes on, and has asked these.
    Open(Vec<Vec<u8>>),
    /// It has ended.
    Ended,
}

impl DnsStream {
    /// A connection that begins.
    pub(crate) fn new(endpoint: TcpEndpoint, now: Instant) -> Self {
        Self {
            endpoint,
            input: Vec::new(),
            asked: 0,
            used: now,
        }
    }

    /// When it has been idle for too long.
    pub(crate) fn idle_at(&self) -> Instant {
        self.used + IDLE
    }

    /// Takes questions, and says what there is to say.
    pub(crate) fn turn(
        &mut self,
        stack: &mut TcpStack,
        outbox: &mut Outbox,
        now: Instant,
    ) -> StreamOutcome {
        let questions = self.questions(now);
        let idle = now >= self.idle_at();
        let socket = self.endpoint.socket();
        let over = !socket.may_recv() && socket.state() != State::SynReceived;
        match &questions {
            None => socket.abort(),
            // Not closed: a guest that does not close its side would keep it for ever.
            Some(_) if idle => socket.abort(),
            Some(_) if over && self.asked == 0 => socket.close(),
            Some(_) => {}
        }
        stack.output(&mut self.endpoint, outbox, now);
        match (questions, self.endpoint.socket().state()) {
            (None, _) | (_, State::Closed | State::Listen | State::TimeWait) => {
                StreamOutcome::Ended
            }
            (Some(questions), _) => StreamOutcome::Open(questions),
        }
    }

    /// The whole questions that have come; `None` for a connection that asks too much.
    fn questions(&mut self, now: Instant) -> Option<Vec<Vec<u8>>> {
        let mut questions = Vec::new();
        let socket = self.endpoint.socket();
        while socket.can_recv() {
            let wanted = match self.input[..] {
                [a, b, ..] => 2 + usize::from(u16::from_be_bytes([a, b])),
                _ => 2,
            };
            if wanted > 2 + MAX_QUESTION || self.asked > MAX_ASKED {
                return None;
            }
            let missing = wanted - self.input.len();
            let input = &mut self.input;
            let taken = socket.recv(|bytes| {
                let count = missing.min(bytes.len());
                input.extend_from_slice(&bytes[..count]);
                (count, ())
            });
            taken.ok()?;
            let length = usize::from(u16::from_be_bytes([
                *self.input.first()?,
                self.input.get(1).copied().unwrap_or(0),
            ]));
            if self.input.len() > 2 && self.input.len() == 2 + length {
                questions.push(self.input.split_off(2));
                self.input.clear();
                self.asked += 1;
                self.used = now;
            }
        }
        Some(questions)
    }

    /// Gives an answer; `None`: the question gets none. One that does not fit ends the connection.
    pub(crate) fn answer(&mut self, message: Option<&[u8]>, now: Instant) {
        self.asked = self.asked.saturating_sub(1);
        self.used = now;
        let Some(message) = message else {
            return;
        };
        let socket = self.endpoint.socket();
        let room = socket.send_capacity() - socket.send_queue();
        match u16::try_from(message.len()) {
            Ok(length) if room >= 2 + message.len() => {
                let sent = socket.send_slice(&length.to_be_bytes());
                if sent.and_then(|_| socket.send_slice(message)).is_err() {
                    socket.abort();
                }
            }
            _ => socket.abort(),
        }
    }
}
