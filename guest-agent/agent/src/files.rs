//! Single files and directories: read, write, make, move.
//!
//! The agent acts as root on the whole tree and gives what it creates to the user it was asked for.

use crate::failure::fail;
use crate::follow::following;
use crate::path::PathBuffer;
use crate::sys::file::{
    O_APPEND, O_CREAT, O_EXCL, O_NONBLOCK, O_RDONLY, O_WRONLY, PathBase, S_IFDIR, S_IFREG, fchown,
    fstat, lchown, mkdir, open, rename, seek, stat, truncate,
};
use crate::sys::{Errno, Fd, read};
use agent_core::{Session, UserAccount};
use wire::{DataChannel, ReadFile, Reply, WriteFile};

/// Opens a file for reading, at its offset.
pub(crate) fn open_read(request: &ReadFile<'_>, path: &PathBuffer) -> Result<Fd, Errno> {
    let file = following(path.bytes(), || {
        open(PathBase::Cwd, path.c(), O_RDONLY | O_NONBLOCK, 0)
    })?;
    regular(&file)?;
    if request.offset != 0 {
        seek(
            &file,
            i64::try_from(request.offset).map_err(|_| Errno::INVAL)?,
        )?;
    }
    Ok(file)
}

fn regular(file: &Fd) -> Result<i64, Errno> {
    let stat = fstat(file)?;
    if stat.is(S_IFREG) {
        Ok(stat.size)
    } else {
        Err(if stat.is(S_IFDIR) {
            Errno::ISDIR
        } else {
            Errno::NXIO
        })
    }
}

/// What a step of a reader came to.
#[derive(Clone, Copy)]
pub(crate) enum ReadStep {
    /// There may be more at once.
    More,
    /// It waits for credit or room.
    Wait,
    /// So many bytes were the last of it.
    End,
    /// It failed.
    Failed(Errno),
}

/// Sends the next piece of a file of which `left` bytes are wanted.
pub(crate) fn send_piece(
    file: &Fd,
    left: &mut u64,
    slot: usize,
    session: &mut Session,
) -> ReadStep {
    if *left == 0 {
        return ReadStep::End;
    }
    let Some(space) = session.data_space(slot) else {
        return ReadStep::Wait;
    };
    let most = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(space.len());
    match read(file, &mut space[..most]) {
        Ok(0) => ReadStep::End,
        Ok(n) => {
            session.data_commit(slot, DataChannel::File, n);
            *left -= u64::try_from(n).unwrap_or(0);
            ReadStep::More
        }
        Err(Errno::INTR) => ReadStep::More,
        Err(e) => ReadStep::Failed(e),
    }
}

/// Whether the reader has more to do, and whether at once.
pub(crate) fn read_on(
    step: ReadStep,
    sent: u64,
    slot: usize,
    session: &mut Session,
) -> (bool, bool) {
    match step {
        ReadStep::More => (true, true),
        ReadStep::Wait => (true, false),
        ReadStep::End => {
            session.reply(slot, &Reply::Done(sent));
            (false, true)
        }
        ReadStep::Failed(e) => {
            fail(session, slot, "read a file", e);
            (false, true)
        }
    }
}

/// Opens a file for writing and gives it to the user: created, then owned, then (by its first
/// bytes) written, so that watchers see exactly that.
pub(crate) fn open_write(
    request: &WriteFile<'_>,
    path: &PathBuffer,
    user: &UserAccount<'_>,
) -> Result<Fd, Errno> {
    if request.parents {
        make_parents(path, user)?;
    }
    let append = if request.truncate { 0 } else { O_APPEND };
    let flags = O_WRONLY | O_NONBLOCK | append;
    let fresh = open(
        PathBase::Cwd,
        path.c(),
        flags | O_CREAT | O_EXCL,
        request.mode,
    );
    let file = match fresh {
        Ok(file) => file,
        Err(Errno::EXIST) => following(path.bytes(), || {
            open(PathBase::Cwd, path.c(), flags | O_CREAT, request.mode)
        })?,
        Err(e) => return Err(e),
    };
    let size = regular(&file)?;
    fchown(&file, user.uid, user.gid)?;
    if request.truncate && size > 0 {
        truncate(&file)?;
    }
    Ok(file)
}

/// Makes the directories above a path.
pub(crate) fn make_parents(path: &PathBuffer, user: &UserAccount<'_>) -> Result<(), Errno> {
    match path.bytes().iter().rposition(|&b| b == b'/') {
        Some(0) | None => Ok(()),
        Some(end) => {
            let mut parent = PathBuffer::new();
            parent.set(&path.bytes()[..end]);
            if stat(PathBase::Cwd, parent.c(), true).is_ok_and(|s| s.is(S_IFDIR)) {
                return Ok(());
            }
            make_all(&parent, user)
        }
    }
}

/// Makes a directory and those above it, `0o755`; new ones belong to the user.
fn make_all(path: &PathBuffer, user: &UserAccount<'_>) -> Result<(), Errno> {
    let bytes = path.bytes();
    let mut part = PathBuffer::new();
    for end in (1..=bytes.len()).filter(|&i| i == bytes.len() || bytes[i] == b'/') {
        if bytes[end - 1] == b'/' {
            continue;
        }
        part.set(&bytes[..end]);
        match mkdir(PathBase::Cwd, part.c(), 0o755) {
            Ok(()) => lchown(PathBase::Cwd, part.c(), user.uid, user.gid)?,
            Err(Errno::EXIST) => {
                if !stat(PathBase::Cwd, part.c(), true)?.is(S_IFDIR) {
                    return Err(Errno::NOTDIR);
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes a directory that is not there yet.
pub(crate) fn make_dir(path: &PathBuffer, user: &UserAccount<'_>) -> Result<(), Errno> {
    match stat(PathBase::Cwd, path.c(), true) {
        Ok(s) if s.is(S_IFDIR) => Err(Errno::EXIST),
        Ok(_) => Err(Errno::NOTDIR),
        Err(Errno::NOENT) => make_all(path, user),
        Err(e) => Err(e),
    }
}

/// Renames, with parents for the destination.
pub(crate) fn move_to(
    from: &PathBuffer,
    to: &PathBuffer,
    user: &UserAccount<'_>,
) -> Result<(), Errno> {
    stat(PathBase::Cwd, from.c(), false)?;
    make_parents(to, user)?;
    rename(PathBase::Cwd, from.c(), PathBase::Cwd, to.c())
}
