//! The block device (virtio 1.2 §5.2): a shared read-only image under a private layer of changes;
//! between the two, for a machine made from a snapshot, the snapshot's changes (the parent).
//!
//! ```text
//!  guest request --> Request (checked) --> runs by Map --> ring reads: layer|parent|base|zeros
//!                                                     \--> ring writes: layer, then the Map's bit
//!                                                      (without room: held, and tried again)
//! ```

mod config;
mod device;
mod held;
mod layers;
mod map;
mod request;
mod spec;
mod state;
#[cfg(test)]
mod test;

pub use config::{BlockConfig, BlockError, DiskParent};
pub use device::Block;
#[cfg(test)]
pub(crate) use state::BlockV1;
