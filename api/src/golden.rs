//! A template's golden machine: booted once, warmed, saved at rest, and copied from then on.

use crate::config::Template;
use crate::error::chain;
use crate::identity::identify;
use crate::image::{self, AgentLink, Image, ImageError, Shape};
use crate::launcher::{Begin, LaunchError, Launched, Launcher, Plan, Timings};
use crate::link::Link;
use crate::name::Name;
use crate::warm::{WarmError, first_command, warm};
use snapshot_memory::PageRange;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long the guest is left alone before it is saved, so that nothing is under way.
const REST: Duration = Duration::from_millis(200);

/// The generation of a copy that nobody gets: below all that sandboxes have.
const TRIAL: u64 = 1;

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
    /// A copy of it did not take an identity.
    #[error("A copy is nobody: {0}")]
    Identity(String),
    /// The task that does it broke.
    #[error("The work was given up")]
    GivenUp,
}

/// A template's golden machine, with what its copies use first if that can be learned. `makers` is
/// what machines count for that are made on the way, one at a time.
///
/// # Errors
/// The first step that failed; nothing is left of the attempt.
pub async fn make(
    launcher: &Launcher,
    template: &Template,
    makers: &Arc<Semaphore>,
) -> Result<Arc<Image>, GoldenError> {
    let slot = || Arc::clone(makers).acquire_owned();
    let name = |kind| Name::internal(kind).map_err(|e| LaunchError::Entropy(e.to_string()));
    let gone = |_| GoldenError::GivenUp;
    let made = build(launcher, template, name('g')?, slot().await.map_err(gone)?);
    let golden = Arc::new(made.await?);
    let trial = (name('t')?, slot().await.map_err(gone)?);
    match learn(launcher, template, &golden, trial).await {
        Ok(learned) => Ok(learned),
        Err(error) => {
            let (template, error) = (&template.name, chain(&error));
            tracing::warn!(template, error, "copies come without a working set");
            Ok(golden)
        }
    }
}

/// Boots, warms and saves a machine at rest, so that its copies go on with its agent's connection.
/// `slot` is given back when its process is reaped.
///
/// # Errors
/// The first step that failed; nothing is left of the attempt.
async fn build(
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
        trial: false,
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
            write_out(&link, template).await;
            tokio::time::sleep(REST).await;
            let saved = image::capture(launcher, &machine.hand(), None, shape, false).await;
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

/// Has the machine write its files to its disk: what it has not written, each copy would write to its own,
/// seconds after it began. It is right without, too.
async fn write_out(link: &Link, template: &Template) {
    if let Err(why) = image::sync(link).await {
        let template = &template.name;
        tracing::warn!(
            template,
            why,
            "a golden machine has not written its files out"
        );
    }
}

/// Has a copy do what every sandbox does first: take an identity and run a command. What it has used by
/// then, all copies come with from then on: it costs them neither a fault nor a copy when somebody waits
/// for them. `slot` is given back when the copy's process is reaped.
///
/// # Errors
/// The first step that failed; the golden machine is as good as before.
async fn learn(
    launcher: &Launcher,
    template: &Template,
    golden: &Arc<Image>,
    (name, slot): (Name, OwnedSemaphorePermit),
) -> Result<Arc<Image>, GoldenError> {
    let AgentLink::Kept { last_stream } = golden.link else {
        return Err(GoldenError::GivenUp);
    };
    let id = name.to_string();
    let plan = Plan {
        name,
        template: template.clone(),
        begin: Begin::Image(Arc::clone(golden)),
        trial: true,
        slot,
    };
    let built = launcher.build(plan, &mut Timings::default()).await?;
    let mut machine = built.machine;
    machine.start().await;
    let link = Link::resume(built.stream, last_stream);
    let tried = async {
        let identity = identify(&link, &id, TRIAL, &BTreeMap::new(), launcher.boot_timeout).await;
        identity.map_err(GoldenError::Identity)?;
        first_command(&link, template).await?;
        tokio::time::sleep(REST).await;
        let (basis, shape) = (Some(&golden.basis), golden.shape);
        let (trial, _) = image::capture(launcher, &machine.hand(), basis, shape, false).await?;
        Ok(trial)
    };
    let tried: Result<Image, GoldenError> = tried.await;
    machine.stop().await;
    let (learned, first) = golden.learn(launcher, &tried?).await?;
    let (touched, written) = (
        PageRange::count(&first.touched),
        PageRange::count(&first.written),
    );
    tracing::info!(
        template = template.name,
        touched,
        written,
        "working set learned"
    );
    Ok(Arc::new(learned))
}
