//! The control plane's endpoints about sandboxes, one file each (e2b.md §2.2 to §2.5).

pub mod batch;
pub mod branch;
pub mod checkpoint;
pub mod connect;
pub mod create;
pub mod get;
pub mod idempotency;
pub mod kill;
pub mod list;
pub mod metrics;
pub mod pause;
pub mod timeout;
pub mod view;
