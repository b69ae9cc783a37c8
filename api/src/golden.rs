//! A template's golden machine: booted once, warmed, saved at rest, and copied from then on.

use crate::config::Template;
use crate::image::{self, AgentLink, Image, ImageError, Shape};
use crate::launcher::{Begin, LaunchError, Launched, Launcher, Plan, Timings};
use crate::name::Name;
use crate::warm::{WarmError, warm};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// How long the guest is left alone before it is saved, so that nothing is under way.
const REST: Duration = Duration::from_millis(200);

/// Why a template has no golden machine.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// It did not start.
    #[error("It did not start")]
    Launch(#[from] LaunchError),
    /// It could not be warmed.
    #[error("It could not be warmed")]
    Warm(#[from] WarmError),
    /// It could not be saved.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The task that does it broke.
    #[error("The work was given up")]
    GivenUp,
}

/// Boots, warms and saves a machine at rest, so that its copies go on with its agent's connection.
/// `slot` is given back when its process is reaped.
///
/// # Errors
/// The first step that failed; nothing is left of the attempt.
pub async fn build(
    launcher: &Launcher,
    template: &Template,
    name: Name,
    slot: OwnedSemaphorePermit,
) -> Result<Image, GoldenError> {
    let (begin, id) = (Instant::now(), name.to_string());
    let plan = Plan {
        name,
        template: template.clone(),
        begin: Begin::Boot,
        slot,
    };
    let launched = launcher.launch(plan, &mut Timings::default()).await?;
    let Launched {
        mut machine,
        link,
        disk_size,
        ..
    } = launched;
    let booted = begin.elapsed();
    let shape = Shape {
        vcpus: template.cpu_count,
        memory_mib: template.memory_mb,
        disk_size,
    };
    let saved = match warm(&link, template).await {
        Ok(()) => {
            tokio::time::sleep(REST).await;
            let saved = image::capture(launcher, &machine.hand(), None, shape).await;
            saved.map_err(GoldenError::from)
        }
        Err(error) => Err(error.into()),
    };
    let last_stream = link.last_stream();
    if saved.is_err() {
        machine.give_up(&id).await;
    } else {
        machine.stop().await;
    }
    let (image, figures) = saved?;
    tracing::info!(
        template = template.name,
        ?booted,
        total = ?begin.elapsed(),
        memory_kib = image.basis.resident_bytes() >> 10,
        disk_kib = figures.disk_blocks * 4,
        "template ready to be copied"
    );
    Ok(Image {
        link: AgentLink::Kept { last_stream },
        ..image
    })
}
