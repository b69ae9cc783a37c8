//! The block device (virtio 1.2 §5.2): a shared read-only image under a private layer of changes; between the two, for a
//! machine made from a snapshot, the snapshot's changes (the parent).
//!
//! ```text
//!  guest request --> Request (checked) --> runs by Map --> ring reads: layer | parent | base | zeros
//!                                                     \--> ring writes: layer, then the Map's bit
//! ```

mod config;
mod device;
mod layers;
mod map;
mod request;
mod spec;
mod state;
#[cfg(test)]
mod test;

use crate::Attachment;
pub use device::Block;
#[cfg(test)]
pub(crate) use state::BlockV1;
use std::fs::File;

/// What a block device needs.
#[derive(Debug)]
pub struct BlockConfig {
    /// The shared image, a file or a block device, open for reading. Never written.
    pub base: File,
    /// The private layer, an empty file open for reading and writing; `None` makes the disk
    /// read-only.
    pub layer: Option<File>,
    /// The snapshot's changes that it begins with.
    pub parent: DiskParent,
    /// The size the guest sees, bytes: a multiple of 4096, not less than the image's.
    pub size: u64,
    /// What the guest reads as the disk's serial number, at most 20 bytes.
    pub serial: String,
}

/// The attachment of a block device: the disk layer of a snapshot, open for reading, with block n of
/// 4096 bytes at offset n * 4096. Which blocks it holds is told by the state that is loaded; without
/// that, none. Never written.
#[derive(Debug, Default)]
pub struct DiskParent(pub Option<File>);

impl From<DiskParent> for Attachment {
    fn from(parent: DiskParent) -> Self {
        Self::new(parent)
    }
}

/// Why a block device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Size zero, not a multiple of 4096, or too large.
    #[error("Disk size {0} is not a multiple of 4096 between 4096 and 16 TiB")]
    Size(u64),
    /// The image is larger than the disk.
    #[error("The base image has {base} bytes, the disk only {size}: make the disk larger")]
    BaseTooLarge {
        /// Bytes of the image.
        base: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// The layer holds data that no bitmap tells of.
    #[error("The disk's private layer must be an empty file, it has {0} bytes")]
    LayerNotEmpty(u64),
    /// A file could not be examined.
    #[error("Could not {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
