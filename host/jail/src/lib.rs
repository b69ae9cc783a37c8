//! Confinement of a process that serves a hostile guest.
//!
//! Every step takes something away and none can be undone:
//!
//! | step | afterwards |
//! |---|---|
//! | [`close_inherited`] | no descriptor of the parent's is left by accident |
//! | [`enter_empty_namespaces`] | no network, no file but `/proc`, no System V objects in sight |
//! | [`see_own_group_only`] | its control group is the highest in sight |
//! | [`become_user`] | no capability; its own user, whom no other process has |
//! | [`seal`] | no new privileges, no core dump, nobody of the same user may trace it |
//! | [`Limits::apply`] | a bounded number of descriptors, and of bytes |
//! | [`limit_file_size`] | no file becomes longer than what is known to be needed |
//! | [`forbid_files_and_network`] | nothing can be opened, bound or connected any more |
//! | [`forbid_files_and_servers`] | in its place where a process has to connect to other hosts |
//! | [`Filter::apply`] | all threads have only the system calls they were given |
//!
//! **Architecture invariant:** this crate knows no VM: which system calls a process needs is said
//! by its caller.

mod error;
mod files;
mod filter;
mod limits;
mod namespaces;

pub use error::JailError;
pub use files::{
    LANDLOCK_VERSION, close_inherited, forbid_files_and_network, forbid_files_and_servers,
    landlock_version,
};
pub use filter::{Allowed, Filter, When};
pub use limits::{Limits, limit_file_size, seal};
pub use namespaces::{
    become_user, become_user_of_group, enter_empty_namespaces, leave_shared_paths,
    see_own_group_only,
};
