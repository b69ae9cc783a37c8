//! What is at a path, as the protocol tells it.

use crate::follow::following;
use crate::path::PathBuffer;
use crate::sys::file::{
    FileStat, O_PATH, PathBase, S_IFDIR, S_IFLNK, S_IFREG, as_user, fstat, open, readlink, stat,
};
use crate::sys::{Errno, Fd};
use agent_core::{AccountFiles, FixedText};
use core::ffi::CStr;
use wire::{EntryInfo, FileKind, MAX_PATH};

/// As [`describe`], for a path from the root.
///
/// # Errors
/// As of [`describe`].
pub(crate) fn describe_path<R>(
    path: &PathBuffer,
    open_file: Option<&Fd>,
    accounts: &AccountFiles<'_>,
    tell: impl FnOnce(&EntryInfo<'_>) -> R,
) -> Result<R, Errno> {
    let (name, bytes) = (path.c(), path.bytes());
    let mut tell = Some(tell);
    following(bytes, || {
        describe(PathBase::Cwd, name, bytes, open_file, accounts, |entry| {
            tell.take().map(|tell| tell(entry))
        })
    })?
    .ok_or(Errno::IO)
}

/// Looks at `name` in `dir`, known to the host as `path`, and hands the description to `tell`. Of
/// an `open_file`, which somebody may have moved or removed meanwhile, there is always something to
/// tell.
///
/// # Errors
/// When there is nothing, or it cannot be looked at.
pub(crate) fn describe<R>(
    dir: PathBase<'_>,
    name: &CStr,
    path: &[u8],
    open_file: Option<&Fd>,
    accounts: &AccountFiles<'_>,
    tell: impl FnOnce(&EntryInfo<'_>) -> R,
) -> Result<R, Errno> {
    let own = stat(dir, name, false).or_else(|e| open_file.map_or(Err(e), fstat))?;
    let mut buffer = [0; MAX_PATH + 1];
    let (behind, target): (Option<FileStat>, &[u8]) = if own.is(S_IFLNK) {
        let behind = open(dir, name, O_PATH, 0).or_else(|e| match e {
            Errno::ACCES => as_user(own.uid, own.gid, || open(dir, name, O_PATH, 0)),
            e => Err(e),
        });
        match behind {
            Ok(fd) => (fstat(&fd).ok(), resolved(&fd, &mut buffer).unwrap_or(path)),
            Err(_) => (None, path),
        }
    } else {
        (Some(own), b"")
    };
    let entry = EntryInfo {
        path,
        kind: kind(own.mode),
        target_kind: behind.map_or(FileKind::Unspecified, |s| kind(s.mode)),
        size: u64::try_from(own.size).unwrap_or(0),
        mode: own.mode,
        target_mode: behind.map_or(0, |s| s.mode),
        uid: own.uid,
        gid: own.gid,
        owner: accounts.user_name(own.uid),
        group: accounts.group_name(own.gid),
        modified_ns: own.mtime[0]
            .saturating_mul(1_000_000_000)
            .saturating_add(own.mtime[1]),
        symlink_target: target,
    };
    Ok(tell(&entry))
}

/// The path the kernel has for an open file.
fn resolved<'a>(fd: &Fd, buffer: &'a mut [u8; MAX_PATH + 1]) -> Option<&'a [u8]> {
    let name = FixedText::<32>::of(format_args!("/proc/self/fd/{}", fd.raw()));
    let mut link = PathBuffer::new();
    link.set(name.as_str().as_bytes());
    readlink(PathBase::Cwd, link.c(), &mut buffer[..MAX_PATH]).ok()
}

fn kind(mode: u32) -> FileKind {
    match mode & crate::sys::file::S_IFMT {
        S_IFREG => FileKind::File,
        S_IFDIR => FileKind::Directory,
        S_IFLNK => FileKind::Symlink,
        _ => FileKind::Other,
    }
}
