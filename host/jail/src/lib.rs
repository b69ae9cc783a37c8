//! Confinement of a process that serves a hostile guest.
//!
//! Every step takes something away and none can be undone:
//!
//! | step | afterwards |
//! |---|---|
//! | [`close_inherited`] | no descriptor of the parent's is left by accident |
//! | [`empty_rooms`] | no network, no file but `/proc`, no System V objects are in sight |
//! | [`become_user`] | no capability; its own user, whom no other process has |
//! | [`seal`] | no new privileges, no core dump, nobody of the same user may trace it |
//! | [`Limits::apply`] | a bounded number of descriptors |
//! | [`forbid_files_and_network`] | nothing can be opened, bound or connected any more |
//! | [`Filter::apply`] | all threads have only the system calls they were given |
//!
//! **Architecture invariant:** this crate knows no VM: which system calls a process needs is said
//! by its caller.

mod files;
mod filter;
mod limits;
mod rooms;

pub use files::{close_inherited, forbid_files_and_network};
pub use filter::{Allowed, Filter, When};
pub use limits::{Limits, seal};
pub use rooms::{become_user, empty_rooms};

/// What could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call filter does not apply.
    #[error("The system call filter cannot be applied")]
    Filter(#[source] seccompiler::Error),
    /// A list of system calls cannot be a filter.
    #[error("The list of system calls makes no filter: {0}")]
    Unfit(String),
    /// A file system restriction cannot be applied.
    #[error("Landlock cannot be applied")]
    Landlock(#[source] landlock::RulesetError),
    /// Another restriction failed.
    #[error("Could not {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}
