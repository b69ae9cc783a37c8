//! The part of the guest agent that does no input or output: bytes in, actions out.
//!
//! [`HostInput`] turns the link's bytes into [`HostAction`]s, [`Session`] holds the streams with
//! their windows and the frames on their way out, [`AccountFiles`] reads `/etc/passwd` and
//! `/etc/group`, and [`ProcessEnvironment`] builds what a process finds as its environment. All of
//! it lives in fixed tables: there is no allocator. The binary beside it does the system calls.
//!
//! **Architecture invariant:** this library makes no system call and knows no clock.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod accounts;
mod environment;
mod input;
mod session;
mod text;

pub use accounts::{AccountFiles, UserAccount};
pub use environment::{BASE_ENTRIES, MAX_ENTRIES, PATH, ProcessEnvironment};
pub use input::{FatalError, HostAction, HostInput};
pub use session::{ALL_STREAMS, OUT_BUFFER, Session};
pub use text::FixedText;
