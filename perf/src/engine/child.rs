//! VM processes that came from a zygote, as the service makes them.

use anyhow::{Context, Result, ensure};
use control::{JailMode, Spawned, Zygote, list_missing};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, waitid};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A VM process; killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct VmChild(Option<Pid>);

impl VmChild {
    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.0
            .map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Sends the signal that cannot be refused.
    pub(crate) fn kill(&self) -> Result<()> {
        Ok(kill_process(self.pid()?, Signal::KILL)?)
    }

    /// Waits until nothing is left of it.
    pub(crate) fn wait(&mut self) -> Result<WaitIdStatus> {
        let status = waitid(WaitId::Pid(self.pid()?), WaitIdOptions::EXITED)?;
        self.0 = None;
        status.context("The process has no status")
    }

    fn pid(&self) -> Result<Pid> {
        self.0.context("The process is gone")
    }
}

impl Drop for VmChild {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = self.wait();
    }
}

/// A VM process of `program`, and the ends of its control socket and its log. All come from one
/// zygote, which is started first.
pub(crate) fn spawn(program: &Path) -> Result<(VmChild, Spawned)> {
    // A zygote leaves with this process: its socket closes.
    static ZYGOTE: Mutex<Option<&'static Zygote>> = Mutex::new(None);
    let known = *ZYGOTE.lock().unwrap_or_else(PoisonError::into_inner);
    let zygote = match known {
        Some(zygote) => zygote,
        None => {
            let zygote = Zygote::start(program, JailMode::Required)
                .with_context(|| format!("Starting {} as a zygote", program.display()))?;
            let missing = zygote.missing();
            ensure!(
                missing.is_empty(),
                "VM processes that are not confined are not measured; walls are missing here: {}",
                list_missing(missing)
            );
            let zygote: &'static Zygote = Box::leak(Box::new(zygote));
            *ZYGOTE.lock().unwrap_or_else(PoisonError::into_inner) = Some(zygote);
            zygote
        }
    };
    let spawned = zygote
        .spawn(None)
        .with_context(|| format!("Forking {}", program.display()))?;
    Ok((VmChild(Some(spawned.pid)), spawned))
}
