//! The requests of one connection: each gets its headers, and what follows a head passes through.
//!
//! ```text
//!        ┌──────────── the body is over ─────────────┐
//!        v                                           │
//!  head ─┼─ length ──────────────────────────────> body
//!        ├─ chunked ─────────────────────────────> body
//!        └─ upgrade ─> the host's answer ─ 101 ──> raw, for good
//!                          │ another
//!                          └──────────────────────> head
//! ```
//!
//! A request that can be read in two ways ends its connection: what one side takes for a body, the
//! other might take for a request.

use crate::chunked_body::ChunkedBody;
use crate::request_head::{self, HeadRule, MAX_HEAD, RequestBody, RequestFault};

/// Most lines of an answer's head.
const MAX_LINES: usize = 128;

#[derive(Debug)]
enum StreamState {
    /// In a head.
    Head,
    /// In a body of this many more bytes.
    Body(u64),
    /// In a body that says itself where it ends.
    Chunked(ChunkedBody),
    /// Behind a request to speak something else: nothing passes until the host has answered. Its
    /// answer so far.
    Upgrading(Vec<u8>),
    /// The two speak something else.
    Raw,
}

/// The requests of one connection, in order.
#[derive(Debug)]
pub(crate) struct RequestStream {
    state: StreamState,
    /// What has come of a head.
    head: Vec<u8>,
    /// Whether one has been passed on.
    passed: bool,
}

impl RequestStream {
    /// Before the first one.
    pub(crate) const fn new() -> Self {
        Self {
            state: StreamState::Head,
            head: Vec::new(),
            passed: false,
        }
    }

    /// Whether none has been passed on: the host has nothing to answer.
    pub(crate) const fn is_first(&self) -> bool {
        !self.passed
    }

    /// Takes bytes of the guest's and appends what the host is to hear; how many were taken. None
    /// are while the host's answer decides what they mean.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        rule: HeadRule<'_>,
        out: &mut Vec<u8>,
    ) -> Result<usize, RequestFault> {
        match &mut self.state {
            StreamState::Head => self.push_head(bytes, rule, out),
            StreamState::Body(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let taken = bytes.len().min(most);
                out.extend_from_slice(&bytes[..taken]);
                *left -= taken as u64;
                if *left == 0 {
                    self.state = StreamState::Head;
                }
                Ok(taken)
            }
            StreamState::Chunked(body) => {
                let taken = body.advance(bytes)?;
                out.extend_from_slice(&bytes[..taken]);
                if *body == ChunkedBody::Over {
                    self.state = StreamState::Head;
                }
                Ok(taken)
            }
            StreamState::Upgrading(_) => Ok(0),
            StreamState::Raw => {
                out.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn push_head(
        &mut self,
        bytes: &[u8],
        rule: HeadRule<'_>,
        out: &mut Vec<u8>,
    ) -> Result<usize, RequestFault> {
        let before = self.head.len();
        let taken = bytes.len().min(MAX_HEAD - before);
        self.head.extend_from_slice(&bytes[..taken]);
        let Some(end) = request_head::head_end(&self.head, before)? else {
            return match self.head.len() {
                MAX_HEAD => Err(RequestFault::Form),
                _ => Ok(taken),
            };
        };
        let body = request_head::rewrite(&self.head[..end], rule, out)?;
        self.head = Vec::new();
        self.passed = true;
        self.state = match body {
            RequestBody::Length(0) => StreamState::Head,
            RequestBody::Length(length) => StreamState::Body(length),
            RequestBody::Chunked => StreamState::Chunked(ChunkedBody::new()),
            RequestBody::Upgrade => StreamState::Upgrading(Vec::new()),
        };
        // What is behind the head comes again.
        Ok(end - before)
    }

    /// Looks at bytes of the host's for the answer to an upgrade; whether it has come.
    pub(crate) fn answered(&mut self, bytes: &[u8]) -> Result<bool, RequestFault> {
        let StreamState::Upgrading(answer) = &mut self.state else {
            return Ok(false);
        };
        answer.extend_from_slice(bytes);
        loop {
            let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
            let mut response = httparse::Response::new(&mut lines);
            let (length, code) = match (response.parse(answer), response.code) {
                (Ok(httparse::Status::Complete(length)), Some(code)) => (length, code),
                (Ok(httparse::Status::Partial), _) if answer.len() < MAX_HEAD => return Ok(false),
                _ => return Err(RequestFault::Form),
            };
            match code {
                101 => self.state = StreamState::Raw,
                // More answers follow.
                100..200 => {
                    answer.drain(..length);
                    continue;
                }
                _ => self.state = StreamState::Head,
            }
            return Ok(true);
        }
    }
}
