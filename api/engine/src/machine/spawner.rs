//! The zygote of VM processes: started when the first is needed, and again when it has ended.

use crate::machine::name::MachineName;
use crate::machine::stderr;
use control::{Spawned, Zygote, ZygoteError};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// What makes VM processes. Clones share one zygote.
#[derive(Clone, Debug, Default)]
pub struct VmSpawner(Arc<Mutex<SpawnerState>>);

#[derive(Debug, Default)]
enum SpawnerState {
    #[default]
    Unborn,
    Forks(Arc<Zygote>),
    /// The program cannot be a zygote: each VM process is started by itself.
    Starts,
}

impl VmSpawner {
    /// A VM process of `program`, which waits for its configuration. Blocks for the time of a fork.
    /// Must be called from the runtime's threads.
    ///
    /// # Errors
    /// Neither a zygote nor the program itself makes one.
    pub fn spawn(&self, program: &Path) -> io::Result<Spawned> {
        for _ in 0..2 {
            let Some(zygote) = self.zygote(program) else {
                return alone(program);
            };
            match zygote.spawn() {
                Err(error) if error.is_lost() => self.lose(&zygote, &error),
                Err(ZygoteError::Descriptors(error)) => return Err(error),
                spawned => return spawned.map_err(io::Error::other),
            }
        }
        alone(program)
    }

    /// The one there is; a new one if there is none.
    fn zygote(&self, program: &Path) -> Option<Arc<Zygote>> {
        let mut kind = self.lock();
        match &*kind {
            SpawnerState::Forks(zygote) => return Some(Arc::clone(zygote)),
            SpawnerState::Starts => return None,
            SpawnerState::Unborn => {}
        }
        match Zygote::start(program) {
            Ok(mut zygote) => {
                if let (Some(log), Ok(_)) = (zygote.take_stderr(), Handle::try_current()) {
                    stderr::copy_to_log(MachineName::new("zygote"), log.into());
                }
                for lack in zygote.lacks() {
                    tracing::warn!(lack, "VM processes are not fully confined on this host");
                }
                tracing::info!(pid = zygote.pid(), "zygote ready");
                let zygote = Arc::new(zygote);
                *kind = SpawnerState::Forks(Arc::clone(&zygote));
                Some(zygote)
            }
            Err(error) => {
                let (lost, error) = (error.is_lost(), crate::error::chain(&error));
                tracing::warn!(error, "no zygote: VM processes are started by themselves");
                if lost {
                    *kind = SpawnerState::Starts;
                }
                None
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
        let mut kind = self.lock();
        if matches!(&*kind, SpawnerState::Forks(current) if Arc::ptr_eq(current, lost)) {
            *kind = SpawnerState::Unborn;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SpawnerState> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without a zygote.
fn alone(program: &Path) -> io::Result<Spawned> {
    let (mut child, control) = control::spawn(program, &[])?;
    let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok(Spawned {
        pid: rustix::process::Pid::from_child(&child),
        control,
        stderr: stderr.into(),
    })
}
