//! Lives of sandboxes: what exists, in which state, with which machine. No HTTP, no E2B word.

pub mod admission;
pub mod data_folder;
pub mod error;
pub mod facts;
pub(crate) mod files;
pub mod ids;
pub mod image;
pub mod launch;
pub mod machine;
pub mod metrics;
pub mod options;
pub mod pool;
pub mod process;
pub mod registry;
pub mod restore_point;
pub mod sandbox;
pub mod store;
pub mod template;
pub mod timings;
