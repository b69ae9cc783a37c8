//! Waiting for a descriptor that tokio has no type for.

#![expect(
    unsafe_code,
    reason = "tokio registers bare descriptors by an unsafe call only"
)]

use control::ChannelError;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches `fd` for input. Must be called on the runtime.
///
/// # Errors
/// When the descriptor cannot be watched, or there are too many.
pub(crate) fn for_input(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open until it is dropped and always gives the same number, and the
    // `AsyncFd` owns it from here on.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(Into::into)
}

/// The next message on a socket that does not block; `None` when the peer is gone. Descriptors that
/// come along are not expected and closed here.
pub(crate) async fn message<T: DeserializeOwned>(
    socket: &AsyncFd<OwnedFd>,
) -> Result<Option<T>, ChannelError> {
    loop {
        let mut ready = socket.readable().await.map_err(ChannelError::Io)?;
        match control::recv::<T>(socket) {
            Err(error) if error.would_block() => ready.clear_ready(),
            other => return other.map(|message| message.map(|(message, _fds)| message)),
        }
    }
}
