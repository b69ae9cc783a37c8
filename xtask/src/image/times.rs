//! Makes an ext4 image independent of when it was made: `mkfs.ext4 -d` copies the change and
//! access times of the files it reads, which no tool can set on the files themselves.
//!
//! Reads only what our own `mkfs` options give: 4 KiB blocks, 32-byte group descriptors, no
//! checksums over inodes.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Block size of our images, bytes.
const BLOCK: u64 = 4096;

/// Offsets in an inode of the times that are set: access and change.
const TIMES: [usize; 2] = [0x08, 0x0c];

/// Where the inodes are.
struct InodeLayout {
    inodes: u32,
    free: u32,
    per_group: u32,
    size: u16,
}

/// Sets access and change time of every used inode of `image` to `time`, seconds since 1970.
///
/// # Errors
/// An image that cannot be read or written, or that is not the kind described above.
pub(super) fn normalize(image: &Path, time: u32) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(image)
        .with_context(|| format!("Opening {}", image.display()))?;
    let layout =
        InodeLayout::read(&file).with_context(|| format!("Reading {}", image.display()))?;
    // mkfs gives inodes out in order, so the used ones are the first ones.
    let mut used = layout.inodes.saturating_sub(layout.free);
    let mut group = 0;
    while used > 0 {
        let count = used.min(layout.per_group);
        layout
            .set_group(&file, group, count, time)
            .with_context(|| {
                format!("Setting the times in group {group} of {}", image.display())
            })?;
        used -= count;
        group += 1;
    }
    Ok(())
}

impl InodeLayout {
    fn read(file: &File) -> Result<Self> {
        let mut sb = [0; 1024];
        file.read_exact_at(&mut sb, 1024)?;
        let layout = Self {
            inodes: u32_at(&sb, 0x00),
            free: u32_at(&sb, 0x10),
            per_group: u32_at(&sb, 0x28),
            size: u16_at(&sb, 0x58),
        };
        let (incompat, ro_compat) = (u32_at(&sb, 0x60), u32_at(&sb, 0x64));
        ensure!(u16_at(&sb, 0x38) == 0xef53, "not an ext4 file system");
        ensure!(
            u32_at(&sb, 0x18) == 2,
            "the blocks are not of {BLOCK} bytes"
        );
        ensure!(
            incompat & 0x80 == 0,
            "the group descriptors are not of 32 bytes (feature 64bit)"
        );
        ensure!(
            ro_compat & 0x400 == 0,
            "inodes have checksums (feature metadata_csum)"
        );
        ensure!(
            layout.per_group > 0 && layout.size >= 128,
            "the superblock is damaged"
        );
        Ok(layout)
    }

    /// Sets the times of the first `count` inodes of a group.
    fn set_group(&self, file: &File, group: u32, count: u32, time: u32) -> Result<()> {
        let mut descriptor = [0; 32];
        file.read_exact_at(&mut descriptor, BLOCK + u64::from(group) * 32)?;
        let table = u64::from(u32_at(&descriptor, 0x08)) * BLOCK;
        let size = usize::from(self.size);
        let mut inodes = vec![0; usize::try_from(count)? * size];
        file.read_exact_at(&mut inodes, table)?;
        for inode in inodes
            .chunks_exact_mut(size)
            .filter(|inode| u16_at(inode, 0) != 0)
        {
            for offset in TIMES {
                inode[offset..offset + 4].copy_from_slice(&time.to_le_bytes());
            }
        }
        file.write_all_at(&inodes, table)?;
        Ok(())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
