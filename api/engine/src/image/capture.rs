//! From a machine that runs to its image.

use crate::error::chain;
use crate::image::base_memory::BaseMemory;
use crate::image::machine_image::{AgentLink, ImageError, MachineImage, MachineShape, file, merge};
use crate::machine::handle::MachineHandle;
use control::{Descriptors, SaveSpec, Saved};
use link::Link;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long saving a machine may take.
const SAVE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a guest may take to stop its processes, or to let them go on.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a guest may take to write its files out.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);

/// Has a guest write its files to its disk.
///
/// # Errors
/// Why it did not, in words.
pub async fn sync(link: &Link) -> Result<(), String> {
    match timeout(SYNC_TIMEOUT, link.sync()).await {
        Ok(done) => done.map_err(|error| chain(&error)),
        Err(_) => Err("The guest does not sync".into()),
    }
}

/// Has a guest's processes stop.
///
/// # Errors
/// Why they did not, in words: [`Link::thaw`] is to be called all the same.
pub async fn freeze(link: &Link) -> Result<(), String> {
    match timeout(FREEZE_TIMEOUT, link.freeze()).await {
        Ok(done) => done.map_err(|error| chain(&error)),
        Err(_) => Err("The guest does not stop its processes".into()),
    }
}

/// Lets a guest's processes go on. One that does not has them stand still, which is told.
pub async fn thaw(id: &str, link: &Link) {
    let error = match timeout(FREEZE_TIMEOUT, link.thaw()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) if error.is_closed() => return,
        Ok(Err(error)) => chain(&error),
        Err(_) => "no answer".into(),
    };
    tracing::warn!(sandbox_id = id, error, "processes are not thawed");
}

/// How a machine is saved.
#[derive(Clone, Copy, Debug)]
pub struct CaptureMode<'a> {
    /// Most is copied while it runs, which takes longer but lets it stand still for a shorter time.
    pub ahead: bool,
    /// Its processes are stopped just before: in machines that begin at the image they go on when
    /// these have an identity; in the machine itself, with [`Link::thaw`], which is to be called
    /// however the save ends.
    pub freeze: Option<&'a Link>,
}

/// Saves a machine that began at `base_memory`, or booted if there is none. It stands
/// still when this returns: [`MachineHandle::start`] lets it go on. Its agent's connection, which
/// may be in use, is broken in machines that begin at the image; in the machine itself it goes on.
///
/// # Errors
/// [`ImageError`]; the machine then stands still or runs on: let it go on in any case.
pub async fn capture(
    layer_dir: &Path,
    machine: &MachineHandle,
    base_memory: Option<&Arc<BaseMemory>>,
    shape: MachineShape,
    mode: CaptureMode<'_>,
) -> Result<(MachineImage, Saved), ImageError> {
    let (memory, state, disk) = (file(layer_dir)?, file(layer_dir)?, file(layer_dir)?);
    let copy = |file: &File| {
        let again = file.try_clone();
        again.map_err(|error| ImageError::Save(format!("a descriptor was not copied: {error}")))
    };
    let mut fds = Descriptors::default();
    let spec = SaveSpec {
        memory: fds.add(copy(&memory)?),
        state: fds.add(copy(&state)?),
        contents: vec![fds.add(copy(&disk)?)],
        ahead: mode.ahead,
    };
    let freeze = async {
        match mode.freeze {
            Some(link) => freeze(link).await,
            None => Ok(()),
        }
    };
    let saved = match timeout(SAVE_TIMEOUT, machine.save(spec, fds.into(), freeze)).await {
        Ok(Ok(saved)) => saved,
        Ok(Err(why)) => return Err(ImageError::Save(why)),
        Err(_) => {
            let bound = SAVE_TIMEOUT.as_secs();
            return Err(ImageError::Save(format!("it took more than {bound} s")));
        }
    };
    let memory = Arc::new(memory);
    let (base_memory, delta) = match base_memory {
        Some(base_memory) => (Arc::clone(base_memory), Some(memory)),
        None => (merge(shape.pages(), vec![memory]).await?, None),
    };
    let image = MachineImage {
        base_memory,
        delta,
        state: Arc::new(state),
        disk: Arc::new(disk),
        shape,
        link: AgentLink::Broken,
    };
    Ok((image, saved))
}
