//! From a template to a VM process, and on to a machine whose agent is on the line.
//!
//! ```text
//! boot:   files, layer, sockets ─> fork ─> Configure ─> Configured ─> Start ─> Hello
//! clone:  base memory, layer, sockets ─> fork ─> Configure ─> Configured: a warm VM
//! ```
//!
//! Nothing here outlives a failure: descriptors close, the layer has no name, and dropping the
//! [`VmProcess`](crate::machine::handle::VmProcess) ends the process.

pub mod error;
pub mod identity;
pub mod launcher;
pub mod plan;
mod prepare;
