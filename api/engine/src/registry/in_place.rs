//! A sandbox's own machine reset in place, instead of making another one.
//!
//! Possible where the restore point is over the base memory that the machine began with. What fails
//! before anything has changed, or leaves no machine, costs time, not the reset: another machine is
//! made.

use crate::image::machine_image::{AgentLink, MachineImage};
use crate::image::reset::reset_in_place;
use crate::launch::plan::LaunchedMachine;
use crate::machine::handle::{ResetError, VmProcess};
use crate::network::FrameSocket;
use crate::registry::bring_up::LaunchSource;
use crate::registry::lifecycle::take_machine;
use crate::registry::sandboxes::{EndReason, SandboxRegistry};
use crate::restore_point::BootSource;
use crate::sandbox::Sandbox;
use crate::timings::StepTimings;
use link::Link;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// What became of a sandbox's machine.
pub(super) enum ResetOutcome {
    /// It is there, and has taken the sandbox's identity anew.
    Done(LaunchedMachine),
    /// It runs as it did, or is gone with the sandbox.
    Unchanged,
    /// It is no more, though the sandbox is there: why.
    Lost(EndReason),
}

impl SandboxRegistry {
    /// Resets a sandbox's machine, if that can be. The caller holds its turn.
    pub(super) async fn reset_in_place(
        self: &Arc<Self>,
        old: &Arc<Sandbox>,
        source: LaunchSource<'_>,
        timings: &mut StepTimings,
    ) -> ResetOutcome {
        let Some(image) = self.own_image(old, source).await else {
            return ResetOutcome::Unchanged;
        };
        let Some(mut machine) = take_machine(old).await else {
            return ResetOutcome::Unchanged;
        };
        let id = &old.id;
        let (stream, frames) = match swap_links(old, &image).await {
            Ok(ends) => ends,
            Err(error @ ResetError::RunsOn(_)) => {
                tracing::warn!(sandbox_id = id, %error, "not reset in place");
                self.follow(old, machine);
                return ResetOutcome::Unchanged;
            }
            Err(error) => return lost(id, machine, error.to_string()).await,
        };
        timings.step("reset");
        match self.resume_link(old, &mut machine, &image, stream).await {
            Ok(link) => {
                timings.step("identity");
                ResetOutcome::Done(LaunchedMachine {
                    machine,
                    link,
                    frames,
                    disk_size: image.shape.disk_size,
                    base_memory: Some(Arc::clone(&image.base_memory)),
                })
            }
            Err(error) => lost(id, machine, error).await,
        }
    }

    /// What a sandbox's machine can be reset to.
    async fn own_image(
        &self,
        old: &Sandbox,
        source: LaunchSource<'_>,
    ) -> Option<Arc<MachineImage>> {
        let image = match source.restore_point.map(|point| &point.source) {
            Some(BootSource::Image(image)) => Arc::clone(image),
            Some(BootSource::Boot | BootSource::Files(_)) => return None,
            None => {
                let pool = self.pools.of(source.template)?;
                pool.template_vm(Duration::ZERO).await?
            }
        };
        let base_memory = old.machine.base_memory.as_ref()?;
        let same = Arc::ptr_eq(base_memory, &image.base_memory) && old.machine.shape == image.shape;
        same.then_some(image)
    }

    /// Lets a machine that was reset go, as the same sandbox.
    async fn resume_link(
        &self,
        old: &Sandbox,
        machine: &mut VmProcess,
        image: &MachineImage,
        stream: tokio::net::UnixStream,
    ) -> Result<Link, String> {
        machine.start().await;
        let link = match image.link {
            AgentLink::Kept { rest } => Link::resume(stream, rest),
            AgentLink::Broken => {
                let link = self.launcher.hello(machine, stream).await;
                link.map_err(|error| error.to_string())?
            }
        };
        self.take_identity(&old.id, machine, &link, &old.env)
            .await?;
        Ok(link)
    }
}

/// Resets the machine with another link and another frames; our ends of them.
async fn swap_links(
    old: &Sandbox,
    image: &MachineImage,
) -> Result<(tokio::net::UnixStream, FrameSocket), ResetError> {
    let failed = |error: std::io::Error| ResetError::RunsOn(format!("no link: {error}"));
    let (frames, guest_frames) = FrameSocket::pair().map_err(failed)?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
    let reset = reset_in_place(&old.machine.handle, image, (theirs, guest_frames)).await?;
    tracing::debug!(sandbox_id = old.id, ?reset, "reset in place");
    Ok((ours, frames))
}

/// Sees the end of a machine of which nobody knows what it is.
async fn lost(id: &str, mut machine: VmProcess, why: String) -> ResetOutcome {
    tracing::warn!(
        sandbox_id = id,
        error = why,
        "machine lost while it was reset"
    );
    machine.give_up(id).await;
    ResetOutcome::Lost(EndReason::Ended(why))
}
