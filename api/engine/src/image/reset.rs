//! A machine reset in place to an image over the base memory that it began with.

use crate::files;
use crate::image::machine_image::MachineImage;
use crate::machine::handle::{MachineHandle, ResetError};
use control::{Descriptors, DeviceReset, NetDeviceSpec, Reset, ResetSpec, VsockSpec};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::time::timeout;

/// How long resetting a machine may take.
const RESET_TIMEOUT: Duration = Duration::from_secs(20);

/// Resets a machine that began at the image's base memory back to the image, in place. It stands
/// still when this returns, with `link` and `frames` in the place of its old ones:
/// [`MachineHandle::start`] lets it go. It has to take an identity before anything else, as a copy
/// does.
///
/// # Errors
/// [`ResetError`]: whether it runs on as it was.
pub async fn reset_in_place(
    machine: &MachineHandle,
    image: &MachineImage,
    (link, frames): (impl Into<OwnedFd>, OwnedFd),
) -> Result<Reset, ResetError> {
    let reopen = |what, file: &File| {
        let again = files::reopen(what, file).map(OwnedFd::from);
        again.map_err(|error| ResetError::RunsOn(error.to_string()))
    };
    let mut fds = Descriptors::default();
    let state = fds.add(reopen("state", &image.state)?);
    let parent = Some(fds.add(reopen("disk layer", &image.disk)?));
    let vsock = VsockSpec {
        link: fds.add(link),
        connection: image.link.into(),
    };
    let delta = image.delta.as_ref();
    let delta = delta
        .map(|delta| reopen("memory layer", delta))
        .transpose()?;
    let spec = ResetSpec {
        state,
        delta_layer: delta.map(|delta| fds.add(delta)),
        devices: vec![
            DeviceReset::Vsock(vsock),
            DeviceReset::Block { parent },
            DeviceReset::Rng,
            DeviceReset::Net(NetDeviceSpec {
                frames: fds.add(frames),
            }),
        ],
    };
    let reset = timeout(RESET_TIMEOUT, machine.reset(spec, fds.into())).await;
    reset.unwrap_or(Err(ResetError::Late(RESET_TIMEOUT)))
}
