//! One network process: its start, its messages, its end.

use crate::machine::control_group::ControlGroup;
use crate::machine::group_tree::NoGroup;
use crate::machine::name::MachineName;
use crate::machine::{ready, stderr};
use crate::network::frames::FrameSocket;
use control::{ChannelError, HeaderRules, JailMode, NetEvent, NetPolicy, NetRequest, NetSpec};
use rustix::process::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Users of network processes are numbered from here, so that no two that run are one user; far
/// from the numbers of people, services, and VM processes.
const FIRST_USER: u32 = 0x7400_0000;
/// How many there are before they begin anew.
const USERS: u32 = 1 << 20;

/// How long one may take to end once nobody talks to it.
const GRACE: Duration = Duration::from_secs(1);

/// Why a network process does not serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    /// It was not started.
    #[error("Starting {program} failed")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It would be in no control group.
    #[error(transparent)]
    Group(#[from] NoGroup),
    /// The host's addresses, which are to be denied, are not known.
    #[error("Listing the host's addresses failed")]
    Host(#[source] io::Error),
    /// What hosts are verified with cannot be read.
    #[error("Reading the certificate authorities failed (network.extra_roots is {extra:?})")]
    Roots {
        /// The operator's own.
        extra: Option<PathBuf>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not heard.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It has ended.
    #[error("It ended: {0}")]
    Ended(String),
}

/// A process of `hatchery-net`, which is killed when this is dropped.
pub(super) struct NetworkProcess {
    child: Child,
    control: AsyncFd<OwnedFd>,
    /// Goes last.
    group: DroppedLater,
}

/// A group that is removed by a thread which may wait for the kernel.
struct DroppedLater(Option<ControlGroup>);

impl Drop for DroppedLater {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            tokio::task::spawn_blocking(move || {
                // Its process may not have been told to end yet.
                group.kill();
                drop(group);
            });
        }
    }
}

/// Arguments that name a user of its own, which only root can give it.
fn user() -> Vec<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let user = FIRST_USER + NEXT.fetch_add(1, Ordering::Relaxed) % USERS;
    ["--uid", &user.to_string(), "--gid", &user.to_string()]
        .map(str::to_owned)
        .into()
}

impl NetworkProcess {
    /// Starts one that serves `frames` for the sandbox: that is its standard input, its messages
    /// are its standard output. It confines itself before it looks at either.
    pub(super) fn start(
        (program, jail): (&Path, JailMode),
        group: Option<ControlGroup>,
        frames: &FrameSocket,
        name: &str,
    ) -> Result<Self, NetworkError> {
        let group = DroppedLater(group);
        let start = || {
            let (ours, theirs) = control::pair()?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            let mut child = Command::new(program)
                .args(["--jail", jail.name()])
                .args(user())
                .env_clear()
                .stdin(Stdio::from(frames.as_fd().try_clone_to_owned()?))
                .stdout(Stdio::from(theirs))
                .stderr(Stdio::piped())
                // A terminal's Ctrl-C is for the service.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()?;
            if let Some(group) = &group.0 {
                let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
                group.take(pid.ok_or(io::ErrorKind::NotFound)?)?;
            }
            if let Some(log) = child.stderr.take() {
                stderr::copy_to_log(MachineName::new(name), log.into_owned_fd()?);
            }
            let control = ready::for_input(ours)?;
            Ok((child, control))
        };
        let (child, control) = start().map_err(|source| NetworkError::Start {
            program: program.display().to_string(),
            source,
        })?;
        Ok(Self {
            child,
            control,
            group,
        })
    }

    /// Says what the network is.
    pub(super) fn configure(&self, spec: NetSpec) -> Result<(), ChannelError> {
        self.send(&NetRequest::Configure(Box::new(spec)))
    }

    /// Says which headers requests get while the policy holds that is said next.
    pub(super) fn set_rules(
        &self,
        rules: HeaderRules,
        roots: &OwnedFd,
    ) -> Result<(), ChannelError> {
        let request = NetRequest::HeaderRules(Box::new(rules));
        control::send(&self.control, &request, &[roots.as_fd()])
    }

    /// Says what may be reached from now on.
    pub(super) fn set_policy(&self, policy: NetPolicy) -> Result<(), ChannelError> {
        self.send(&NetRequest::SetPolicy(Box::new(policy)))
    }

    fn send(&self, request: &NetRequest) -> Result<(), ChannelError> {
        control::send(&self.control, request, &[])
    }

    /// The next thing it says.
    pub(super) async fn event(&self) -> Result<NetEvent, NetworkError> {
        match ready::message(&self.control).await? {
            Some(event) => Ok(event),
            None => Err(NetworkError::Ended("it closed its control socket".into())),
        }
    }

    /// Sees it end: its frame socket or its control socket is closed, or else it is killed.
    ///
    /// # Errors
    /// [`NetworkError::Ended`] when it was not the end that it has when its machine is gone.
    pub(super) async fn finish(self) -> Result<(), NetworkError> {
        let Self {
            mut child,
            control,
            group,
        } = self;
        drop(control);
        let ended = match timeout(GRACE, child.wait()).await {
            Ok(ended) => ended,
            Err(_) => match child.kill().await {
                Ok(()) => child.wait().await,
                Err(error) => Err(error),
            },
        };
        drop(group);
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(NetworkError::Ended(status.to_string())),
            Err(error) => Err(NetworkError::Ended(error.to_string())),
        }
    }
}
