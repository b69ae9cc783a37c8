//! Clones of each template's VM, kept ready for the next sandboxes.
//!
//! ```text
//!            ┌─ boots (no template VM: saving failed, or clones did)
//! building ──┴─> template VM ──build──> warm VM ──take──> claim (registry)
//!                           ^             │
//!                           └──── dies <──┘   waits longer after each, until a claim succeeds
//! ```
//!
//! A warm VM holds a slot under `max_sandboxes` like a sandbox does, and gives it up when a
//! creation needs it ([`WarmPools::make_room`](warm_pools::WarmPools::make_room)). One keeper task
//! per template builds; all of them take turns, so that at most one machine is made ahead at a
//! time.

pub mod template_vm;
pub mod warm_pool;
pub mod warm_pools;
mod warm_up;
