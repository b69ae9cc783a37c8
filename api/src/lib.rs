//! `hatchery`: the E2B control plane, the envd facade, and the registry of running sandboxes.
//!
//! ```text
//! client ──HTTP──> server ─> route ─┬─> sandboxes/*  (control plane) ─> registry ─> launcher ─> VM process
//!                                   └─> envd/*       (data plane)    ─> link ──── wire ───────> guest agent
//! ```
//!
//! **Architecture invariant:** this crate never names KVM, and it is the only one that knows E2B's
//! JSON and the Connect protocol.

pub mod body;
pub mod connect;
pub mod envd;
pub mod link;
pub mod sandbox;

pub use body::{Body, BodyError};
