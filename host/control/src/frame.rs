//! One packet, one message: a version byte, postcard bytes, and descriptors beside them.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most bytes of one message.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Most descriptors with one message.
pub const MAX_FDS: usize = 16;
const VERSION: u8 = 3;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The message does not fit.
    #[error("A control message of {0} bytes is over {MAX_MESSAGE}")]
    TooLarge(usize),
    /// Too many descriptors.
    #[error("{0} descriptors with one control message are over {MAX_FDS}")]
    TooManyFds(usize),
    /// The peer speaks another version.
    #[error("Control message of version {0}, this program speaks {VERSION}: mixed builds?")]
    Version(u8),
    /// The bytes are not such a message, or bytes follow it, or it was cut off.
    #[error("A control message of {0} bytes does not decode")]
    Malformed(usize),
    /// The socket failed. `WouldBlock` is passed on for non-blocking sockets.
    #[error("Control socket failed")]
    Io(#[source] std::io::Error),
}

impl ChannelError {
    /// Whether a non-blocking socket had nothing to give or no room.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }
}

fn io(e: Errno) -> ChannelError {
    ChannelError::Io(e.into())
}

/// A connected pair of control sockets, both close-on-exec and blocking.
///
/// # Errors
/// When the process is out of descriptors.
pub fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message with its descriptors.
///
/// # Errors
/// [`ChannelError::TooLarge`], [`ChannelError::TooManyFds`], or the socket's error.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ChannelError> {
    if fds.len() > MAX_FDS {
        return Err(ChannelError::TooManyFds(fds.len()));
    }
    let bytes =
        postcard::to_extend(message, vec![VERSION]).map_err(|_| ChannelError::Malformed(0))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(ChannelError::TooLarge(bytes.len()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ChannelError::TooManyFds(fds.len()));
    }
    loop {
        match sendmsg(
            &socket,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(io(e)),
        }
    }
}

/// Receives one message with its descriptors; `None` when the peer is gone.
///
/// # Errors
/// [`ChannelError::Version`], [`ChannelError::Malformed`], or the socket's error.
pub fn recv<T: DeserializeOwned>(
    socket: impl AsFd,
) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
    // On the stack: a fresh piece of heap of this size costs page faults, and a claim waits for
    // this.
    let mut bytes = [0; MAX_MESSAGE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg(
            &socket,
            &mut slices,
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(r) => break r,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            Err(e) => return Err(io(e)),
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let message = decode(&bytes[..received.bytes])?;
    Ok(message.map(|message| (message, fds)))
}

/// The message of one packet; `None` for an empty one, which is the end of the file.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, ChannelError> {
    let len = bytes.len();
    match *bytes {
        [] => Ok(None),
        _ if len > MAX_MESSAGE => Err(ChannelError::Malformed(len)),
        [VERSION, ref body @ ..] => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(Some(message)),
            _ => Err(ChannelError::Malformed(len)),
        },
        [version, ..] => Err(ChannelError::Version(version)),
    }
}

/// Fuzz entry point: any packet of a VM process, of a network process, and of a service. What
/// decodes encodes again, and what is checked holds.
pub fn fuzz_messages(bytes: &[u8]) {
    let _ = decode::<crate::Event>(bytes);
    let _ = decode::<crate::NetEvent>(bytes);
    if let Ok(Some(request)) = decode::<crate::NetRequest>(bytes) {
        let again = postcard::to_extend(&request, vec![VERSION]);
        let decoded = decode(&again.unwrap_or_default()).ok();
        assert_eq!(decoded, Some(Some(request.clone())));
        let _ = match request {
            crate::NetRequest::Configure(spec) => spec.check().is_ok(),
            crate::NetRequest::SetPolicy(policy) => policy.check().is_ok(),
            crate::NetRequest::HeaderRules(rules) => rules.check().is_ok(),
        };
    }
    if let Ok(Some(request)) = decode::<crate::Request>(bytes) {
        let again = postcard::to_extend(&request, vec![VERSION]);
        assert_eq!(
            decode(&again.unwrap_or_default()).ok(),
            Some(Some(request.clone()))
        );
        if let crate::Request::Configure(spec) = request {
            let _ = spec.check(MAX_FDS);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Event, Request};
    use proptest::prelude::*;

    #[test]
    fn a_message_and_its_descriptors_arrive() {
        let (a, b) = pair().unwrap();
        let (x, _y) = pair().unwrap();
        send(&a, &Request::Start, &[x.as_fd()]).unwrap();
        let (message, fds) = recv::<Request>(&b).unwrap().unwrap();
        assert_eq!((message, fds.len()), (Request::Start, 1));
        drop(a);
        assert!(recv::<Request>(&b).unwrap().is_none());
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let (a, b) = pair().unwrap();
        rustix::net::send(&a, &[VERSION + 1, 0], SendFlags::empty()).unwrap();
        let refused = recv::<Request>(&b).unwrap_err();
        assert!(matches!(refused, ChannelError::Version(v) if v == VERSION + 1));
    }

    proptest! {
        #[test]
        fn any_packet_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            fuzz_messages(&bytes);
            fuzz_messages(&[&[VERSION], &bytes[..]].concat());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 1..512)) {
            let (a, b) = pair().unwrap();
            rustix::net::send(&a, &bytes, SendFlags::empty()).unwrap();
            let _ = recv::<Event>(&b);
        }
    }
}
