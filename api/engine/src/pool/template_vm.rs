//! A template's template VM: booted once, warmed, saved at rest, and cloned from then on.

use crate::error::chain;
use crate::image::capture::{CaptureMode, capture, freeze, sync};
use crate::image::machine_image::{AgentLink, ImageError, MachineImage, MachineShape};
use crate::launch::error::LaunchError;
use crate::launch::identity::identify;
use crate::launch::launcher::MachineLauncher;
use crate::launch::plan::{LaunchPlan, LaunchedMachine};
use crate::machine::handle::MachineHandle;
use crate::machine::name::MachineName;
use crate::pool::warm_up::{WarmUpError, first_command, warm};
use crate::restore_point::BootSource;
use crate::template::Template;
use crate::timings::StepTimings;
use control::Saved;
use link::Link;
use snapshot_memory::PageRange;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long the guest is left alone before it is saved, so that nothing is under way.
const REST: Duration = Duration::from_millis(200);

/// Nothing in it runs, or it is not to be stopped for that.
const AS_IT_IS: CaptureMode<'_> = CaptureMode {
    ahead: false,
    freeze: None,
};

/// The generation of a copy that nobody gets: below all that sandboxes have.
const TRIAL: u64 = 1;

/// Why a template has no template VM.
#[derive(Debug, thiserror::Error)]
pub enum TemplateVmError {
    /// It did not start.
    #[error("It did not start")]
    Launch(#[from] LaunchError),
    /// It could not be warmed.
    #[error("It could not be warmed")]
    Warm(#[from] WarmUpError),
    /// It could not be saved.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A clone of it did not take an identity.
    #[error("A copy is nobody: {0}")]
    Identity(String),
    /// The task that does it broke.
    #[error("The work was given up")]
    GivenUp,
}

/// A template's template VM, with what its clones use first if that can be learned. `makers` is
/// what machines count for that are made on the way, one at a time.
///
/// # Errors
/// The first step that failed; nothing is left of the attempt.
pub async fn make(
    launcher: &MachineLauncher,
    template: &Arc<Template>,
    makers: &Arc<Semaphore>,
) -> Result<Arc<MachineImage>, TemplateVmError> {
    let slot = || Arc::clone(makers).acquire_owned();
    let name = |kind| MachineName::internal(kind).map_err(|e| LaunchError::Entropy(e.to_string()));
    let gone = |_| TemplateVmError::GivenUp;
    let made = build(launcher, template, name('g')?, slot().await.map_err(gone)?);
    let template_vm = Arc::new(made.await?);
    let trial = (name('t')?, slot().await.map_err(gone)?);
    match learn(launcher, template, &template_vm, trial).await {
        Ok(learned) => Ok(learned),
        Err(error) => {
            let (template, error) = (&template.name, chain(&error));
            tracing::warn!(template, error, "clones come without a working set");
            Ok(template_vm)
        }
    }
}

/// Boots, warms and saves a machine at rest, so that its clones go on with its agent's connection.
/// `slot` is given back when its process is reaped.
///
/// # Errors
/// The first step that failed; nothing is left of the attempt.
async fn build(
    launcher: &MachineLauncher,
    template: &Arc<Template>,
    name: MachineName,
    slot: OwnedSemaphorePermit,
) -> Result<MachineImage, TemplateVmError> {
    let (begin, id) = (Instant::now(), name.to_string());
    let plan = LaunchPlan {
        name,
        template: Arc::clone(template),
        source: BootSource::Boot,
        trial: false,
        slot,
    };
    let launched = launcher.launch(plan, &mut StepTimings::default()).await?;
    let LaunchedMachine {
        mut machine,
        link,
        disk_size,
        ..
    } = launched;
    let booted = begin.elapsed();
    let shape = MachineShape {
        vcpus: template.cpu_count,
        memory_mib: template.memory_mb,
        disk_size,
    };
    let saved = match warm(&link, template).await {
        Ok(()) => {
            write_out(&link, template).await;
            save_at_rest(launcher, template, (&machine.handle(), &link), shape).await
        }
        Err(error) => Err(error.into()),
    };
    let rest = link.rest();
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
        memory_kib = image.base_memory.resident_bytes() >> 10,
        disk_kib = figures.disk_blocks * 4,
        "template ready to be cloned"
    );
    Ok(MachineImage {
        link: AgentLink::Kept { rest },
        ..image
    })
}

/// Saves a template's machine once nothing moves in it. A process of the template is stopped until
/// a clone has its identity.
async fn save_at_rest(
    launcher: &MachineLauncher,
    template: &Template,
    (machine, link): (&MachineHandle, &Link),
    shape: MachineShape,
) -> Result<(MachineImage, Saved), TemplateVmError> {
    if template.start_cmd.is_some() {
        freeze(link).await.map_err(ImageError::Save)?;
    }
    tokio::time::sleep(REST).await;
    Ok(capture(&launcher.layer_dir, machine, None, shape, AS_IT_IS).await?)
}

/// Has the machine write its files to its disk: what it has not written, each copy would write to
/// its own, seconds after it began. It is right without, too.
async fn write_out(link: &Link, template: &Arc<Template>) {
    if let Err(why) = sync(link).await {
        let template = &template.name;
        tracing::warn!(template, why, "a template VM has not written its files out");
    }
}

/// Has a copy do what every sandbox does first: take an identity and run a command. What it has
/// used by then, all clones come with from then on: it costs them neither a fault nor a copy when
/// somebody waits for them. `slot` is given back when the copy's process is reaped.
///
/// # Errors
/// The first step that failed; the template VM is as good as before.
async fn learn(
    launcher: &MachineLauncher,
    template: &Arc<Template>,
    template_vm: &Arc<MachineImage>,
    (name, slot): (MachineName, OwnedSemaphorePermit),
) -> Result<Arc<MachineImage>, TemplateVmError> {
    let AgentLink::Kept { rest } = template_vm.link else {
        return Err(TemplateVmError::GivenUp);
    };
    let id = name.to_string();
    let plan = LaunchPlan {
        name,
        template: Arc::clone(template),
        source: BootSource::Image(Arc::clone(template_vm)),
        trial: true,
        slot,
    };
    let built = launcher.build(plan, &mut StepTimings::default()).await?;
    let mut machine = built.machine;
    machine.start().await;
    let link = Link::resume(built.stream, rest);
    let tried = async {
        let identity = identify(&link, &id, TRIAL, &BTreeMap::new(), launcher.boot_timeout).await;
        identity.map_err(TemplateVmError::Identity)?;
        first_command(&link, template).await?;
        tokio::time::sleep(REST).await;
        let (base_memory, shape) = (Some(&template_vm.base_memory), template_vm.shape);
        let (trial, _) = capture(
            &launcher.layer_dir,
            &machine.handle(),
            base_memory,
            shape,
            AS_IT_IS,
        )
        .await?;
        Ok(trial)
    };
    let tried: Result<MachineImage, TemplateVmError> = tried.await;
    machine.stop().await;
    let (learned, first) = template_vm.learn(&launcher.layer_dir, &tried?).await?;
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
