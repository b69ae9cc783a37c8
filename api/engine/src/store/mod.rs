//! What outlives a server: stored machines, and the records that say whose they are.
//!
//! ```text
//! image ──put──> vault: manifest + blobs (snapshot-store) + record ──get──> image
//!                  ├─ paused-<sandbox>            paused
//!                  ├─ checkpoint-<sandbox>-<id>   checkpoint_record, checkpoint_tree
//!                  └─ snapshot-<hash>             snapshots
//! ```

pub mod checkpoint_node;
pub mod checkpoint_record;
pub mod checkpoint_tree;
mod egress_record;
mod fuzz;
mod ledger;
pub mod load_weight;
pub mod paused;
pub mod record;
pub mod restore_points;
pub mod snapshots;
pub mod vault;

pub use fuzz::fuzz_records;
