//! Saving and loading the devices: what a host handles, and the gate that untrusted bytes pass.
//!
//! Each device's state is one blob of postcard values, one after the other: the tag of its
//! [`DeviceKind`], what its kind adds, and its register window with the positions of its queues
//! ([`WindowV1`]). The structs lie beside their owners and hold no runtime type.
//!
//! [`WindowV1`]: crate::mmio::state::WindowV1

use crate::Contents;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The state of all devices of a loop at one point in time.
#[derive(Debug)]
pub struct SavedDevices {
    /// One blob per device, in the order in which the devices were added.
    pub devices: Vec<Vec<u8>>,
    /// The contents of those that have any (disks), in the same order.
    pub contents: Vec<Box<dyn Contents>>,
}

/// Why the devices could not be saved. They resume as before.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Something the guest asked for took too long, as a send on a link that nobody reads.
    #[error("{device} still had work in flight after {after:?}")]
    Busy {
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
        saved: String,
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
    #[error("{device} could not be reset")]
    Reset {
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
pub(crate) struct InvalidState(pub(crate) String);

impl InvalidState {
    pub(crate) fn of(self, device: String) -> LoadError {
        LoadError::Value {
            device,
            what: self.0,
        }
    }
}

/// Why a device does not take over what was saved.
#[derive(Debug)]
pub enum StateRefusal {
    /// The bytes are not of that form.
    Decode(postcard::Error),
    /// So many bytes follow the state.
    Trailing(usize),
    /// No device can have these values.
    Value(String),
}

impl From<InvalidState> for StateRefusal {
    fn from(invalid: InvalidState) -> Self {
        Self::Value(invalid.0)
    }
}

impl StateRefusal {
    pub(crate) fn of(self, device: String) -> LoadError {
        match self {
            Self::Decode(source) => LoadError::Decode { device, source },
            Self::Trailing(extra) => LoadError::Trailing { device, extra },
            Self::Value(what) => LoadError::Value { device, what },
        }
    }
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKind {
    /// Stands at the head of its saved state, on disk for ever: 0 is the socket, 1 the disk, 2 the
    /// entropy device. A new kind takes the next one.
    pub(crate) tag: u32,
    /// What it is called in errors.
    pub(crate) name: &'static str,
}

/// The value at the head of `bytes`, which then are what follows it.
pub(crate) fn take<T: DeserializeOwned>(bytes: &mut &[u8]) -> Result<T, StateRefusal> {
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(StateRefusal::Decode)?;
    *bytes = rest;
    Ok(value)
}

/// The value in all of `bytes`, of which only the form is checked.
pub(crate) fn decode<T: DeserializeOwned>(mut bytes: &[u8], device: &str) -> Result<T, LoadError> {
    let value = take(&mut bytes).and_then(|value| match bytes.len() {
        0 => Ok(value),
        extra => Err(StateRefusal::Trailing(extra)),
    });
    value.map_err(|refused| refused.of(device.to_owned()))
}
