//! Writes cpio archives in the "newc" form, which the kernel unpacks as its first root.
//!
//! The kernel accepts several such archives one after the other, so an archive has no state but
//! its inode counter.

use anyhow::{Context, Result};
use std::io::Write;
use std::path::Path;

/// File type bits of a mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive in the making.
pub(super) struct CpioArchive<W: Write> {
    to: W,
    entries: u32,
}

impl<W: Write> CpioArchive<W> {
    /// An empty archive.
    pub(super) fn new(to: W) -> Self {
        Self { to, entries: 0 }
    }

    /// Adds a folder; its parents must be there already.
    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Adds a file with these permissions.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<()> {
        self.entry(path, REGULAR | permissions, content)
    }

    /// Adds a copy of a file of this machine; symbolic links are followed.
    pub(super) fn copy(&mut self, path: &str, permissions: u32, from: &Path) -> Result<()> {
        let content = std::fs::read(from).with_context(|| format!("Reading {}", from.display()))?;
        self.file(path, permissions, &content)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, SYMLINK | 0o777, target.as_bytes())
    }

    /// Writes the end mark and hands the writer back.
    pub(super) fn finish(mut self) -> Result<W> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let path = path.trim_start_matches('/');
        let size = u32::try_from(content.len())
            .with_context(|| format!("{path} is too large for a cpio archive"))?;
        let name_size = u32::try_from(path.len() + 1)?;
        // magic, then: inode, mode, uid, gid, links, mtime, size, device ×2, rdev ×2, name size,
        // sum
        let numbers = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        let mut head = String::from("070701");
        for number in numbers {
            head.push_str(&format!("{number:08x}"));
        }
        head.push_str(path);
        head.push('\0');
        head.extend(std::iter::repeat_n('\0', padding(head.len())));
        self.to.write_all(head.as_bytes())?;
        self.to.write_all(content)?;
        self.to.write_all(&[0; 3][..padding(content.len())])?;
        Ok(())
    }
}

/// Bytes missing to a multiple of four.
fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_archive_has_aligned_entries_and_an_end() {
        let mut archive = CpioArchive::new(Vec::new());
        archive.folder("bin").unwrap();
        archive.file("bin/x", 0o755, b"12345").unwrap();
        archive.link("bin/y", "x").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<_> = (0..bytes.len() - 5)
            .filter(|at| &bytes[*at..*at + 6] == b"070701")
            .collect();
        assert_eq!(starts.len(), 4, "three entries and the trailer");
        assert!(starts.iter().all(|at| at % 4 == 0));
        let file = &bytes[starts[1]..starts[2]];
        assert_eq!(&file[14..22], b"000081ed", "mode");
        assert_eq!(&file[54..62], b"00000005", "size");
        assert_eq!(&file[110..116], b"bin/x\0");
        assert_eq!(&file[116..121], b"12345");
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }
}
