//! The link's bytes, turned into actions.

use crate::{FixedText, Session};
use wire::{
    DataChannel, DecodeError, ErrorCode, FrameBuffer, FrameError, GoAwayCode, MAX_FRAME,
    MAX_PORT_STREAMS, MAX_REQUEST, MAX_STREAMS, Message, PROTOCOL_VERSION, Request, RequestPart,
};

/// What the host wants done. `slot` names the stream in the [`Session`].
#[derive(Debug, PartialEq, Eq)]
pub enum HostAction<'a> {
    /// Begin this.
    Open {
        /// The new stream.
        slot: usize,
        /// What to do.
        request: Request<'a>,
    },
    /// Take these bytes; say [`Session::consumed`] when they are used up.
    Data {
        /// The stream.
        slot: usize,
        /// Where they belong.
        channel: DataChannel,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// There will be no more bytes.
    End {
        /// The stream.
        slot: usize,
    },
    /// Stop; the slot is free already.
    Abandon {
        /// The stream.
        slot: usize,
    },
    /// Nothing: the frame was for the session.
    None,
}

/// The connection cannot go on. Send `GoAway` with this, then close.
#[derive(Debug, Clone, Copy)]
pub struct FatalError {
    /// Why.
    pub code: GoAwayCode,
    /// Why, for people.
    pub message: FixedText<96>,
}

impl FatalError {
    fn protocol(args: core::fmt::Arguments<'_>) -> Self {
        Self {
            code: GoAwayCode::Protocol,
            message: FixedText::of(args),
        }
    }
}

impl From<FrameError> for FatalError {
    fn from(e: FrameError) -> Self {
        Self::protocol(format_args!("not a frame: {e}"))
    }
}

impl From<DecodeError> for FatalError {
    fn from(e: DecodeError) -> Self {
        Self::protocol(format_args!("not a message: {e}"))
    }
}

/// The receiving half of a connection.
pub struct HostInput {
    frames: FrameBuffer<{ 2 * MAX_FRAME }>,
    requests: RequestAssembly,
    greeted: bool,
}

/// Joins requests from their parts.
struct RequestAssembly {
    bytes: [u8; MAX_REQUEST],
    filled: usize,
    /// The stream whose request is incomplete, 0 for none.
    joining: u32,
    /// The highest stream the host has opened.
    last_id: u32,
}

impl HostInput {
    /// For a new connection.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            frames: FrameBuffer::new(),
            requests: RequestAssembly {
                bytes: [0; MAX_REQUEST],
                filled: 0,
                joining: 0,
                last_id: 0,
            },
            greeted: false,
        }
    }

    /// Forgets everything: for a new connection.
    pub const fn clear(&mut self) {
        self.frames.clear();
        self.requests.filled = 0;
        self.requests.joining = 0;
        self.requests.last_id = 0;
        self.greeted = false;
    }

    /// Whether the host has said hello on this connection.
    #[must_use]
    pub const fn greeted(&self) -> bool {
        self.greeted
    }

    /// Where to put bytes from the link.
    pub fn space(&mut self) -> &mut [u8] {
        self.frames.space()
    }

    /// `n` bytes of the space are filled.
    pub fn commit(&mut self, n: usize) {
        self.frames.commit(n);
    }

    /// Handles the next frame, or returns `None` when there is no whole one. Call it only while
    /// [`Session::has_room`].
    ///
    /// # Errors
    /// [`FatalError`]: the peer broke the protocol.
    pub fn next(&mut self, session: &mut Session) -> Result<Option<HostAction<'_>>, FatalError> {
        let Self {
            frames,
            requests,
            greeted,
        } = self;
        let Some(frame) = frames.next_frame()? else {
            return Ok(None);
        };
        let id = frame.header.stream;
        let message = Message::decode(&frame)?;
        if !*greeted && !matches!(message, Message::Hello(_)) {
            return Err(FatalError::protocol(format_args!(
                "{:?} before Hello",
                message.kind()
            )));
        }
        if requests.joining != 0 && (id != requests.joining || !matches!(message, Message::Open(_)))
        {
            return Err(FatalError::protocol(format_args!(
                "stream {}: request cut",
                requests.joining
            )));
        }
        let action = match message {
            Message::Hello(hello) => {
                *greeted = true;
                check_version(hello.version)?;
                HostAction::None
            }
            Message::Ping(n) => {
                session.connection(&Message::Pong(n));
                HostAction::None
            }
            Message::Pong(_) => HostAction::None,
            Message::Open(open) => requests.take(id, &open, session)?,
            Message::GoAway { .. } | Message::Reply(_) | Message::Event(_) => {
                return Err(FatalError::protocol(format_args!(
                    "host sent {:?}",
                    message.kind()
                )));
            }
            Message::Data { .. } | Message::Credit(_) | Message::End | Message::Reset { .. } => {
                match known(id, requests.last_id, session)? {
                    Some(slot) => on_stream(slot, message, session),
                    None => HostAction::None,
                }
            }
        };
        Ok(Some(action))
    }
}

impl RequestAssembly {
    fn take(
        &mut self,
        id: u32,
        open: &RequestPart<'_>,
        session: &mut Session,
    ) -> Result<HostAction<'_>, FatalError> {
        if self.joining == 0 {
            if id <= self.last_id {
                return Err(FatalError::protocol(format_args!(
                    "stream {id} after {}",
                    self.last_id
                )));
            }
            self.last_id = id;
            self.filled = 0;
        }
        let end = self.filled + open.part.len();
        let Some(room) = self.bytes.get_mut(self.filled..end) else {
            return Err(FatalError::protocol(format_args!(
                "request over {MAX_REQUEST} bytes"
            )));
        };
        room.copy_from_slice(open.part);
        self.filled = end;
        self.joining = if open.more { id } else { 0 };
        if open.more {
            return Ok(HostAction::None);
        }
        match Request::decode(&self.bytes[..self.filled]) {
            Err(e) => {
                session.refuse(id, ErrorCode::InvalidArgument, format_args!("{e}"));
                Ok(HostAction::None)
            }
            Ok(request) => match session.open(id, &request) {
                Some(slot) => Ok(HostAction::Open { slot, request }),
                None => {
                    let (most, what) = match request.is_port() {
                        true => (MAX_PORT_STREAMS, "connections to ports"),
                        false => (MAX_STREAMS, "streams"),
                    };
                    let why = format_args!("{most} {what} are open already");
                    session.refuse(id, ErrorCode::Busy, why);
                    Ok(HostAction::None)
                }
            },
        }
    }
}

impl Default for HostInput {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for HostInput {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Input(last stream {})", self.requests.last_id)
    }
}

/// The slot of a stream; `None` for one that has ended, whose late frames mean nothing.
fn known(id: u32, last_id: u32, session: &Session) -> Result<Option<usize>, FatalError> {
    if id > last_id {
        return Err(FatalError::protocol(format_args!(
            "stream {id} was never opened"
        )));
    }
    Ok(session.find(id))
}

/// A frame of an open stream.
fn on_stream<'a>(slot: usize, message: Message<'a>, session: &mut Session) -> HostAction<'a> {
    let refused = match message {
        Message::Data { channel, bytes } => match session.receive(slot, bytes.len()) {
            Ok(()) => {
                return HostAction::Data {
                    slot,
                    channel,
                    bytes,
                };
            }
            Err(code) => code,
        },
        Message::Credit(n) => match session.grant(slot, n) {
            Ok(()) => return HostAction::None,
            Err(code) => code,
        },
        Message::End => {
            session.end(slot);
            return HostAction::End { slot };
        }
        _ => {
            session.forget(slot);
            return HostAction::Abandon { slot };
        }
    };
    session.reset(slot, refused, "");
    HostAction::Abandon { slot }
}

fn check_version(version: u16) -> Result<(), FatalError> {
    if version == PROTOCOL_VERSION {
        return Ok(());
    }
    let message = FixedText::of(format_args!(
        "host speaks version {version}, agent {PROTOCOL_VERSION}"
    ));
    Err(FatalError {
        code: GoAwayCode::Version,
        message,
    })
}
