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
//! [`OUTPUT_WINDOW`] bytes and the host [`INPUT_WINDOW`] bytes ([`PORT_WINDOW`] both on a stream to
//! a port) before the first [`Message::Credit`]; a receiver grants what it has consumed. Whoever
//! sends more than it was granted gets its stream reset with [`ResetCode::FlowControl`]. A slow
//! stream therefore never fills the connection.
//!
//! Decoding borrows from the frame and never allocates; every length has a documented limit and
//! everything beyond it is refused. Bytes after a complete message are refused as well, so that a
//! newer field is never silently dropped: new fields mean a new [`PROTOCOL_VERSION`].
//!
//! **Architecture invariant:** `no_std`, no dependency, no `unsafe`, no knowledge of sockets or
//! E2B.
//!
//! ```
//! use wire::{FrameBuffer, MAX_FRAME, Message};
//!
//! // One end writes 4096 bytes of credit for stream 7,
//! let mut bytes = [0; 64];
//! let length = Message::Credit(4096).encode(7, &mut bytes).unwrap();
//! // and the other reads them, however the connection cuts them.
//! let mut buffer = FrameBuffer::<MAX_FRAME>::new();
//! for byte in &bytes[..length] {
//!     assert!(buffer.next_frame().unwrap().is_none());
//!     buffer.space()[0] = *byte;
//!     buffer.commit(1);
//! }
//! let frame = buffer.next_frame().unwrap().unwrap();
//! assert_eq!(frame.header.stream, 7);
//! assert_eq!(Message::decode(&frame), Ok(Message::Credit(4096)));
//! ```

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod codec;
mod error;
mod flow;
mod frame;
pub mod fuzz;
mod identity;
mod limits;
mod message;
mod priming;
mod reply;
mod request;
mod strings;

pub use codec::{DecodeError, EncodeError};
pub use error::{ErrorCode, GoAwayCode, ResetCode};
pub use flow::{FlowError, RecvWindow, SendWindow};
pub use frame::{Frame, FrameBuffer, FrameError, FrameHeader, FrameKind};
pub use identity::SetIdentity;
pub use limits::{
    AGENT_PORT, HEADER_LEN, INPUT_WINDOW, MAX_ARGS, MAX_DEFAULT_ENV, MAX_DEPTH, MAX_ENTROPY,
    MAX_ENV, MAX_FRAME, MAX_GROUPS, MAX_MESSAGE, MAX_NAME, MAX_PATH, MAX_PAYLOAD, MAX_PORT_STREAMS,
    MAX_REQUEST, MAX_STREAMS, MAX_TAG, MAX_VERSION, MAX_WINDOW, OUTPUT_WINDOW, PORT_WINDOW,
    PROTOCOL_VERSION,
};
pub use message::{DataChannel, Hello, Message, boot_flags};
pub use priming::PRIMED_FILES;
pub use reply::{
    EntryInfo, FileKind, ProcessEnd, ProcessExit, ProcessInfo, Record, Records, Reply, ReplyError,
    StreamEvent, Sysinfo, UserInfo,
};
pub use request::{
    ProcessLimits, PtySize, ReadFile, Request, RequestPart, StartProcess, Stdin, WriteFile,
};
pub use strings::{StringList, StringListIter};
