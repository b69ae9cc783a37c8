//! Waiting for a descriptor that tokio has no type for.

#![expect(
    unsafe_code,
    reason = "tokio registers bare descriptors by an unsafe call only"
)]

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
