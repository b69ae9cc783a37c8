//! The guest's users: its two files, read again when they change.

use crate::sys::file::{FileStat, O_RDONLY, PathBase, open, stat};
use crate::sys::read;
use agent_core::AccountFiles;
use core::ffi::CStr;

/// Bytes of each file that are looked at; users beyond are unknown.
const MAX_FILE: usize = 128 * 1024;

/// A file, as of its last change.
struct CachedFile {
    bytes: [u8; MAX_FILE],
    len: usize,
    seen: [i64; 4],
}

/// `/etc/passwd` and `/etc/group`.
pub(crate) struct UserFiles {
    passwd: CachedFile,
    group: CachedFile,
}

impl UserFiles {
    pub(crate) const fn new() -> Self {
        Self {
            passwd: CachedFile::new(),
            group: CachedFile::new(),
        }
    }

    /// The files as they are now.
    pub(crate) fn now(&mut self) -> AccountFiles<'_> {
        AccountFiles {
            passwd: self.passwd.refresh(c"/etc/passwd"),
            group: self.group.refresh(c"/etc/group"),
        }
    }
}

impl CachedFile {
    const fn new() -> Self {
        Self {
            bytes: [0; MAX_FILE],
            len: 0,
            seen: [0; 4],
        }
    }

    fn refresh(&mut self, path: &CStr) -> &[u8] {
        let seen = stat(PathBase::Cwd, path, true)
            .map(|s| mark(&s))
            .unwrap_or_default();
        if seen != self.seen {
            self.seen = seen;
            self.len = load(path, &mut self.bytes);
        }
        &self.bytes[..self.len]
    }
}

/// What differs when a file was changed or replaced.
fn mark(s: &FileStat) -> [i64; 4] {
    [s.ino.cast_signed(), s.size, s.ctime[0], s.ctime[1]]
}

/// The first whole lines of a file that fit; none when it cannot be read.
fn load(path: &CStr, into: &mut [u8]) -> usize {
    let Ok(file) = open(PathBase::Cwd, path, O_RDONLY, 0) else {
        return 0;
    };
    let mut len = 0;
    while len < into.len() {
        match read(&file, &mut into[len..]) {
            Ok(0) | Err(_) => return len,
            Ok(n) => len += n,
        }
    }
    into.iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |end| end + 1)
}
