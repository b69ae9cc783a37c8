//! `hatchery`: the E2B control plane, the envd facade, and the registry of running sandboxes.
//!
//! ```text
//! client ──HTTP──> server ─> route ─┬─> sandboxes/*  (control plane) ─> registry ─> launcher ─> VM process
//!                                   └─> envd/*       (data plane)    ─> link ──── wire ───────> guest agent
//! ```
//!
//! **Architecture invariant:** this crate never links KVM, and it is the only one that knows E2B's
//! JSON and the Connect protocol.

pub mod app;
pub mod auth;
pub mod body;
pub mod checkpoints;
pub mod config;
pub mod connect;
pub mod doctor;
pub mod envd;
pub mod error;
pub mod golden;
pub mod identity;
pub mod ids;
pub mod image;
pub mod launcher;
mod linger;
pub mod link;
pub mod machine;
pub mod name;
mod pace;
pub mod pager;
pub mod paused;
pub mod pool;
pub mod query;
mod ready;
pub mod record;
pub mod registry;
pub mod room;
pub mod route;
pub mod sandbox;
pub mod sandboxes;
pub mod server;
pub mod state;
mod stderr;
pub mod templates;
pub mod vault;
pub mod warm;

pub use body::{Body, BodyError};
