//! The part of the guest agent that does no input or output: bytes in, actions out.
//!
//! [`Input`] turns the link's bytes into [`Action`]s, [`Session`] holds the streams with their
//! windows and the frames on their way out, [`Accounts`] reads `/etc/passwd` and `/etc/group`, and
//! [`Environment`] builds what a process finds as its environment. All of it lives in fixed tables:
//! there is no allocator. The binary beside it does the system calls.
//!
//! **Architecture invariant:** this library makes no system call and knows no clock.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod accounts;
mod environment;
mod input;
mod session;
mod text;

pub use accounts::{Account, Accounts};
pub use environment::{Environment, PATH};
pub use input::{Action, Fatal, Input};
pub use session::{OUT_BUFFER, Session};
pub use text::Text;
