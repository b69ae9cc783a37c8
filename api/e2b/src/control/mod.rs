//! The control plane's endpoints about sandboxes, one file each (api/PROTOCOL.md §4).

pub mod batch;
pub mod checkpoints;
pub mod connect;
pub mod create;
pub mod egress;
pub mod fork;
pub mod get;
mod header_rules;
pub mod health;
pub mod idempotency;
pub mod kill;
pub mod list;
pub mod logs;
pub mod metrics;
mod network;
pub mod pause;
pub mod reset;
pub mod snapshots;
pub mod templates;
pub mod timeout;
pub mod view;
