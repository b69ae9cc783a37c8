//! Saving and loading the devices: what a host handles, and the gate that untrusted bytes pass.
//!
//! Each device's state is one postcard blob: its register window with the positions of its queues
//! ([`WindowV1`]) and what its kind adds ([`DeviceV1`], which also tags the kind). The structs lie
//! beside their owners and hold no runtime type.

use crate::block::{BlockV1, DiskLayers};
use crate::mmio::WindowV1;
use crate::vsock::VsockV1;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What became of the link that was there when the devices were saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkAfter {
    /// The new link goes on where the saved one was: the guest's connection stays open, and both
    /// ends agree that nothing was under way on it.
    Kept,
    /// The new link knows nothing of the saved one: the guest's connection is reset.
    Broken,
}

/// All devices of a loop at one moment.
#[derive(Debug)]
pub struct SavedDevices {
    /// One blob per device, in the order in which the devices were added.
    pub devices: Vec<Vec<u8>>,
    /// One entry per block device, in the order in which they were added.
    pub disks: Vec<DiskLayers>,
}

/// Why the devices could not be saved. They go on as before.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Something the guest asked for took too long, as a send on a link that nobody reads.
    #[error("{device} still had work in flight after {after:?}")]
    NotStill {
        /// Its kind and number.
        device: String,
        /// How long was waited.
        after: Duration,
    },
    /// A state did not become bytes.
    #[error("Could not encode the state of {device}")]
    Encode {
        /// Its kind and number.
        device: String,
        /// Why.
        #[source]
        source: postcard::Error,
    },
}

/// Why saved state is refused. The loop (or IOAPIC) it was to be loaded into is of no use then.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not as many blobs as devices.
    #[error("State of {saved} devices was saved, this machine has {present}")]
    Count {
        /// Blobs.
        saved: usize,
        /// Devices.
        present: usize,
    },
    /// Not a state at all.
    #[error("The saved state of {device} does not decode")]
    Decode {
        /// Kind and number of the device.
        device: String,
        /// Why.
        #[source]
        source: postcard::Error,
    },
    /// More bytes than a state.
    #[error("The saved state of {device} has {extra} bytes after its end")]
    Trailing {
        /// Kind and number of the device.
        device: String,
        /// How many.
        extra: usize,
    },
    /// State of another kind of device.
    #[error("{device} cannot take over the saved state of a {saved}")]
    Kind {
        /// Kind and number of the device.
        device: String,
        /// The kind that was saved.
        saved: &'static str,
    },
    /// A state that no device can have.
    #[error("The saved state of {device} cannot be: {what}")]
    Value {
        /// Kind and number of the device.
        device: String,
        /// What is wrong.
        what: String,
    },
    /// What belongs to a device could not be made as new.
    #[error("{device} could not be put back")]
    Renew {
        /// Its kind and number.
        device: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The devices are in use.
    #[error("State can be loaded once, before the event loop runs")]
    Late,
}

/// What is wrong with a saved value.
#[derive(Debug)]
pub(crate) struct Invalid(pub(crate) String);

impl Invalid {
    pub(crate) fn kind(saved: &DeviceV1) -> Self {
        Self(format!("it is of a {}", saved.kind()))
    }

    pub(crate) fn of(self, device: String) -> LoadError {
        LoadError::Value {
            device,
            what: self.0,
        }
    }
}

/// What a device saves besides its registers and queues.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum DeviceV1 {
    Vsock(VsockV1),
    Block(BlockV1),
    Rng,
}

impl DeviceV1 {
    pub(crate) const VSOCK: &str = "socket device";
    pub(crate) const BLOCK: &str = "block device";
    pub(crate) const RNG: &str = "entropy device";

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Vsock(_) => Self::VSOCK,
            Self::Block(_) => Self::BLOCK,
            Self::Rng => Self::RNG,
        }
    }
}

/// One blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SlotV1 {
    pub(crate) device: DeviceV1,
    pub(crate) window: WindowV1,
}

/// The value in all of `bytes`, of which only the form is checked.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], device: &str) -> Result<T, LoadError> {
    let device = || device.to_owned();
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(LoadError::Trailing {
            device: device(),
            extra: rest.len(),
        }),
        Err(source) => Err(LoadError::Decode {
            device: device(),
            source,
        }),
    }
}
