//! The cgroups of commands: each is born in one of its own, below the one of all user processes.
//!
//! ```text
//! free --take--> running --release--> free
//!                   |  ^                ^ no process is left in it
//!                   v  |                |
//!                 outlived by background processes
//! ```
//!
//! All of them can be stopped at once, for the time in which the machine is saved ([`freeze`]).
//!
//! [`freeze`]: CgroupTable::freeze
//!
//! So a kill ends all that a command began, what the kernel killed for want of memory is known by
//! the command it belonged to, and a fork bomb has a share of tasks and processor time. A cgroup is
//! used again by later commands: making one costs more than starting a process. Some are made at
//! boot, so that a clone's first commands find theirs.

use crate::sys::event::{Epoll, EpollEvent, monotonic_ns};
use crate::sys::file::{
    O_DIRECTORY, O_PATH, O_RDONLY, PathBase, mkdir, open, read_at, write_setting,
};
use crate::sys::{Errno, Fd};
use crate::sysinfo::field;
use agent_core::FixedText;
use core::ffi::CStr;

/// Cgroups at most: those of running commands, and of ended ones with processes in the background.
const MAX_CGROUPS: usize = 512;
/// Made at boot.
const PREPARED: usize = 4;
/// Of those that background processes hold, so many are looked at when another one is needed.
const LOOKED_AT: usize = 16;

/// The file of a cgroup that stops the processes in it.
const FREEZE: &CStr = c"cgroup.freeze";
/// Processes that run stop within this; what has not waits in the kernel.
const FREEZE_LIMIT_MS: u32 = 250;

/// What a cgroup is used for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CgroupUse {
    /// Nothing: no process is in it.
    Free,
    /// By a command that runs.
    Running,
    /// By processes in the background, when it was last looked at.
    Outlived,
}

struct CommandCgroup {
    usage: CgroupUse,
    dir: Option<Fd>,
    /// `cgroup.events`.
    events: Option<Fd>,
    /// `memory.events`.
    memory: Option<Fd>,
    /// Processes that the kernel had killed for want of memory when the command began, or when it
    /// was read last.
    oom_kills: u64,
    /// No process has been in it since that was read, so it is what the next command begins with.
    counted: bool,
}

impl CommandCgroup {
    const NONE: Self = Self {
        usage: CgroupUse::Free,
        dir: None,
        events: None,
        memory: None,
        oom_kills: 0,
        counted: false,
    };

    /// Whether a process is in it. When the kernel does not say, one is.
    fn is_populated(&self) -> bool {
        let mut text = [0; 64];
        let read = self.events.as_ref().map(|file| read_at(file, &mut text, 0));
        match read {
            Some(Ok(n)) => !text[..n].starts_with(b"populated 0"),
            _ => true,
        }
    }

    /// Counts the processes in it that the kernel has killed for want of memory since it was made;
    /// says whether they are more than before.
    fn count(&mut self) -> bool {
        let mut text = [0; 512];
        let read = self.memory.as_ref().map(|file| read_at(file, &mut text, 0));
        let now = match read {
            Some(Ok(n)) => field(&text[..n], b"oom_kill "),
            _ => 0,
        };
        let before = core::mem::replace(&mut self.oom_kills, now);
        self.counted = self.usage == CgroupUse::Free;
        now > before
    }
}

/// A command's place in the table; `NONE` where commands have no cgroups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct CgroupPlace(u16);

impl CgroupPlace {
    /// In no cgroup of its own. All zeros, as a free place of the processes is.
    pub(crate) const NONE: Self = Self(0);

    fn of(index: usize) -> Self {
        Self(u16::try_from(index + 1).unwrap_or(0))
    }

    fn index(self) -> Option<usize> {
        usize::from(self.0).checked_sub(1)
    }
}

/// What is known of a cgroup when its command has ended.
#[derive(Clone, Copy)]
pub(crate) struct CgroupEnd {
    /// Processes that the command began go on, as far as is known.
    pub(crate) outlived: bool,
    /// The kernel killed a process of the command for want of memory.
    pub(crate) out_of_memory: bool,
}

/// All cgroups of commands.
pub(crate) struct CgroupTable {
    /// That of all user processes; `None` where the guest has none: nothing is confined then.
    user: Option<Fd>,
    /// Most tasks of one command.
    tasks: u64,
    table: [CommandCgroup; MAX_CGROUPS],
    made: usize,
    /// Where the next look at outlived ones begins.
    look: usize,
    /// The one that was released last.
    released: usize,
    /// All user processes are stopped.
    frozen: bool,
}

impl CgroupTable {
    pub(crate) const fn new() -> Self {
        Self {
            user: None,
            tasks: 0,
            table: [const { CommandCgroup::NONE }; MAX_CGROUPS],
            made: 0,
            look: 0,
            released: 0,
            frozen: false,
        }
    }

    /// Commands are born below `user` from now on, each with at most so many tasks.
    ///
    /// # Errors
    /// A cgroup below it cannot be made.
    pub(crate) fn confine(&mut self, user: Fd, tasks: u64) -> Result<(), Errno> {
        self.user = Some(user);
        self.tasks = tasks;
        while self.made < PREPARED {
            if let Err(e) = self.make() {
                self.user = None;
                return Err(e);
            }
        }
        Ok(())
    }

    /// The directory of the cgroup of all user processes.
    pub(crate) fn user(&self) -> Option<&Fd> {
        self.user.as_ref()
    }

    /// A cgroup without processes, for a command.
    ///
    /// # Errors
    /// `AGAIN` when processes are in all that there may be, or why none can be made.
    pub(crate) fn take(&mut self) -> Result<CgroupPlace, Errno> {
        if self.user.is_none() {
            return Ok(CgroupPlace::NONE);
        }
        let made = &self.table[..self.made];
        let free = made.iter().position(|c| c.usage == CgroupUse::Free);
        let index = match free.or_else(|| self.emptied()) {
            Some(index) => index,
            None => self.make()?,
        };
        let cgroup = &mut self.table[index];
        // What was killed before is no command's to come: of one that ended well all the same, or
        // in the background.
        if !cgroup.counted {
            cgroup.count();
        }
        cgroup.counted = false;
        cgroup.usage = CgroupUse::Running;
        Ok(CgroupPlace::of(index))
    }

    /// Does ahead, when there is nothing else to do, what [`CgroupTable::take`] would have to do
    /// before a command: also for the first one of a clone of this machine.
    pub(crate) fn prepare(&mut self) {
        let cgroup = &mut self.table[self.released];
        if cgroup.usage == CgroupUse::Free && !cgroup.counted && cgroup.memory.is_some() {
            cgroup.count();
        }
    }

    /// Its directory.
    pub(crate) fn dir(&self, place: CgroupPlace) -> Option<&Fd> {
        self.get(place)?.dir.as_ref()
    }

    /// The command has ended, or was never begun. `alone` if the agent has no child at all: all
    /// processes of the guest descend from its children, so no cgroup has one then.
    pub(crate) fn release(&mut self, place: CgroupPlace, failed: bool, alone: bool) -> CgroupEnd {
        let cgroup = place.index().and_then(|index| self.table.get_mut(index));
        let (Some(index), Some(cgroup)) = (place.index(), cgroup) else {
            return CgroupEnd {
                outlived: !alone,
                out_of_memory: false,
            };
        };
        let outlived = !alone && cgroup.is_populated();
        cgroup.usage = if outlived {
            CgroupUse::Outlived
        } else {
            CgroupUse::Free
        };
        self.released = index;
        CgroupEnd {
            outlived,
            out_of_memory: failed && cgroup.count(),
        }
    }

    /// Kills every process in it; false where that cannot be done.
    pub(crate) fn kill(&self, place: CgroupPlace) -> bool {
        self.dir(place)
            .is_some_and(|dir| write_setting(PathBase::At(dir), c"cgroup.kill", "1").is_ok())
    }

    /// Whether all user processes are stopped: none can be started then.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Stops all user processes, and returns when they have: one that waits in the kernel for
    /// longer stops when it would return from there, before its own code goes on.
    ///
    /// # Errors
    /// Why they are not stopped; they all go on.
    pub(crate) fn freeze(&mut self) -> Result<(), Errno> {
        let user = self.user.as_ref().ok_or(Errno::NOENT)?;
        let events = open(PathBase::At(user), c"cgroup.events", O_RDONLY, 0)?;
        let changes = Epoll::new()?;
        changes.add_notified(&events)?;
        write_setting(PathBase::At(user), FREEZE, "1")?;
        self.frozen = true;
        let begin = monotonic_ns();
        loop {
            let mut text = [0; 64];
            let read = read_at(&events, &mut text, 0).unwrap_or(0);
            let stopped = field(&text[..read], b"frozen ") == 1;
            let spent = monotonic_ns().saturating_sub(begin) / 1_000_000;
            let left = FREEZE_LIMIT_MS.saturating_sub(u32::try_from(spent).unwrap_or(u32::MAX));
            if stopped || left == 0 {
                return Ok(());
            }
            changes.wait(&mut [EpollEvent::default()], Some(left));
        }
    }

    /// Lets them go on, if they are stopped.
    ///
    /// # Errors
    /// Why they are not.
    pub(crate) fn thaw(&mut self) -> Result<(), Errno> {
        if !self.frozen {
            return Ok(());
        }
        let user = self.user.as_ref().ok_or(Errno::NOENT)?;
        write_setting(PathBase::At(user), FREEZE, "0")?;
        self.frozen = false;
        Ok(())
    }

    fn get(&self, place: CgroupPlace) -> Option<&CommandCgroup> {
        self.table.get(place.index()?)
    }

    /// One that was outlived and has no process any more; some are looked at, in turn.
    fn emptied(&mut self) -> Option<usize> {
        for _ in 0..self.made.min(LOOKED_AT) {
            self.look = (self.look + 1) % self.made;
            let cgroup = &self.table[self.look];
            if cgroup.usage == CgroupUse::Outlived && !cgroup.is_populated() {
                return Some(self.look);
            }
        }
        None
    }

    fn make(&mut self) -> Result<usize, Errno> {
        let user = self.user.as_ref().ok_or(Errno::NOENT)?;
        let index = self.made;
        let cgroup = self.table.get_mut(index).ok_or(Errno::AGAIN)?;
        let name = FixedText::<16>::of(format_args!("c{index}\0"));
        let name = CStr::from_bytes_until_nul(name.as_str().as_bytes());
        let name = name.map_err(|_| Errno::NAMETOOLONG)?;
        match mkdir(PathBase::At(user), name, 0o755) {
            Ok(()) => cgroup.counted = true,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        let dir = open(PathBase::At(user), name, O_PATH | O_DIRECTORY, 0)?;
        put_number(&dir, c"pids.max", self.tasks)?;
        cgroup.events = Some(open(PathBase::At(&dir), c"cgroup.events", O_RDONLY, 0)?);
        cgroup.memory = Some(open(PathBase::At(&dir), c"memory.events", O_RDONLY, 0)?);
        cgroup.dir = Some(dir);
        self.made += 1;
        Ok(index)
    }
}

/// Writes a number to a file of a cgroup.
pub(crate) fn put_number(dir: &Fd, name: &CStr, value: u64) -> Result<(), Errno> {
    let value = FixedText::<24>::of(format_args!("{value}"));
    write_setting(PathBase::At(dir), name, value.as_str())
}
