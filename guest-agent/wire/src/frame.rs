//! Frames: the header, and a decoder that works however the bytes are cut.

use crate::error::codes;
use crate::limits::{HEADER_LEN, MAX_FRAME, MAX_PAYLOAD};
use core::fmt;

codes! {
    /// What a frame is.
    FrameKind {
        /// First frame of a connection, stream 0.
        Hello = 1,
        /// Answer me, stream 0.
        Ping = 2,
        /// Answer to a ping, stream 0.
        Pong = 3,
        /// Last frame of a connection, stream 0.
        GoAway = 4,
        /// A request, or a part of one.
        Open = 16,
        /// The end of a stream.
        Reply = 17,
        /// Bytes; the channel is in the flags.
        Data = 18,
        /// Permission to send more bytes.
        Credit = 19,
        /// The sender sends no more data.
        End = 20,
        /// The stream is given up.
        Reset = 21,
        /// Something happened on the stream.
        Event = 22,
    }
}

impl FrameKind {
    /// Whether the kind speaks about the connection (stream 0) and not about a stream.
    #[must_use]
    pub const fn is_connection(self) -> bool {
        matches!(self, Self::Hello | Self::Ping | Self::Pong | Self::GoAway)
    }
}

/// Bytes that cannot be a frame. The connection is lost: there is no way to find the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The payload is over [`MAX_PAYLOAD`].
    TooLong(u32),
    /// No such kind.
    UnknownKind(u8),
    /// The reserved bytes are not zero.
    Reserved(u16),
    /// A stream frame with stream 0, or a connection frame with another.
    WrongStream {
        /// The kind.
        kind: FrameKind,
        /// The stream.
        stream: u32,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(n) => write!(f, "frame payload of {n} bytes is over {MAX_PAYLOAD}"),
            Self::UnknownKind(k) => write!(f, "no frame kind {k}"),
            Self::Reserved(r) => write!(f, "reserved header bytes are {r:#x}, not 0"),
            Self::WrongStream { kind, stream } => write!(f, "{kind:?} frame on stream {stream}"),
        }
    }
}

impl core::error::Error for FrameError {}

/// A frame without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Payload bytes that follow, at most [`MAX_PAYLOAD`].
    pub len: usize,
    /// The stream; 0 is the connection itself.
    pub stream: u32,
    /// What it is.
    pub kind: FrameKind,
    /// Meaning depends on the kind: see [`crate::Message`].
    pub flags: u8,
}

impl FrameHeader {
    /// The header of 12 bytes.
    ///
    /// # Errors
    /// [`FrameError`]: the peer does not speak this protocol.
    pub fn decode(b: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let len = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let stream = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        let reserved = u16::from_le_bytes([b[10], b[11]]);
        let kind = FrameKind::from_u8(b[8]).ok_or(FrameError::UnknownKind(b[8]))?;
        let len = match usize::try_from(len) {
            Ok(len) if len <= MAX_PAYLOAD => len,
            _ => return Err(FrameError::TooLong(len)),
        };
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        if kind.is_connection() != (stream == 0) {
            return Err(FrameError::WrongStream { kind, stream });
        }
        Ok(Self {
            len,
            stream,
            kind,
            flags: b[9],
        })
    }

    /// The 12 bytes. `len` must be at most [`MAX_PAYLOAD`]; a larger one is written as `u32::MAX`
    /// and refused by every decoder.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let len = u32::try_from(self.len).unwrap_or(u32::MAX);
        out[0..4].copy_from_slice(&len.to_le_bytes());
        out[4..8].copy_from_slice(&self.stream.to_le_bytes());
        out[8] = self.kind.to_u8();
        out[9] = self.flags;
        out
    }
}

/// A whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: FrameHeader,
    /// `header.len` bytes.
    pub payload: &'a [u8],
}

/// Collects bytes and hands out frames, without allocation.
///
/// Read from the socket into [`space`](Self::space), say how much with [`commit`](Self::commit),
/// then call [`next_frame`](Self::next_frame) until it returns `None`. `N` must be at least
/// [`MAX_FRAME`] (checked when compiled).
pub struct FrameBuffer<const N: usize> {
    bytes: [u8; N],
    start: usize,
    end: usize,
}

impl<const N: usize> FrameBuffer<N> {
    const ROOM: () = assert!(N >= MAX_FRAME, "a frame must fit");

    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        let () = Self::ROOM;
        Self {
            bytes: [0; N],
            start: 0,
            end: 0,
        }
    }

    /// Forgets everything: for a new connection.
    pub const fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Where to put bytes that arrive. Never empty after `next_frame` returned `Ok(None)`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.clear();
        } else if N - self.start < MAX_FRAME || self.end == N {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// `n` bytes of [`space`](Self::space) are filled now; more than there was is cut.
    pub fn commit(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(N);
    }

    /// The next whole frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`]: close the connection.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let have = &self.bytes[self.start..self.end];
        let Some((head, rest)) = have.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(head)?;
        let Some(payload) = rest.get(..header.len) else {
            return Ok(None);
        };
        self.start += HEADER_LEN + header.len;
        Ok(Some(Frame { header, payload }))
    }
}

impl<const N: usize> Default for FrameBuffer<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for FrameBuffer<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameBuffer({} bytes waiting)", self.end - self.start)
    }
}
