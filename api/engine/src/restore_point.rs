//! Where sandboxes begin that do not begin at their template's beginning.

use crate::facts::{KeptState, SandboxOrigin};
use crate::image::machine_image::MachineImage;
use crate::process::ProcessRecord;
use std::sync::Arc;

/// A point in another sandbox's life at which sandboxes begin.
#[derive(Debug)]
pub struct RestorePoint {
    /// The machine.
    pub source: BootSource,
    /// The processes that clients had started.
    pub processes: Vec<ProcessRecord>,
    /// What the sandboxes are said to be made from.
    pub origin: SandboxOrigin,
}

/// What a machine begins with.
#[derive(Clone, Debug)]
pub enum BootSource {
    /// The template's kernel and image.
    Boot,
    /// A clone of a machine that was saved.
    Image(Arc<MachineImage>),
    /// The template's kernel, and the disk of a machine that was saved.
    Files(Arc<MachineImage>),
}

impl BootSource {
    /// What is kept of a machine.
    #[must_use]
    pub const fn of(image: Arc<MachineImage>, kept: KeptState) -> Self {
        match kept {
            KeptState::Memory => Self::Image(image),
            KeptState::Files => Self::Files(image),
        }
    }

    /// What the machine's disk and size are of; `None`: the template.
    #[must_use]
    pub fn image(&self) -> Option<&Arc<MachineImage>> {
        match self {
            Self::Boot => None,
            Self::Image(image) | Self::Files(image) => Some(image),
        }
    }
}
