//! The zygote of VM processes: started when the first is needed, and again when it has ended.
//!
//! Where walls are required, a VM process comes from a zygote that stands behind all of them, or
//! not at all. Nothing is given up for ever: a zygote that was late or lost is started again for
//! the next VM process.

use crate::machine::group::VmGroup;
use crate::machine::name::MachineName;
use crate::machine::stderr;
use control::{JailMode, MissingWall, Spawned, Wall, Zygote, ZygoteError, list_missing};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How long it is not tried again to have a zygote after there was none, or none that is behind all
/// walls: one may take as long as [`Zygote::start`] waits to not come, and a namespace of networks
/// takes the kernel long to end.
const NEXT_TRY: Duration = Duration::from_secs(30);

/// Which walls stand around VM processes on this host, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WallsView {
    /// What is done where some are missing: `required` or `degraded`.
    pub mode: &'static str,
    /// Those that stand; none while no zygote has said it.
    pub standing: Vec<&'static str>,
    /// Those that are missing.
    pub missing: Vec<&'static str>,
}

/// Why there is no VM process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// It would not be confined.
    #[error(
        "No sandbox starts on this host, because jail = \"required\" and walls are missing: {0}. \
         `hatchery doctor` tells more; jail = \"degraded\" starts sandboxes without these walls"
    )]
    NotConfined(String),
    /// Neither a zygote nor the program itself makes one.
    #[error(transparent)]
    Failed(#[from] io::Error),
    /// The zygote makes none.
    #[error(transparent)]
    Zygote(#[from] ZygoteError),
}

/// What makes VM processes. Clones share one zygote.
#[derive(Clone, Debug, Default)]
pub struct VmSpawner {
    mode: JailMode,
    state: Arc<Mutex<SpawnerState>>,
    /// As the last zygote said; `None` before the first. Held by nobody who waits.
    missing: Arc<Mutex<Option<Vec<MissingWall>>>>,
}

#[derive(Debug, Default)]
enum SpawnerState {
    #[default]
    Unborn,
    Forks(Arc<Zygote>),
    /// There was none, and VM processes are started by themselves since.
    Without(Instant),
    /// Walls are missing that are required: since when, and what is said.
    Refused(Instant, String),
}

impl VmSpawner {
    /// For VM processes behind the walls that `mode` says.
    #[must_use]
    pub fn new(mode: JailMode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Which walls stand.
    #[must_use]
    pub fn walls(&self) -> WallsView {
        let known = unpoisoned(&self.missing).clone();
        let missing: Vec<Wall> = known.iter().flatten().map(|missing| missing.wall).collect();
        let standing = |wall: &Wall| known.is_some() && !missing.contains(wall);
        WallsView {
            mode: self.mode.name(),
            standing: Wall::ALL
                .into_iter()
                .filter(standing)
                .map(Wall::name)
                .collect(),
            missing: missing.into_iter().map(Wall::name).collect(),
        }
    }

    /// Has the zygote started, so that it is known which walls stand; an error is logged, and comes
    /// again when a VM process is needed. Blocks as [`VmSpawner::spawn`] does.
    pub fn begin(&self, program: &Path) {
        if let Err(error) = self.zygote(program) {
            let error = crate::error::chain(&error);
            tracing::error!(error, "no sandbox will start");
        }
    }

    /// A VM process of `program`, which waits for its configuration, in its control group if it has
    /// one. Blocks for the time of a fork. Must be called from the runtime's threads.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left of the attempt.
    pub fn spawn(&self, program: &Path, group: Option<&VmGroup>) -> Result<Spawned, SpawnError> {
        for _ in 0..2 {
            let Some(zygote) = self.zygote(program)? else {
                return Ok(alone(program, group)?);
            };
            match zygote.spawn(group.map(|group| group.folder())) {
                Err(error) if error.is_lost() => self.lose(&zygote, &error),
                Err(ZygoteError::Descriptors(error)) => return Err(error.into()),
                spawned => return Ok(spawned?),
            }
        }
        match self.mode {
            JailMode::Required => Err(ZygoteError::Gone.into()),
            JailMode::Degraded => Ok(alone(program, group)?),
        }
    }

    /// The one there is; a new one if there is none. `None`: VM processes may be started without.
    fn zygote(&self, program: &Path) -> Result<Option<Arc<Zygote>>, SpawnError> {
        let mut state = unpoisoned(&self.state);
        match &*state {
            SpawnerState::Forks(zygote) => return Ok(Some(Arc::clone(zygote))),
            SpawnerState::Without(since) if since.elapsed() < NEXT_TRY => return Ok(None),
            SpawnerState::Refused(since, why) if since.elapsed() < NEXT_TRY => {
                return Err(SpawnError::NotConfined(why.clone()));
            }
            SpawnerState::Without(_) | SpawnerState::Refused(..) | SpawnerState::Unborn => {}
        }
        match Zygote::start(program, self.mode) {
            Ok(mut zygote) => {
                if let (Some(log), Ok(_)) = (zygote.take_stderr(), Handle::try_current()) {
                    stderr::copy_to_log(MachineName::new("zygote"), log.into());
                }
                let missing = zygote.missing().to_vec();
                *unpoisoned(&self.missing) = Some(missing.clone());
                if self.mode == JailMode::Required && !missing.is_empty() {
                    let why = list_missing(&missing);
                    *state = SpawnerState::Refused(Instant::now(), why.clone());
                    return Err(SpawnError::NotConfined(why));
                }
                for missing in &missing {
                    tracing::warn!(%missing, "VM processes are not fully confined on this host");
                }
                tracing::info!(pid = zygote.pid(), jail = %self.mode, "zygote ready");
                let zygote = Arc::new(zygote);
                *state = SpawnerState::Forks(Arc::clone(&zygote));
                Ok(Some(zygote))
            }
            Err(error) if self.mode == JailMode::Required => Err(error.into()),
            Err(error) => {
                let error = crate::error::chain(&error);
                let what = "VM processes are not fully confined: they are started by themselves";
                tracing::warn!(error, "no zygote: {what}");
                *unpoisoned(&self.missing) = Some(vec![MissingWall {
                    wall: Wall::Namespaces,
                    why: format!("there is no zygote: {error}"),
                    remedy: "see the log".into(),
                }]);
                *state = SpawnerState::Without(Instant::now());
                Ok(None)
            }
        }
    }

    /// Forgets a zygote that has ended. Machines that came from it go on.
    fn lose(&self, lost: &Arc<Zygote>, error: &ZygoteError) {
        let error = crate::error::chain(error);
        tracing::warn!(
            pid = lost.pid(),
            error,
            "the zygote is lost, another one is started"
        );
        let mut state = unpoisoned(&self.state);
        if matches!(&*state, SpawnerState::Forks(current) if Arc::ptr_eq(current, lost)) {
            *state = SpawnerState::Unborn;
        }
    }
}

/// Nothing panics while it holds one of these locks.
fn unpoisoned<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without a zygote.
fn alone(program: &Path, group: Option<&VmGroup>) -> io::Result<Spawned> {
    let (mut child, control) = control::spawn(program, &[])?;
    let pid = rustix::process::Pid::from_child(&child);
    // Before it is told what to do.
    if let Some(group) = group
        && let Err(error) = group.take(pid)
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok(Spawned {
        pid,
        control,
        stderr: stderr.into(),
    })
}
