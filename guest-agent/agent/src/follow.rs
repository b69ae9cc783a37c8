//! Links that the kernel does not let root follow.
//!
//! In a folder where everybody may write, as `/tmp`, only its owner follows a link
//! (`fs.protected_symlinks`), so that nobody lays links for others. The agent works as root on
//! behalf of users: it follows such a link as its owner, with that user's rights and no more.

use crate::path::PathBuffer;
use crate::sys::Errno;
use crate::sys::file::{PathBase, S_IFLNK, as_user, stat};

/// Does `work` on `path`; once more as the owner of the first link on the way that is not root's,
/// if root may not.
///
/// # Errors
/// As of `work`.
pub(crate) fn following<T>(
    path: &[u8],
    mut work: impl FnMut() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match work() {
        Err(Errno::ACCES) => match link_owner(path) {
            Some((uid, gid)) => as_user(uid, gid, work),
            None => Err(Errno::ACCES),
        },
        done => done,
    }
}

/// User and group of the first link in a path that is not root's.
fn link_owner(path: &[u8]) -> Option<(u32, u32)> {
    let mut part = PathBuffer::new();
    let ends = (1..=path.len()).filter(|&end| end == path.len() || path[end] == b'/');
    for end in ends {
        if !part.set(&path[..end]) {
            return None;
        }
        // As root: a link before this one is root's, or would have been the answer.
        let found = stat(PathBase::Cwd, part.c(), false).ok()?;
        if found.is(S_IFLNK) && found.uid != 0 {
            return Some((found.uid, found.gid));
        }
    }
    None
}
