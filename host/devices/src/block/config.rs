//! What a disk is made of, and its attachment; checks of the files, and what the driver reads about
//! the disk.

use super::map::BLOCK;
use super::request::DiskShape;
use super::spec::{
    F_DISCARD, F_RO, F_SEG_MAX, F_SIZE_MAX, F_TOPOLOGY, F_WRITE_ZEROES, MAX_DISCARD_SECTORS,
    SECTOR, SEG_MAX, SIZE_MAX,
};
use crate::Attachment;
use std::fs::File;
use std::io::{Seek, SeekFrom};

/// Largest disk, bytes. Its bitmap takes 512 MiB of address space, touched as it is used.
const MAX_SIZE: u64 = 16 << 40;

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

/// The attachment of a block device: the disk layer of a snapshot, open for reading, with block n
/// of 4096 bytes at offset n * 4096. Which blocks it holds is in the state that is loaded; without
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

fn len(mut file: &File, what: &'static str) -> Result<u64, BlockError> {
    // The end of a block device is known by seeking, not by its metadata.
    file.seek(SeekFrom::End(0))
        .map_err(|source| BlockError::Io { what, source })
}

/// Checks sizes and makes the layer as long as the disk (all of it a hole); the image's length.
pub(super) fn prepare(config: &BlockConfig) -> Result<u64, BlockError> {
    let size = config.size;
    if size == 0 || !size.is_multiple_of(BLOCK) || size > MAX_SIZE {
        return Err(BlockError::Size(size));
    }
    let base = len(&config.base, "find the size of the base image")?;
    if base > size {
        return Err(BlockError::BaseTooLarge { base, size });
    }
    if let Some(layer) = &config.layer {
        match len(layer, "find the size of the disk's private layer")? {
            0 => {}
            other => return Err(BlockError::LayerNotEmpty(other)),
        }
        let what = "make the disk's private layer as long as the disk";
        layer
            .set_len(size)
            .map_err(|source| BlockError::Io { what, source })?;
    }
    Ok(base)
}

/// Feature bits. There is no `F_FLUSH`: the layer is scratch space that ends with the VM process,
/// a write is in the host's page cache when it completes, and so a flush could do nothing; not
/// offering it saves the guest the request on each `fsync`.
pub(super) fn features(disk: DiskShape) -> u64 {
    let common = F_SIZE_MAX | F_SEG_MAX | F_TOPOLOGY;
    common
        | if disk.writable {
            F_DISCARD | F_WRITE_ZEROES
        } else {
            F_RO
        }
}

/// `struct virtio_blk_config` (virtio 1.2 §5.2.4).
pub(super) fn space(disk: DiskShape) -> [u8; 60] {
    let mut space = [0; 60];
    let mut put = |at: usize, value: u32| space[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(8, SIZE_MAX);
    put(12, SEG_MAX);
    // Topology: 8 sectors are a physical block, which is also the best smallest transfer.
    put(24, 3 | (8 << 16));
    // Discard and write-zeroes: most sectors, most segments, alignment in sectors.
    put(36, MAX_DISCARD_SECTORS);
    put(40, 1);
    put(44, 8);
    put(48, MAX_DISCARD_SECTORS);
    put(52, 1);
    put(56, 1);
    space[..8].copy_from_slice(&(disk.size / SECTOR).to_le_bytes());
    space
}
