//! The Intel lab's disk with files: Bochs has no folders to share.

use crate::dist::link_or_copy;
use crate::kernel::output;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// Bochs counts a disk in cylinders of 16 heads with 63 sectors of 512 bytes.
const CYLINDER: u64 = 16 * 63 * 512;
/// Room beside the files, for what the file system itself needs.
const ROOM: u64 = 64 << 20;

/// Writes an ext4 file system with the plain files of `folder` to `disk`. `staging` is a place for
/// links to them, on the same file system as `folder` if possible.
pub(super) fn write(disk: &Path, folder: &Path, staging: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(staging);
    fs::create_dir_all(staging).with_context(|| format!("Creating {}", staging.display()))?;
    let bytes = stage(folder, staging)?;
    let file = File::create(disk).with_context(|| format!("Creating {}", disk.display()))?;
    // Its tables grow with its size, of which the files with holes take less than it says.
    let size = (bytes + bytes / 16 + ROOM).next_multiple_of(CYLINDER);
    file.set_len(size)?;
    output(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
            .args([staging, disk]),
    )?;
    fs::remove_dir_all(staging).with_context(|| format!("Removing {}", staging.display()))
}

/// Links the plain files of `folder` into `staging`; the bytes that they take.
fn stage(folder: &Path, staging: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("Reading {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if !metadata.is_file() {
            continue;
        }
        link_or_copy(&entry.path(), &staging.join(entry.file_name()))?;
        bytes += metadata.blocks() * 512;
    }
    Ok(bytes)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_disk_is_whole_cylinders_and_keeps_holes() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path();
        let folder = top.join("folder");
        fs::create_dir_all(&folder).unwrap();
        let sparse = File::create(folder.join("base.ext4")).unwrap();
        sparse.set_len(8 << 30).unwrap();
        sparse.write_all_at(b"here", 4 << 30).unwrap();
        let disk = top.join("disk");
        write(&disk, &folder, &top.join("staging")).unwrap();
        let size = fs::metadata(&disk).unwrap().len();
        assert_eq!(size % CYLINDER, 0);
        assert!(size < 1 << 30, "{size}");
        let listed = Command::new("debugfs")
            .args(["-R", "stat /base.ext4"])
            .arg(&disk)
            .output()
            .unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("8589934592"), "{listed}");
    }
}
