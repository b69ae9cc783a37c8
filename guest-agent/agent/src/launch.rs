//! From a [`StartProcess`] request to a running process: user, environment, directory, descriptors.

use crate::path::PathBuffer;
use crate::sys::file::{O_RDWR, PathBase, open, open_pty, pipe, set_nonblocking, set_window};
use crate::sys::spawn::{SpawnPlan, SpawnStack, SpawnStage, spawn};
use crate::sys::{Errno, Fd};
use agent_core::{AccountFiles, MAX_ENTRIES, ProcessEnvironment, UserAccount};
use core::ffi::CStr;
use wire::{ErrorCode, MAX_ARGS, MAX_GROUPS, StartProcess, Stdin, StringList};

/// The tables a process is started from. One process is started at a time.
pub(crate) struct ProcessLauncher {
    argv: [*const u8; MAX_ARGS + 1],
    env: [*const u8; MAX_ENTRIES + 1],
    environment: ProcessEnvironment,
    groups: [u32; MAX_GROUPS],
    cwd: PathBuffer,
    scratch: [u8; 4096],
    stack: SpawnStack,
    null: Option<Fd>,
}

/// A started process and the agent's ends of its descriptors.
pub(crate) struct LaunchedProcess {
    pub(crate) pid: u32,
    pub(crate) stdin: Option<Fd>,
    /// Standard output, or the terminal.
    pub(crate) out: Fd,
    pub(crate) err: Option<Fd>,
}

/// Why there is no process.
pub(crate) struct LaunchError {
    pub(crate) code: ErrorCode,
    pub(crate) errno: i32,
    pub(crate) what: &'static str,
    pub(crate) of: LaunchSubject,
}

/// What of a request could not be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaunchSubject {
    /// The program.
    Program,
    /// The working directory.
    Cwd,
    /// The user.
    User,
}

impl ProcessLauncher {
    pub(crate) const fn new() -> Self {
        Self {
            argv: [core::ptr::null(); MAX_ARGS + 1],
            env: [core::ptr::null(); MAX_ENTRIES + 1],
            environment: ProcessEnvironment::new(),
            groups: [0; MAX_GROUPS],
            cwd: PathBuffer::new(),
            scratch: [0; 4096],
            stack: SpawnStack::new(),
            null: None,
        }
    }

    /// The working directory of the last start, as it was to be entered.
    pub(crate) fn cwd(&self) -> &[u8] {
        self.cwd.bytes()
    }

    /// Starts a process, in this cgroup.
    pub(crate) fn start(
        &mut self,
        start: &StartProcess<'_>,
        accounts: &AccountFiles<'_>,
        defaults: StringList<'_>,
        cgroup: Option<&Fd>,
    ) -> Result<LaunchedProcess, LaunchError> {
        let Some(user) = accounts.user(start.user) else {
            return Err(LaunchError {
                code: ErrorCode::UnknownUser,
                errno: 0,
                what: "unknown user",
                of: LaunchSubject::User,
            });
        };
        if !set_cwd(&mut self.cwd, &user, start.cwd) {
            return Err(LaunchError {
                code: ErrorCode::TooLarge,
                errno: 0,
                what: "the working directory's path is too long",
                of: LaunchSubject::Program,
            });
        }
        if self.null.is_none() {
            let null = open(PathBase::Cwd, c"/dev/null", O_RDWR, 0);
            self.null = Some(null.map_err(|e| resource(e, "open /dev/null"))?);
        }
        let (mut ours, theirs) = descriptors(start).map_err(|e| resource(e, "make pipes"))?;
        let path = fill_env(
            &mut self.environment,
            &mut self.env,
            &user,
            defaults,
            start.env,
        );
        fill_argv(&mut self.argv, start.argv);
        let program = program(start.argv);
        let Some(null) = self.null.as_ref() else {
            return Err(resource(Errno::IO, "no null"));
        };
        let mut plan = SpawnPlan {
            argv: &self.argv,
            env: &self.env,
            program,
            path: if program.to_bytes().contains(&b'/') {
                None
            } else {
                Some(path)
            },
            cwd: self.cwd.c(),
            ids: Some((user.uid, user.gid, accounts.groups(&user, &mut self.groups))),
            stdio: theirs.stdio(null),
            terminal: start.pty.is_some(),
            limits: start.limits,
            cgroup,
            scratch: &mut self.scratch,
        };
        ours.pid = spawn(&mut plan, &mut self.stack).map_err(|(stage, e)| refusal(stage, e))?;
        Ok(ours)
    }
}

/// The child's ends.
struct ChildEnds {
    stdin: Option<Fd>,
    out: Fd,
    err: Option<Fd>,
}

impl ChildEnds {
    fn stdio<'a>(&'a self, null: &'a Fd) -> [&'a Fd; 3] {
        match &self.err {
            Some(err) => [self.stdin.as_ref().unwrap_or(null), &self.out, err],
            None => [&self.out, &self.out, &self.out],
        }
    }
}

fn descriptors(start: &StartProcess<'_>) -> Result<(LaunchedProcess, ChildEnds), Errno> {
    if let Some(size) = start.pty {
        let (master, slave) = open_pty()?;
        set_window(&master, size.cols, size.rows)?;
        let ours = LaunchedProcess {
            pid: 0,
            stdin: None,
            out: master,
            err: None,
        };
        return Ok((
            ours,
            ChildEnds {
                stdin: None,
                out: slave,
                err: None,
            },
        ));
    }
    let (out, their_out) = pipe()?;
    let (err, their_err) = pipe()?;
    set_nonblocking(&out)?;
    set_nonblocking(&err)?;
    let (stdin, their_stdin) = match start.stdin {
        Stdin::Null => (None, None),
        Stdin::Pipe => {
            let (theirs, ours) = pipe()?;
            set_nonblocking(&ours)?;
            (Some(ours), Some(theirs))
        }
    };
    let ours = LaunchedProcess {
        pid: 0,
        stdin,
        out,
        err: Some(err),
    };
    Ok((
        ours,
        ChildEnds {
            stdin: their_stdin,
            out: their_out,
            err: Some(their_err),
        },
    ))
}

/// Absolute as it is, relative from the home, empty the home (or `/` if that is missing).
fn set_cwd(cwd: &mut PathBuffer, user: &UserAccount<'_>, wanted: &[u8]) -> bool {
    if wanted.starts_with(b"/") {
        return cwd.set(wanted);
    }
    if !cwd.set(user.home) {
        return false;
    }
    if wanted.is_empty() {
        let missing = crate::sys::file::stat(PathBase::Cwd, cwd.c(), true).is_err();
        return !missing || cwd.set(b"/");
    }
    cwd.push(wanted)
}

/// Fills the table and returns the value of `PATH` in it.
fn fill_env<'a>(
    environment: &'a mut ProcessEnvironment,
    table: &mut [*const u8; MAX_ENTRIES + 1],
    user: &UserAccount<'_>,
    defaults: StringList<'a>,
    own: StringList<'a>,
) -> &'a [u8] {
    let mut n = 0;
    let mut path: &[u8] = agent_core::PATH;
    environment.build(user, defaults, own, |entry| {
        if let Some(place) = table[..MAX_ENTRIES].get_mut(n) {
            *place = entry.as_ptr();
            n += 1;
        }
        if let Some(value) = entry.strip_prefix(b"PATH=") {
            path = value.strip_suffix(b"\0").unwrap_or(value);
        }
    });
    table[n] = core::ptr::null();
    path
}

fn fill_argv(table: &mut [*const u8; MAX_ARGS + 1], argv: StringList<'_>) {
    let mut n = 0;
    for arg in argv.iter().take(MAX_ARGS) {
        table[n] = arg.as_ptr();
        n += 1;
    }
    table[n] = core::ptr::null();
}

fn program(argv: StringList<'_>) -> &CStr {
    argv.packed()
        .and_then(|bytes| CStr::from_bytes_until_nul(bytes).ok())
        .unwrap_or(c"")
}

fn resource(e: Errno, what: &'static str) -> LaunchError {
    LaunchError {
        code: crate::failure::code(e),
        errno: e.0,
        what,
        of: LaunchSubject::Program,
    }
}

fn refusal(stage: SpawnStage, e: Errno) -> LaunchError {
    let (code, what) = match (stage, e) {
        (SpawnStage::Cwd, _) => (ErrorCode::BadCwd, "cannot enter the working directory"),
        (SpawnStage::Exec, Errno::NOENT | Errno::NOTDIR) => {
            (ErrorCode::NotFound, "no such program")
        }
        (SpawnStage::Exec, Errno::ACCES | Errno::NOEXEC) => {
            (ErrorCode::NotExecutable, "cannot execute the program")
        }
        (SpawnStage::Exec, _) => (crate::failure::code(e), "cannot execute the program"),
        (SpawnStage::Clone, _) => (crate::failure::code(e), "cannot make a process"),
        (SpawnStage::User, _) => (crate::failure::code(e), "cannot take the user's rights"),
        (SpawnStage::Setup, _) => (crate::failure::code(e), "cannot set the process up"),
    };
    LaunchError {
        code,
        errno: e.0,
        what,
        of: match stage {
            SpawnStage::Cwd => LaunchSubject::Cwd,
            SpawnStage::User => LaunchSubject::User,
            SpawnStage::Clone | SpawnStage::Setup | SpawnStage::Exec => LaunchSubject::Program,
        },
    }
}
