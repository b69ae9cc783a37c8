//! Whether two files have changed, and have been left alone since: who replaces them one after the
//! other has no pair in between.

use crate::tls::certificate::TlsFiles;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What tells a file from an earlier one: which it is, its length, and when it was last written or
/// given another owner or mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileStamp {
    /// Behind links, as they are read; `None` if there is nothing.
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// Those of a certificate and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PairStamp {
    certificate: Option<FileStamp>,
    key: Option<FileStamp>,
}

impl PairStamp {
    pub(super) fn of(files: &TlsFiles) -> Self {
        Self {
            certificate: FileStamp::of(&files.certificate),
            key: FileStamp::of(&files.key),
        }
    }
}

/// What was read, and what is seen since.
#[derive(Debug)]
pub(super) struct FileWatch {
    read: PairStamp,
    seen: PairStamp,
}

impl FileWatch {
    /// Of files that were read when they were so.
    pub(super) fn new(read: PairStamp) -> Self {
        Self { read, seen: read }
    }

    /// Whether to read them: they are others than those that were read last, and the same as at the
    /// last look.
    pub(super) fn is_new(&mut self, now: PairStamp) -> bool {
        let settled = self.seen == now;
        self.seen = now;
        let new = settled && self.read != now;
        if new {
            self.read = now;
        }
        new
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;

    #[test]
    fn files_are_read_again_once_they_have_changed_and_settled() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            certificate: dir.path().join("a"),
            key: dir.path().join("b"),
        };
        fs::write(&files.certificate, "1").unwrap();
        let mut watch = FileWatch::new(PairStamp::of(&files));
        let mut look = || watch.is_new(PairStamp::of(&files));
        assert!(!look() && !look(), "nothing has changed");
        // The clock of files ticks every few ms; lengths tell them apart here.
        fs::write(&files.certificate, "22").unwrap();
        assert!(!look(), "the other one may follow");
        fs::write(&files.key, "1").unwrap();
        assert!(!look() && look() && !look());
        // As certbot and Kubernetes do it.
        fs::write(dir.path().join("c"), "22").unwrap();
        fs::rename(dir.path().join("c"), &files.certificate).unwrap();
        assert!(!look() && look() && !look());
        fs::remove_file(&files.key).unwrap();
        assert!(!look() && look() && !look(), "what is wrong is said once");
    }
}
