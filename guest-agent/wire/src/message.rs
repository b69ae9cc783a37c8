//! What a frame says.

use crate::codec::{DecodeError, EncodeError, FieldReader, FieldWriter, code};
use crate::error::{GoAwayCode, ResetCode, codes};
use crate::frame::{Frame, FrameHeader, FrameKind};
use crate::limits::{HEADER_LEN, MAX_FRAME, MAX_MESSAGE, MAX_PAYLOAD, MAX_VERSION};
use crate::reply::{Reply, StreamEvent};
use crate::request::RequestPart;

codes! {
    /// To what the bytes of a `Data` frame belong. Travels in the flags of the header.
    DataChannel {
        /// To the process.
        Stdin = 0,
        /// From the process.
        Stdout = 1,
        /// From the process.
        Stderr = 2,
        /// From a process with a terminal (to it: `Stdin`).
        Pty = 3,
        /// File contents, either way.
        File = 4,
        /// Whole records ([`crate::Records`]): entries or processes, from the agent.
        Records = 5,
        /// Of a connection to a port, either way.
        Port = 6,
    }
}

/// What a connection starts with, from both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// [`crate::PROTOCOL_VERSION`] of the sender.
    pub version: u16,
    /// The sender's build, for people.
    pub agent: &'a str,
    /// The identity the guest last took ([`crate::SetIdentity`]); 0 before the first.
    pub generation: u64,
    /// See [`boot_flags`].
    pub flags: u32,
    /// Nanoseconds of the guest's monotonic clock when the agent's first instruction ran.
    pub agent_start_ns: u64,
    /// The same when it sent this.
    pub ready_ns: u64,
}

/// The bits of [`Hello::flags`].
pub mod boot_flags {
    /// The agent is PID 1 and has set up the guest.
    pub const INIT: u32 = 1;
    /// User processes are confined by a cgroup.
    pub const CGROUP: u32 = 1 << 1;
    /// This connection follows an earlier one of the same agent: its streams are gone.
    pub const RECONNECT: u32 = 1 << 2;
    /// It can stop user processes: [`crate::Request::Freeze`].
    pub const FREEZER: u32 = 1 << 3;
    /// It can connect to ports of the guest: [`crate::Request::ConnectPort`].
    pub const PORTS: u32 = 1 << 4;
}

/// A decoded frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Opens the connection.
    Hello(Hello<'a>),
    /// Asks for a `Pong` with the same number.
    Ping(u64),
    /// Answers a `Ping`.
    Pong(u64),
    /// Ends the connection.
    GoAway {
        /// Why.
        code: GoAwayCode,
        /// Why, for people; cut at [`MAX_MESSAGE`].
        message: &'a str,
    },
    /// A request or a part of it; host to agent.
    Open(RequestPart<'a>),
    /// The end of a stream; agent to host.
    Reply(Reply<'a>),
    /// Bytes. Never empty.
    Data {
        /// To what they belong.
        channel: DataChannel,
        /// 1 to [`MAX_PAYLOAD`] bytes.
        bytes: &'a [u8],
    },
    /// The sender consumed so many data bytes: as many more may follow.
    Credit(u32),
    /// The sender has no more data: closes stdin, completes an upload, ends a half of a connection
    /// to a port, the only stream on which the agent sends it.
    End,
    /// The sender gives the stream up. A process keeps running, without its output being sent.
    Reset {
        /// Why.
        code: ResetCode,
        /// Why, for people; cut at [`MAX_MESSAGE`].
        message: &'a str,
    },
    /// News of a stream; agent to host.
    Event(StreamEvent<'a>),
}

impl<'a> Message<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`DecodeError`]: the peer broke the protocol; send `GoAway` and close.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, DecodeError> {
        let flags = frame.header.flags;
        let kind = frame.header.kind;
        if flags != 0 && !matches!(kind, FrameKind::Data | FrameKind::Open) {
            return Err(DecodeError::Invalid {
                field: "flags",
                value: u32::from(flags),
            });
        }
        let mut r = FieldReader::new(frame.payload);
        let message = match kind {
            FrameKind::Hello => Self::Hello(Hello {
                version: r.u16()?,
                agent: r.text("agent version", MAX_VERSION)?,
                generation: r.u64()?,
                flags: r.u32()?,
                agent_start_ns: r.u64()?,
                ready_ns: r.u64()?,
            }),
            FrameKind::Ping => Self::Ping(r.u64()?),
            FrameKind::Pong => Self::Pong(r.u64()?),
            FrameKind::GoAway => Self::GoAway {
                code: code(r.u8()?, GoAwayCode::from_u8, "go-away code")?,
                message: r.text("go-away message", MAX_MESSAGE)?,
            },
            FrameKind::Open => return Ok(Self::Open(RequestPart::decode(flags, frame.payload)?)),
            FrameKind::Reply => return Ok(Self::Reply(Reply::decode(frame.payload)?)),
            FrameKind::Event => return Ok(Self::Event(StreamEvent::decode(frame.payload)?)),
            FrameKind::Data if frame.payload.is_empty() => return Err(DecodeError::Truncated),
            FrameKind::Data => {
                let channel = code(flags, DataChannel::from_u8, "channel")?;
                return Ok(Self::Data {
                    channel,
                    bytes: frame.payload,
                });
            }
            FrameKind::Credit => Self::Credit(r.u32()?),
            FrameKind::End => Self::End,
            FrameKind::Reset => Self::Reset {
                code: code(r.u8()?, ResetCode::from_u8, "reset code")?,
                message: r.text("reset message", MAX_MESSAGE)?,
            },
        };
        r.finish()?;
        Ok(message)
    }

    /// Writes the frame for `stream` (0 for connection messages) to the front of `out`, and returns
    /// its length. [`MAX_FRAME`] bytes always suffice.
    ///
    /// # Errors
    /// [`EncodeError`]: a field is over its limit or `out` is too small.
    pub fn encode(&self, stream: u32, out: &mut [u8]) -> Result<usize, EncodeError> {
        let (head, body) = out
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(EncodeError::Full)?;
        let room = body.len().min(MAX_PAYLOAD);
        let mut w = FieldWriter::new(&mut body[..room]);
        let flags = self.encode_payload(&mut w)?;
        let len = w.written();
        *head = FrameHeader {
            len,
            stream,
            kind: self.kind(),
            flags,
        }
        .encode();
        Ok(HEADER_LEN + len)
    }

    fn encode_payload(&self, w: &mut FieldWriter<'_>) -> Result<u8, EncodeError> {
        match self {
            Self::Hello(h) => {
                w.u16(h.version)?;
                w.bytes("agent version", h.agent.as_bytes(), MAX_VERSION)?;
                w.u64(h.generation)?;
                w.u32(h.flags)?;
                w.u64(h.agent_start_ns)?;
                w.u64(h.ready_ns)?;
            }
            Self::Ping(n) | Self::Pong(n) => w.u64(*n)?,
            Self::GoAway { code, message } => {
                w.u8(code.to_u8())?;
                w.text_cut("go-away message", message, MAX_MESSAGE)?;
            }
            Self::Open(open) => return open.encode(w),
            Self::Reply(reply) => reply.encode(w)?,
            Self::Data { channel, bytes } => {
                w.raw(bytes)?;
                return Ok(channel.to_u8());
            }
            Self::Credit(n) => w.u32(*n)?,
            Self::End => {}
            Self::Reset { code, message } => {
                w.u8(code.to_u8())?;
                w.text_cut("reset message", message, MAX_MESSAGE)?;
            }
            Self::Event(event) => event.encode(w)?,
        }
        Ok(0)
    }

    /// The kind of its frame.
    #[must_use]
    pub const fn kind(&self) -> FrameKind {
        match self {
            Self::Hello(_) => FrameKind::Hello,
            Self::Ping(_) => FrameKind::Ping,
            Self::Pong(_) => FrameKind::Pong,
            Self::GoAway { .. } => FrameKind::GoAway,
            Self::Open(_) => FrameKind::Open,
            Self::Reply(_) => FrameKind::Reply,
            Self::Data { .. } => FrameKind::Data,
            Self::Credit(_) => FrameKind::Credit,
            Self::End => FrameKind::End,
            Self::Reset { .. } => FrameKind::Reset,
            Self::Event(_) => FrameKind::Event,
        }
    }
}

const _: () = assert!(MAX_FRAME == HEADER_LEN + MAX_PAYLOAD);
