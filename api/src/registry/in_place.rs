//! Putting a sandbox's own machine back, in place, instead of making another one.
//!
//! Possible where the moment to go to is over the memory that the machine began with. What fails before
//! anything has changed, or leaves no machine, costs time, not the reset: another machine is made.

use super::bring_up::From;
use super::guard::{guard, take_machine};
use super::{Reason, Registry, Start};
use crate::config::Template;
use crate::error::ApiError;
use crate::image::{self, AgentLink, Image};
use crate::launcher::{Begin, Launched, Timings};
use crate::link::Link;
use crate::machine::{Machine, NotReset};
use crate::sandbox::Sandbox;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// What became of a sandbox's machine.
enum InPlace {
    /// It is back, and has taken the sandbox's identity anew.
    Back(Launched),
    /// It runs as it did, or is gone with the sandbox.
    AsItWas,
    /// It is no more, though the sandbox is there: why.
    Lost(Reason),
}

impl Registry {
    /// The sandbox's own machine put back, or another one that begins there.
    pub(super) async fn put_back_or_make(
        self: &Arc<Self>,
        old: &Arc<Sandbox>,
        template: &Template,
        start: Option<&Start>,
        timings: &mut Timings,
    ) -> Result<Launched, ApiError> {
        let back = self.in_place(old, template, start, timings).await;
        if let InPlace::Back(launched) = back {
            return Ok(launched);
        }
        let from = From { template, start };
        let made = self.bring_up(&old.id, from, &old.env, None, timings).await;
        if let (InPlace::Lost(reason), Err(_)) = (&back, &made) {
            self.end(old, reason);
        }
        Ok(made?.launched)
    }

    /// Puts a sandbox's machine back, if that can be. The caller holds its `saving`.
    async fn in_place(
        self: &Arc<Self>,
        old: &Arc<Sandbox>,
        template: &Template,
        start: Option<&Start>,
        timings: &mut Timings,
    ) -> InPlace {
        let Some(image) = self.own_image(old, template, start).await else {
            return InPlace::AsItWas;
        };
        let Some(mut machine) = take_machine(old).await else {
            return InPlace::AsItWas;
        };
        let id = &old.id;
        let stream = match swap_links(old, &image).await {
            Ok(stream) => stream,
            Err(error @ NotReset::RunsOn(_)) => {
                tracing::warn!(sandbox_id = id, %error, "not reset in place");
                tokio::spawn(guard(Arc::clone(self), Arc::clone(old), machine));
                return InPlace::AsItWas;
            }
            Err(error) => return lost(id, machine, error.to_string()).await,
        };
        timings.step("reset");
        match self.greet(old, &mut machine, &image, stream).await {
            Ok(link) => {
                timings.step("identity");
                InPlace::Back(Launched {
                    machine,
                    link,
                    disk_size: image.shape.disk_size,
                    basis: Some(Arc::clone(&image.basis)),
                })
            }
            Err(error) => lost(id, machine, error).await,
        }
    }

    /// What a sandbox's machine can be put back to.
    async fn own_image(
        &self,
        old: &Sandbox,
        template: &Template,
        start: Option<&Start>,
    ) -> Option<Arc<Image>> {
        let image = match start.map(|start| &start.begin) {
            Some(Begin::Image(image)) => Arc::clone(image),
            Some(Begin::Boot | Begin::Files(_)) => return None,
            None => self.pools.of(template)?.golden(Duration::ZERO).await?,
        };
        let basis = old.body.basis.as_ref()?;
        let same = Arc::ptr_eq(basis, &image.basis) && old.body.shape == image.shape;
        same.then_some(image)
    }

    /// Lets a machine that was put back go, as the same sandbox.
    async fn greet(
        &self,
        old: &Sandbox,
        machine: &mut Machine,
        image: &Image,
        stream: tokio::net::UnixStream,
    ) -> Result<Link, String> {
        machine.start().await;
        let link = match image.link {
            AgentLink::Kept { last_stream } => Link::resume(stream, last_stream),
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

/// Puts the machine back with another link; our end of it.
async fn swap_links(old: &Sandbox, image: &Image) -> Result<tokio::net::UnixStream, NotReset> {
    let failed = |error: std::io::Error| NotReset::RunsOn(format!("no link: {error}"));
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
    let reset = image::put_back(&old.body.hand, image, theirs).await?;
    tracing::debug!(sandbox_id = old.id, ?reset, "put back");
    Ok(ours)
}

/// Sees the end of a machine of which nobody knows what it is.
async fn lost(id: &str, mut machine: Machine, why: String) -> InPlace {
    tracing::warn!(
        sandbox_id = id,
        error = why,
        "machine lost while it was reset"
    );
    machine.give_up(id).await;
    InPlace::Lost(Reason::Ended(why))
}
