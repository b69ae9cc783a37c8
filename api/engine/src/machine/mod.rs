//! The process of one VM, as the service holds it.
//!
//! ```text
//! spawner ──fork──> VM process ──adopt──> VmProcess (owner) ─┬─ MachineHandle (only asks)
//!   (zygote)                               │                 └─ MachineHandover (to a reset)
//!                                          └─ task: control socket, process descriptor, phase, end
//! ```

mod allowance;
mod command;
pub mod control_group;
pub mod end;
pub mod group;
pub mod group_tree;
pub mod handle;
pub mod handover;
pub mod name;
pub mod phase;
pub mod pidfile;
pub(crate) mod ready;
pub mod spawner;
pub(crate) mod stderr;
mod task;
