//! The guest's users: its two files, read again when they change.

use crate::refusals::unknown_user;
use crate::sys::file::{FileStat, O_RDONLY, PathBase, open, stat};
use crate::sys::read;
use agent_core::{AccountFiles, Session};
use core::ffi::CStr;
use wire::{Reply, UserInfo};

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

    /// Answers with the user of this name.
    pub(crate) fn tell(&mut self, slot: usize, name: &[u8], session: &mut Session) {
        let accounts = self.now();
        let Some(user) = accounts.user(name) else {
            return unknown_user(session, slot);
        };
        let mut groups = [0; wire::MAX_GROUPS];
        let mut bytes = [0; 4 * wire::MAX_GROUPS];
        let groups = accounts.groups(&user, &mut groups);
        for (to, group) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(groups) {
            *to = group.to_le_bytes();
        }
        let user = UserInfo {
            uid: user.uid,
            gid: user.gid,
            name: user.name,
            home: user.home,
            shell: user.shell,
            group_bytes: &bytes[..4 * groups.len()],
        };
        session.reply(slot, &Reply::User(user));
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
