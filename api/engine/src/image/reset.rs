//! A machine reset in place to an image over the base memory that it began with.

use crate::files;
use crate::image::machine_image::MachineImage;
use crate::machine::handle::{MachineHandle, ResetError};
use control::{Reset, ResetSpec};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::time::timeout;

/// How long resetting a machine may take.
const RESET_TIMEOUT: Duration = Duration::from_secs(20);

/// Resets a machine that began at the image's base memory back to the image, in place. It stands
/// still when this returns, with `link` in the place of its old one: [`MachineHandle::start`] lets
/// it go. It has to take an identity before anything else, as a copy does.
///
/// # Errors
/// [`ResetError`]: whether it runs on as it was.
pub async fn reset_in_place(
    machine: &MachineHandle,
    image: &MachineImage,
    link: impl Into<OwnedFd>,
) -> Result<Reset, ResetError> {
    let reopen = |what, file: &File| {
        let again = files::reopen(what, file).map(OwnedFd::from);
        again.map_err(|error| ResetError::RunsOn(error.to_string()))
    };
    let mut fds = vec![
        reopen("state", &image.state)?,
        reopen("disk layer", &image.disk)?,
        link.into(),
    ];
    if let Some(delta) = &image.delta {
        fds.push(reopen("memory layer", delta)?);
    }
    let spec = ResetSpec {
        state: 0,
        layer: image.delta.is_some().then_some(3),
        link: 2,
        after: image.link.into(),
        disks: vec![Some(1)],
    };
    let reset = timeout(RESET_TIMEOUT, machine.reset(spec, fds)).await;
    reset.unwrap_or(Err(ResetError::Late(RESET_TIMEOUT)))
}
