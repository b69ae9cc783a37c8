//! The frames between `cargo xtask lab` and the agent inside the lab.
//!
//! One TCP connection carries one command. A frame is a kind (1 byte), a length (4 bytes, little
//! endian) and that many bytes. The host opens with [`FrameKind::CommandRequest`] and may then send
//! input, signals and window sizes; the agent answers with output and ends with
//! [`FrameKind::Exited`].
//!
//! Output is paced by TCP: a host that does not read stops the agent's reading, and so the command
//! itself. Input has a window ([`INPUT_WINDOW`]) instead, so that a command that reads nothing
//! never hides a signal or a closed connection from the agent.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};

/// The longest payload of a frame, in bytes.
pub(super) const MAX_PAYLOAD: usize = 64 << 10;
/// Input bytes that may be under way: sent by the host, not yet taken by the command.
pub(super) const INPUT_WINDOW: usize = 256 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// Host: a [`CommandRequest`] as JSON.
    CommandRequest = 1,
    /// Host: bytes for the command's standard input.
    Input = 2,
    /// Host: the standard input ends here.
    InputEnd = 3,
    /// Host: a signal number (1 byte) for the command's process group.
    Signal = 4,
    /// Host: rows and columns of the terminal (2 bytes each).
    Resize = 5,
    /// Agent: bytes of the standard output.
    Stdout = 6,
    /// Agent: bytes of the standard error.
    Stderr = 7,
    /// Agent: the command took this many input bytes (4 bytes).
    InputTaken = 8,
    /// Agent: the wait status of the command (4 bytes). Nothing follows.
    Exited = 9,
    /// Agent: why the command could not be started. Nothing follows.
    Refused = 10,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [FrameKind; 10] = [
            FrameKind::CommandRequest,
            FrameKind::Input,
            FrameKind::InputEnd,
            FrameKind::Signal,
            FrameKind::Resize,
            FrameKind::Stdout,
            FrameKind::Stderr,
            FrameKind::InputTaken,
            FrameKind::Exited,
            FrameKind::Refused,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A command to run in the lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandRequest {
    /// Proves that the host side is the one that started this lab.
    pub(super) token: String,
    /// Program and arguments; empty asks only for the time, 8 bytes of [`FrameKind::Stdout`]:
    /// nanoseconds since the epoch.
    pub(super) argv: Vec<String>,
    /// Variables beyond the agent's own.
    pub(super) env: Vec<(String, String)>,
    /// Working directory; the agent's own if absent.
    pub(super) cwd: Option<String>,
    /// Run on a pseudo-terminal of so many rows and columns.
    pub(super) terminal: Option<(u16, u16)>,
    /// Nanoseconds to add to the lab's clock before anything else.
    pub(super) step_clock_ns: Option<i64>,
}

/// Reads a frame into `payload`; `None` at the end of the stream.
///
/// # Errors
/// An unknown kind, a payload beyond [`MAX_PAYLOAD`], a stream that ends within a frame.
pub(super) fn read(from: &mut impl Read, payload: &mut Vec<u8>) -> Result<Option<FrameKind>> {
    let mut head = [0_u8; 5];
    let first = loop {
        match from.read(&mut head) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => break other.context("Reading a lab frame")?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[first..])
        .context("A lab frame ends within its header")?;
    let [kind, length @ ..] = head;
    let length = usize::try_from(u32::from_le_bytes(length))?;
    let Some(kind) = FrameKind::from_byte(kind) else {
        bail!("A lab frame of unknown kind {kind}");
    };
    if length > MAX_PAYLOAD {
        bail!("A lab frame of {length} bytes; the limit is {MAX_PAYLOAD}");
    }
    payload.resize(length, 0);
    from.read_exact(payload)
        .context("A lab frame ends within its payload")?;
    Ok(Some(kind))
}

/// Writes a frame at once.
///
/// # Errors
/// The stream's, or a payload beyond [`MAX_PAYLOAD`].
pub(super) fn write(to: &mut impl Write, kind: FrameKind, payload: &[u8]) -> Result<()> {
    if payload.len() > MAX_PAYLOAD {
        bail!(
            "A lab frame of {} bytes; the limit is {MAX_PAYLOAD}",
            payload.len()
        );
    }
    let length = u32::try_from(payload.len())?;
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame).context("Writing a lab frame")
}

/// A little-endian number of a frame that carries just that.
pub(super) fn number(payload: &[u8]) -> Result<u32> {
    let bytes = payload
        .try_into()
        .ok()
        .context("A lab frame's number must have 4 bytes")?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn frames_come_back_as_sent() {
        let mut wire = Vec::new();
        let long = vec![7; MAX_PAYLOAD];
        write(&mut wire, FrameKind::Stdout, &long).unwrap();
        write(&mut wire, FrameKind::InputEnd, &[]).unwrap();
        let mut from = &wire[..];
        let mut payload = Vec::new();
        assert_eq!(
            read(&mut from, &mut payload).unwrap(),
            Some(FrameKind::Stdout)
        );
        assert_eq!(payload, long);
        assert_eq!(
            read(&mut from, &mut payload).unwrap(),
            Some(FrameKind::InputEnd)
        );
        assert!(payload.is_empty());
        assert_eq!(read(&mut from, &mut payload).unwrap(), None);
    }

    #[test]
    fn every_kind_has_its_own_byte() {
        for byte in 0..=u8::MAX {
            let kind = FrameKind::from_byte(byte);
            assert!(kind.is_none_or(|k| k as u8 == byte));
            assert_eq!(kind.is_some(), (1..=10).contains(&byte));
        }
    }

    #[test]
    fn broken_frames_are_refused() {
        let mut payload = Vec::new();
        for (bytes, why) in [
            (&[6, 1, 0][..], "within its header"),
            (&[6, 2, 0, 0, 0, 1], "within its payload"),
            (&[99, 0, 0, 0, 0], "unknown kind 99"),
            (&[6, 1, 0, 1, 0], "65537 bytes"),
            (&[6, 255, 255, 255, 255], "4294967295 bytes"),
        ] {
            let error = read(&mut &bytes[..], &mut payload).unwrap_err().to_string();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
        write(&mut Vec::new(), FrameKind::Input, &vec![0; MAX_PAYLOAD + 1]).unwrap_err();
        number(&[1, 2, 3]).unwrap_err();
        assert_eq!(number(&[1, 2, 0, 0]).unwrap(), 513);
    }
}
