//! The protocol between the service and the guest agent of one sandbox.
//!
//! One byte stream (a vsock connection, or any stream socket in tests) carries many *streams*.
//! Everything on it is a frame:
//!
//! ```text
//!  0        4          8      9       10       12
//!  +--------+----------+------+-------+--------+-----------------------+
//!  | len u32| stream   | kind | flags | zero   | payload, len bytes    |
//!  |        | u32      | u8   | u8    | u16    | at most 32 KiB        |
//!  +--------+----------+------+-------+--------+-----------------------+   little-endian
//! ```
//!
//! The *host* opens streams and chooses their ids, never 0 and strictly increasing. A stream is one
//! [`Request`]; the agent ends it with exactly one [`Reply`], after which it forgets the id:
//!
//! ```text
//! host                                            agent
//!  |  <------------------------------ Hello (0) --- |  first frame of a connection
//!  |  --- Hello (0) ------------------------------> |  version agreed, or GoAway
//!  |  --- Open(Start) 1 --------------------------> |
//!  |  <--------------------- Event(Started{pid}) 1  |
//!  |  --- Data(stdin) 1 --------------------------> |
//!  |  <------------------------- Data(stdout) 1 --- |
//!  |  --- Credit{bytes} 1 ------------------------> |  the host has consumed so much
//!  |  --- End 1 ----------------------------------> |  no more stdin
//!  |  <--------------------- Reply(Exited{..}) 1    |  last frame of stream 1
//! ```
//!
//! **Flow control.** Only the payload bytes of `Data` count. Per stream, the agent may send
//! [`OUTPUT_WINDOW`] bytes and the host [`INPUT_WINDOW`] bytes before the first [`Message::Credit`];
//! a receiver grants what it has consumed. Whoever sends more than it was granted gets its stream
//! reset with [`ResetCode::FlowControl`]. A slow stream therefore never fills the connection.
//!
//! Decoding borrows from the frame and never allocates; every length has a documented limit and
//! everything beyond it is refused. Bytes after a complete message are refused as well, so that a
//! newer field is never silently dropped: new fields mean a new [`PROTOCOL_VERSION`].
//!
//! **Architecture invariant:** `no_std`, no dependency, no `unsafe`, no knowledge of sockets or E2B.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod codec;
mod error;
mod flow;
mod frame;
mod message;
mod priming;
mod reply;
mod request;
mod strings;

pub use codec::{DecodeError, EncodeError};
pub use error::{ErrorCode, GoAwayCode, ResetCode};
pub use flow::{FlowError, RecvWindow, SendWindow};
pub use frame::{Frame, FrameBuffer, FrameError, FrameHeader, FrameKind};
pub use message::{DataChannel, Hello, Message, boot_flags};
pub use priming::PRIMED_FILES;
pub use reply::{
    EntryInfo, FileKind, ProcessExit, ProcessInfo, Record, Records, Reply, ReplyError, StreamEvent,
    Sysinfo, UserInfo,
};
pub use request::{
    ProcessLimits, PtySize, ReadFile, Request, RequestPart, SetIdentity, StartProcess, Stdin,
    WriteFile,
};
pub use strings::{StringList, StringListIter};

/// The version both sides name in their [`Hello`]. A peer with another one gets a `GoAway`.
pub const PROTOCOL_VERSION: u16 = 1;
/// The vsock port on the host (CID 2) to which the agent connects.
pub const AGENT_PORT: u32 = 1024;

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 12;
/// Most payload bytes of one frame.
pub const MAX_PAYLOAD: usize = 32 * 1024;
/// Most bytes of one frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD;
/// Most bytes of one encoded [`Request`]; over [`MAX_PAYLOAD`] it travels in several `Open` frames.
pub const MAX_REQUEST: usize = 256 * 1024;

/// `Data` bytes the agent may send on a stream before the host grants more.
pub const OUTPUT_WINDOW: u32 = 256 * 1024;
/// `Data` bytes the host may send on a stream before the agent grants more.
pub const INPUT_WINDOW: u32 = 64 * 1024;
/// No side ever holds more credit than this on one stream; a grant beyond it is a protocol error.
pub const MAX_WINDOW: u32 = 1 << 30;
/// Streams that may be open at once; one more is answered with [`ErrorCode::Busy`].
pub const MAX_STREAMS: usize = 256;

/// Most arguments of a process, its name included.
pub const MAX_ARGS: usize = 4096;
/// Most environment entries of a process, and of the defaults in [`SetIdentity`].
pub const MAX_ENV: usize = 1024;
/// Most bytes of the environment defaults in [`SetIdentity`].
pub const MAX_DEFAULT_ENV: usize = 16 * 1024;
/// Most bytes of a path (the kernel's `PATH_MAX` without its terminator).
pub const MAX_PATH: usize = 4095;
/// Most bytes of a user, group or host name.
pub const MAX_NAME: usize = 255;
/// Most bytes of a process tag.
pub const MAX_TAG: usize = 255;
/// Most supplementary groups of a user that are reported and set.
pub const MAX_GROUPS: usize = 64;
/// Most bytes of fresh entropy in [`SetIdentity`].
pub const MAX_ENTROPY: usize = 64;
/// Most bytes of an explanation in an error, a reset or a `GoAway`.
pub const MAX_MESSAGE: usize = 512;
/// Most bytes of the agent's version in [`Hello`].
pub const MAX_VERSION: usize = 64;
/// Most levels [`Request::ListDir`] goes down.
pub const MAX_DEPTH: u32 = 64;

/// Feeds arbitrary bytes to every decoder, in pieces. For fuzzers: must return, never panic.
pub fn fuzz_decode(bytes: &[u8]) {
    let mut buffer = FrameBuffer::<MAX_FRAME>::new();
    let mut rest = bytes;
    let step = usize::from(bytes.first().copied().unwrap_or(0)) + 1;
    while !rest.is_empty() {
        let space = buffer.space();
        let n = space.len().min(rest.len()).min(step);
        space[..n].copy_from_slice(&rest[..n]);
        buffer.commit(n);
        rest = &rest[n..];
        loop {
            match buffer.next_frame() {
                Ok(Some(frame)) => {
                    let _ = Message::decode(&frame);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    let _ = Request::decode(bytes);
    let _ = Reply::decode(bytes);
    let _ = StreamEvent::decode(bytes);
    for entry in Records::<EntryInfo<'_>>::new(bytes) {
        if entry.is_err() {
            break;
        }
    }
    for process in Records::<ProcessInfo<'_>>::new(bytes) {
        if process.is_err() {
            break;
        }
    }
}
