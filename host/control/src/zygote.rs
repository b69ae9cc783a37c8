//! A process that makes VM processes by forking itself.
//!
//! ```text
//! service ── start ──> zygote: opens and prepares once what every VM process needs, shuts itself
//!    │                   │     away from files, network and other processes' names, stays alone
//!    │ ── Spawn + fds ──> │
//!    │                   └─ fork ──> VM process: a child of the *service*, with its own control socket
//!    │ <──── Spawned(pid) ────────────────┘
//! ```
//!
//! A VM process made so costs a fork of a small process instead of a program start: no loading, no
//! linking, no compiling of filters, no look at what KVM can do. It is a sibling of the zygote, so the
//! service reaps it as any child, and the zygote's end is no machine's end.
//!
//! All VM processes of one zygote have the same address layout. What a guest can learn of its own VM
//! process it would know of its siblings', which it cannot reach.

mod client;
mod fork;
mod server;

pub use client::{Spawned, Zygote, ZygoteError};
pub use server::{Role, ZYGOTE_NAME, serve};

use serde::{Deserialize, Serialize};

/// The argument that makes a VM program a zygote.
pub const ZYGOTE_ARGUMENT: &str = "zygote";

/// From the service to a zygote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Request {
    /// Make a VM process. Two descriptors come along: its end of the control socket, and its standard
    /// error. Answered by [`Event::Spawned`] or [`Event::Failed`].
    Spawn,
}

/// From a zygote to the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Event {
    /// It stands ready. What of its own confinement could not be had, for the log.
    Ready {
        /// One line each; empty if all holds.
        lacks: Vec<String>,
    },
    /// A VM process is there, as a child of the service; its own first word.
    Spawned {
        /// Its number.
        pid: i32,
    },
    /// None could be made.
    Failed {
        /// Why.
        message: String,
    },
}
