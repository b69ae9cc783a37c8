//! A process that makes VM processes by forking itself.
//!
//! ```text
//! service ── start ──> zygote: opens and prepares once what every VM process needs, shuts itself
//!    │                   │     away from files, network and other processes' names, stays alone
//!    │ ── Spawn + fds ──> │
//!    │                   └─ fork ──> VM process: a child of the *service*, with its own socket
//!    │ <──── Spawned(pid) ────────────────┘
//! ```
//!
//! A VM process made so costs a fork of a small process instead of a program start: no loading, no
//! linking, no compiling of filters, no look at what KVM can do. It is a sibling of the zygote, so
//! the service reaps it as any child, and the zygote's end is no machine's end.
//!
//! All VM processes of one zygote have the same address layout. What a guest can learn of its own
//! VM process it would know of its siblings', which it cannot reach.

mod client;
mod fork;
mod message;
mod server;

pub use client::{Spawned, Zygote, ZygoteError};
pub use message::ZYGOTE_ARGUMENT;
pub use server::{Role, ZYGOTE_NAME, serve};
