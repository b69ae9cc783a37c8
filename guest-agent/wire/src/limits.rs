//! The version, and the largest of everything.

/// The version both sides name in their [`crate::Hello`]. A peer with another one gets a `GoAway`.
pub const PROTOCOL_VERSION: u16 = 1;
/// The vsock port on the host (CID 2) to which the agent connects.
pub const AGENT_PORT: u32 = 1024;

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 12;
/// Most payload bytes of one frame.
pub const MAX_PAYLOAD: usize = 32 * 1024;
/// Most bytes of one frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD;
/// Most bytes of one encoded [`crate::Request`]; over [`MAX_PAYLOAD`] it travels in several `Open`
/// frames.
pub const MAX_REQUEST: usize = 256 * 1024;

/// `Data` bytes the agent may send on a stream before the host grants more.
pub const OUTPUT_WINDOW: u32 = 256 * 1024;
/// `Data` bytes the host may send on a stream before the agent grants more.
pub const INPUT_WINDOW: u32 = 64 * 1024;
/// No side ever holds more credit than this on one stream; a grant beyond it is a protocol error.
pub const MAX_WINDOW: u32 = 1 << 30;
/// `Data` bytes either side may send on a stream of [`crate::Request::ConnectPort`] before the
/// other grants more: there may be many of them, and each costs so much when nobody reads.
pub const PORT_WINDOW: u32 = 64 * 1024;
/// Streams that may be open at once, those to ports not counted; one more is answered with
/// [`crate::ErrorCode::Busy`].
pub const MAX_STREAMS: usize = 256;
/// Streams to ports ([`crate::Request::ConnectPort`]) that may be open at once, beside the others;
/// one more is answered with [`crate::ErrorCode::Busy`].
pub const MAX_PORT_STREAMS: usize = 1024;

/// Most arguments of a process, its name included.
pub const MAX_ARGS: usize = 4096;
/// Most environment entries of a process, and of the defaults in [`crate::SetIdentity`].
pub const MAX_ENV: usize = 1024;
/// Most bytes of the environment defaults in [`crate::SetIdentity`].
pub const MAX_DEFAULT_ENV: usize = 16 * 1024;
/// Most bytes of a path (the kernel's `PATH_MAX` without its terminator).
pub const MAX_PATH: usize = 4095;
/// Most bytes of a user, group or host name.
pub const MAX_NAME: usize = 255;
/// Most bytes of a process tag.
pub const MAX_TAG: usize = 255;
/// Most supplementary groups of a user that are reported and set.
pub const MAX_GROUPS: usize = 64;
/// Most bytes of fresh entropy in [`crate::SetIdentity`].
pub const MAX_ENTROPY: usize = 64;
/// Most bytes of an explanation in an error, a reset or a `GoAway`.
pub const MAX_MESSAGE: usize = 512;
/// Most bytes of the agent's version in [`crate::Hello`].
pub const MAX_VERSION: usize = 64;
/// Most levels [`crate::Request::ListDir`] goes down.
pub const MAX_DEPTH: u32 = 64;
