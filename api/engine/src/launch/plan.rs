//! A machine to be made, and what comes of it.

use crate::image::base_memory::BaseMemory;
use crate::machine::handle::VmProcess;
use crate::machine::name::MachineName;
use crate::network::FrameSocket;
use crate::restore_point::BootSource;
use crate::template::Template;
use link::Link;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A machine to be made.
#[derive(Debug)]
pub struct LaunchPlan {
    /// Its name in the log.
    pub name: MachineName,
    /// Its template.
    pub template: Arc<Template>,
    /// What it begins with.
    pub source: BootSource,
    /// A clone by which is learned what clones use first.
    pub trial: bool,
    /// What it counts for; given back when its process is reaped.
    pub slot: OwnedSemaphorePermit,
}

/// A process that has been told what to build, and our ends of what it has.
pub(super) struct PreparedMachine {
    pub(super) machine: VmProcess,
    pub(super) link: UnixStream,
    pub(super) frames: FrameSocket,
    /// Bytes of the root disk as the guest sees it.
    pub(super) disk_size: u64,
}

/// A process that has been told what to build.
#[derive(Debug)]
pub struct BuiltMachine {
    /// The VM process.
    pub machine: VmProcess,
    /// Our end of its link.
    pub stream: tokio::net::UnixStream,
    /// Our end of its network.
    pub frames: FrameSocket,
    /// The root disk as the guest sees it, bytes.
    pub disk_size: u64,
}

/// A machine that runs, with its agent on the line, not yet anybody's.
#[derive(Debug)]
pub struct LaunchedMachine {
    /// The VM process.
    pub machine: VmProcess,
    /// The agent.
    pub link: Link,
    /// Our end of its network.
    pub frames: FrameSocket,
    /// The root disk as the guest sees it, bytes.
    pub disk_size: u64,
    /// What it began at; `None` if it booted.
    pub base_memory: Option<Arc<BaseMemory>>,
}
