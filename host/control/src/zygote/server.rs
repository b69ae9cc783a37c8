//! The zygote's side.

use super::fork::{Fork, fork_sibling};
use super::message::{Event, Request};
use crate::walls::{JailMode, MissingWall, list_missing};
use crate::{ChannelError, recv, send};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// What the kernel shows as the name of a zygote (`/proc/PID/comm`), so that it is not taken for a
/// VM process.
pub const ZYGOTE_NAME: &CStr = c"hatchery-zygote";

/// What a process is after [`serve`].
#[derive(Debug)]
pub enum Role {
    /// Still the zygote; the service is gone.
    Ended,
    /// A VM process: its control socket, and its standard error, which the caller puts in place.
    Vm {
        /// Its end of the control socket.
        control: OwnedFd,
        /// Where its log lines go.
        stderr: OwnedFd,
    },
}

/// Says that all is prepared but the walls that are `missing`, and forks whenever the service asks;
/// not if a wall is missing and all are required. Returns in every VM process, and in the zygote
/// when the service has closed `socket`. The calling process must have one thread only.
///
/// # Errors
/// The socket's, or a message that is none.
pub fn serve(
    socket: OwnedFd,
    mode: JailMode,
    missing: Vec<MissingWall>,
) -> Result<Role, ChannelError> {
    let refusal = (mode == JailMode::Required && !missing.is_empty())
        .then(|| format!("walls are missing: {}", list_missing(&missing)));
    let own_name = rustix::thread::name();
    // Neither is worth a machine: names are for people who look at processes.
    let _ = rustix::thread::set_name(ZYGOTE_NAME);
    send(&socket, &Event::Ready { missing }, &[])?;
    loop {
        let Some((Request::Spawn { group }, fds)) = recv::<Request>(&socket)? else {
            return Ok(Role::Ended);
        };
        if let Some(message) = refusal.clone() {
            send(&socket, &Event::Failed { message }, &[])?;
            continue;
        }
        let given = match GivenFds::take(group, fds) {
            Ok(given) => given,
            Err(message) => {
                send(&socket, &Event::Failed { message }, &[])?;
                continue;
            }
        };
        match fork_sibling(given.group.as_ref().map(AsFd::as_fd)) {
            Ok(Fork::Child) => {
                // The child says it, not the zygote: of a zygote that is killed right after its
                // fork the service would not hear whom it has to reap.
                let pid = rustix::process::getpid().as_raw_nonzero().get();
                send(&socket, &Event::Spawned { pid }, &[])?;
                // Held here, it would hide the zygote's end from the service.
                drop(socket);
                let _ = own_name.map(|name| rustix::thread::set_name(&name));
                let GivenFds {
                    control, stderr, ..
                } = given;
                return Ok(Role::Vm { control, stderr });
            }
            Ok(Fork::Parent) => {}
            Err(error) => {
                let into = if group { " into its control group" } else { "" };
                let message = format!("fork{into}: {error}");
                send(&socket, &Event::Failed { message }, &[])?;
            }
        }
    }
}

/// The descriptors of one request.
struct GivenFds {
    control: OwnedFd,
    stderr: OwnedFd,
    group: Option<OwnedFd>,
}

impl GivenFds {
    fn take(has_group: bool, fds: Vec<OwnedFd>) -> Result<Self, String> {
        let (count, wanted) = (fds.len(), 2 + usize::from(has_group));
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next(), fds.next()) {
            (Some(control), Some(stderr), group) if count == wanted => Ok(Self {
                control,
                stderr,
                group,
            }),
            _ => Err(format!(
                "{count} descriptors came along, {wanted} are needed"
            )),
        }
    }
}
