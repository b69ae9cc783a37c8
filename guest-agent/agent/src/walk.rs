//! Walks of directory trees, for listing and for removing, without recursion and without following
//! links. A walk keeps one descriptor per level and reads entries into one buffer; before it goes
//! down it sets the directory's position behind the entry, so that it can go on there later.
//!
//! A listing ends at the depth asked for. A removal may meet deeper trees than a walk has levels:
//! it then moves the directory it cannot enter up to the top of the tree being removed, where a
//! later pass finds it. Every pass removes something, so it ends.

use crate::entry::describe;
use crate::follow::following;
use crate::path::PathBuffer;
use crate::sys::file::{
    DT_DIR, DT_UNKNOWN, DirEntry, O_DIRECTORY, O_NOFOLLOW, O_RDONLY, PathBase, S_IFDIR, dirent,
    getdents, open, rename, rmdir, seek, stat, unlink,
};
use crate::sys::{Errno, Fd};
use agent_core::{AccountFiles, FixedText, Session};
use wire::{DataChannel, MAX_DEPTH, Record};

/// Walks at once; one more waits for its turn.
const MAX_WALKS: usize = 16;
const LEVELS: usize = MAX_DEPTH as usize;
/// Entries looked at per turn.
const PER_TURN: usize = 256;
const BUFFER: usize = 8 * 1024;

/// What a step of a walk came to.
pub(crate) enum WalkStep {
    /// There is more to do at once.
    More,
    /// It waits for credit or room.
    Wait,
    /// It is through; so many entries.
    End(u64),
    /// It cannot go on.
    Failed(Errno),
}

/// How a removal begins.
pub(crate) enum RemovalStart {
    /// It was done at once; so many entries.
    Done(u64),
    /// A walk does it.
    Walk(usize),
}

struct TreeWalk {
    used: bool,
    /// Levels to list; 0 removes.
    depth: usize,
    top: PathBuffer,
    /// The current directory: as the host knows it, or relative to the top when removing.
    path: PathBuffer,
    dirs: [Option<Fd>; LEVELS],
    /// How long `path` is for each level.
    lens: [usize; LEVELS],
    /// The level being read.
    level: usize,
    buffer: [u8; BUFFER],
    pos: usize,
    len: usize,
    count: u64,
    count_at_rewind: u64,
}

impl TreeWalk {
    const FREE: Self = Self {
        used: false,
        depth: 0,
        top: PathBuffer::new(),
        path: PathBuffer::new(),
        dirs: [const { None }; LEVELS],
        lens: [0; LEVELS],
        level: 0,
        buffer: [0; BUFFER],
        pos: 0,
        len: 0,
        count: 0,
        count_at_rewind: 0,
    };
}

/// All walks.
pub(crate) struct WalkTable {
    table: [TreeWalk; MAX_WALKS],
}

impl WalkTable {
    pub(crate) const fn new() -> Self {
        Self {
            table: [const { TreeWalk::FREE }; MAX_WALKS],
        }
    }

    /// As many walks go on as there may be.
    pub(crate) fn is_full(&self) -> bool {
        self.table.iter().all(|walk| walk.used)
    }

    /// Begins to list.
    pub(crate) fn list(&mut self, path: &PathBuffer, depth: u32) -> Result<usize, Errno> {
        let dir = following(path.bytes(), || {
            open(PathBase::Cwd, path.c(), O_RDONLY | O_DIRECTORY, 0)
        })?;
        let depth = usize::try_from(depth).unwrap_or(LEVELS).clamp(1, LEVELS);
        let i = self.begin(dir, depth)?;
        self.table[i].path.set(path.bytes());
        self.table[i].lens[0] = path.bytes().len();
        Ok(i)
    }

    /// Begins to remove.
    pub(crate) fn remove(&mut self, path: &PathBuffer) -> Result<RemovalStart, Errno> {
        let what = match stat(PathBase::Cwd, path.c(), false) {
            Err(Errno::NOENT) => return Ok(RemovalStart::Done(0)),
            other => other?,
        };
        let root = stat(PathBase::Cwd, c"/", true)?;
        if (what.dev, what.ino) == (root.dev, root.ino) {
            return Err(Errno::INVAL);
        }
        if !what.is(S_IFDIR) {
            return unlink(PathBase::Cwd, path.c()).map(|()| RemovalStart::Done(1));
        }
        let dir = open(
            PathBase::Cwd,
            path.c(),
            O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
            0,
        )?;
        let i = self.begin(dir, 0)?;
        self.table[i].top.set(path.bytes());
        self.table[i].path.set(b"");
        self.table[i].lens[0] = 0;
        Ok(RemovalStart::Walk(i))
    }

    fn begin(&mut self, dir: Fd, depth: usize) -> Result<usize, Errno> {
        let i = self
            .table
            .iter()
            .position(|w| !w.used)
            .ok_or(Errno::AGAIN)?;
        let walk = &mut self.table[i];
        walk.used = true;
        walk.depth = depth;
        walk.dirs[0] = Some(dir);
        walk.level = 0;
        walk.pos = 0;
        walk.len = 0;
        walk.count = 0;
        walk.count_at_rewind = u64::MAX;
        Ok(i)
    }

    /// Ends a walk.
    pub(crate) fn stop(&mut self, i: usize) {
        let walk = &mut self.table[i];
        walk.dirs.fill_with(|| None);
        walk.used = false;
    }

    /// Continues a walk.
    pub(crate) fn step(
        &mut self,
        i: usize,
        slot: usize,
        accounts: &AccountFiles<'_>,
        session: &mut Session,
    ) -> WalkStep {
        let walk = &mut self.table[i];
        let done = if walk.depth == 0 {
            walk.remove_some()
        } else {
            walk.list_some(slot, accounts, session)
        };
        done.unwrap_or_else(WalkStep::Failed)
    }
}

/// What the next entry of the current directory is.
enum NextEntry {
    /// Go down to it, or take it; it is at the buffer's position.
    Entry,
    /// There is none.
    End,
}

impl TreeWalk {
    /// Makes sure that an entry other than `.` and `..` is at the buffer's position.
    fn next(&mut self) -> Result<NextEntry, Errno> {
        loop {
            if self.pos >= self.len {
                let dir = self.dirs[self.level].as_ref().ok_or(Errno::IO)?;
                self.pos = 0;
                self.len = getdents(dir, &mut self.buffer)?;
                if self.len == 0 {
                    return Ok(NextEntry::End);
                }
            }
            let bytes = &self.buffer[self.pos..self.len];
            let (entry, rest) = dirent(bytes).ok_or(Errno::IO)?;
            if !matches!(entry.name.to_bytes(), b"." | b"..") {
                return Ok(NextEntry::Entry);
            }
            self.pos = self.len - rest.len();
        }
    }

    /// The entry at the buffer's position, the directory it is in, and the position behind it.
    fn current(&self) -> Result<(DirEntry<'_>, &Fd, usize), Errno> {
        let (entry, rest) = dirent(&self.buffer[self.pos..self.len]).ok_or(Errno::IO)?;
        let dir = self.dirs[self.level].as_ref().ok_or(Errno::IO)?;
        Ok((entry, dir, self.len - rest.len()))
    }

    /// Goes down into the entry at the buffer's position; false when it is too deep or too long.
    fn descend(&mut self) -> Result<bool, Errno> {
        if self.level + 1 >= LEVELS {
            return Ok(false);
        }
        let (entry, rest) = dirent(&self.buffer[self.pos..self.len]).ok_or(Errno::IO)?;
        let dir = self.dirs[self.level].as_ref().ok_or(Errno::IO)?;
        if !self.path.push(entry.name.to_bytes()) {
            return Ok(false);
        }
        let behind = self.len - rest.len();
        match open(
            PathBase::At(dir),
            entry.name,
            O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
            0,
        ) {
            Ok(fd) => {
                seek(dir, entry.next)?;
                self.pos = 0;
                self.len = 0;
                self.level += 1;
                self.lens[self.level] = self.path.bytes().len();
                self.dirs[self.level] = Some(fd);
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.path.truncate(self.lens[self.level]);
                self.pos = behind;
            }
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    /// Leaves a directory; false when it was the top.
    fn ascend(&mut self) -> bool {
        self.dirs[self.level] = None;
        if self.level == 0 {
            return false;
        }
        self.level -= 1;
        self.path.truncate(self.lens[self.level]);
        self.pos = 0;
        self.len = 0;
        true
    }

    /// Sends one frame of entries.
    fn list_some(
        &mut self,
        slot: usize,
        accounts: &AccountFiles<'_>,
        session: &mut Session,
    ) -> Result<WalkStep, Errno> {
        let Some(space) = session.data_space(slot) else {
            return Ok(WalkStep::Wait);
        };
        let mut used = 0;
        let mut outcome = WalkStep::More;
        for _ in 0..PER_TURN {
            match self.next()? {
                NextEntry::Entry => match self.tell(accounts, &mut space[used..])? {
                    Some(n) => used += n,
                    None if used == 0 => {
                        outcome = WalkStep::Wait;
                        break;
                    }
                    None => break,
                },
                NextEntry::End => {
                    if !self.ascend() {
                        outcome = WalkStep::End(self.count);
                        break;
                    }
                }
            }
        }
        session.data_commit(slot, DataChannel::Records, used);
        Ok(outcome)
    }

    /// Writes the entry at the buffer's position and moves to the next one, which may be below.
    /// `None` when it does not fit.
    fn tell(
        &mut self,
        accounts: &AccountFiles<'_>,
        space: &mut [u8],
    ) -> Result<Option<usize>, Errno> {
        let here = self.lens[self.level];
        let (entry, rest) = dirent(&self.buffer[self.pos..self.len]).ok_or(Errno::IO)?;
        let behind = self.len - rest.len();
        let dir = self.dirs[self.level].as_ref().ok_or(Errno::IO)?;
        if !self.path.push(entry.name.to_bytes()) {
            self.pos = behind;
            return Ok(Some(0));
        }
        let described = describe(
            PathBase::At(dir),
            entry.name,
            self.path.bytes(),
            None,
            accounts,
            |e| (e.write(space), e.kind == wire::FileKind::Directory),
        );
        self.path.truncate(here);
        match described {
            Err(Errno::NOENT) => {
                self.pos = behind;
                Ok(Some(0))
            }
            Err(e) => Err(e),
            Ok((Err(_), _)) => Ok(None),
            Ok((Ok(n), directory)) => {
                self.count += 1;
                if !directory || self.level + 1 >= self.depth || !self.descend()? {
                    self.pos = behind;
                }
                Ok(Some(n))
            }
        }
    }

    /// Removes some entries.
    fn remove_some(&mut self) -> Result<WalkStep, Errno> {
        for _ in 0..PER_TURN {
            match self.next()? {
                NextEntry::Entry => self.remove_one()?,
                NextEntry::End if self.level > 0 => self.remove_emptied()?,
                NextEntry::End => match rmdir(PathBase::Cwd, self.top.c()) {
                    Ok(()) | Err(Errno::NOENT) => return Ok(WalkStep::End(self.count + 1)),
                    Err(Errno::NOTEMPTY) => self.rewind()?,
                    Err(e) => return Err(e),
                },
            }
        }
        Ok(WalkStep::More)
    }

    /// Removes the entry at the buffer's position, or goes down into it.
    fn remove_one(&mut self) -> Result<(), Errno> {
        let (entry, dir, behind) = self.current()?;
        if entry.kind != DT_DIR {
            match unlink(PathBase::At(dir), entry.name) {
                Ok(()) | Err(Errno::NOENT) => {
                    self.count += 1;
                    self.pos = behind;
                    return Ok(());
                }
                Err(Errno::ISDIR) if entry.kind == DT_UNKNOWN => {}
                Err(e) => return Err(e),
            }
        }
        if self.descend()? {
            return Ok(());
        }
        let (entry, dir, behind) = self.current()?;
        let top = self.dirs[0].as_ref().ok_or(Errno::IO)?;
        let name = FixedText::<48>::of(format_args!(".hatchery-removing-{}", self.count));
        let mut to = PathBuffer::new();
        to.set(name.as_str().as_bytes());
        rename(PathBase::At(dir), entry.name, PathBase::At(top), to.c())?;
        self.count += 1;
        self.pos = behind;
        Ok(())
    }

    /// Goes up from a directory that has been read to its end, and removes it.
    fn remove_emptied(&mut self) -> Result<(), Errno> {
        let parent_len = self.lens[self.level - 1];
        let mut name = PathBuffer::new();
        let relative = &self.path.bytes()[parent_len..];
        name.set(relative.strip_prefix(b"/").unwrap_or(relative));
        self.ascend();
        let dir = self.dirs[self.level].as_ref().ok_or(Errno::IO)?;
        match rmdir(PathBase::At(dir), name.c()) {
            Ok(()) => self.count += 1,
            // Something was put into it meanwhile, or moved up from below: a later pass sees it.
            Err(Errno::NOENT | Errno::NOTEMPTY) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Reads the top directory again, if the last pass removed anything.
    fn rewind(&mut self) -> Result<(), Errno> {
        if self.count == self.count_at_rewind {
            return Err(Errno::NOTEMPTY);
        }
        self.count_at_rewind = self.count;
        self.pos = 0;
        self.len = 0;
        seek(self.dirs[0].as_ref().ok_or(Errno::IO)?, 0)
    }
}
