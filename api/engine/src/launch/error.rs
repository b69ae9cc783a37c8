//! Why a machine could not be launched.

use crate::files::FileError;
use crate::machine::end::MachineEnd;
use crate::machine::group_tree::NoGroup;
use crate::machine::spawner::SpawnError;
use control::{ChannelError, SpecError};
use link::LinkError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a machine could not be launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A program, image or saved machine's file cannot be opened.
    #[error(transparent)]
    File(#[from] FileError),
    /// The link's socket cannot be watched.
    #[error("Cannot watch the link's socket: {0}")]
    Socket(io::Error),
    /// The template's disk is smaller than its image.
    #[error("disk_size_mb = {disk_mb} is less than the image {path} of {image} bytes")]
    DiskTooSmall {
        /// The setting.
        disk_mb: u64,
        /// The image.
        path: PathBuf,
        /// Its size.
        image: u64,
    },
    /// The private layer cannot be made.
    #[error("Cannot make a disk layer in {path}: {source}")]
    Layer {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a saved machine's memory is made of.
    #[error("Cannot put a saved machine's memory together: {0}")]
    Memory(snapshot_memory::MemoryError),
    /// The VM program does not start.
    #[error("Cannot start {path}: {source}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        source: SpawnError,
    },
    /// The VM process would have no limits.
    #[error(transparent)]
    NoGroup(#[from] NoGroup),
    /// The template asks for what no machine can have.
    #[error("The template makes no valid machine: {0}")]
    Spec(#[from] SpecError),
    /// The control socket failed.
    #[error("The VM process could not be told what to do: {0}")]
    Channel(#[from] ChannelError),
    /// The machine ended before it was ready.
    #[error("The sandbox ended while {doing}: {end}")]
    Ended {
        /// The step.
        doing: &'static str,
        /// Why.
        end: Arc<MachineEnd>,
    },
    /// A step took too long.
    #[error("Gave up {doing} after {seconds} s; the log has the end of the guest's console")]
    Timeout {
        /// The step.
        doing: &'static str,
        /// The bound.
        seconds: u64,
    },
    /// The agent spoke something else, or the link broke.
    #[error("The guest agent's link failed while {doing}: {source}")]
    Link {
        /// The step.
        doing: &'static str,
        /// Why.
        source: LinkError,
    },
    /// No random bytes for the guest.
    #[error("The host gave no random bytes for the guest: {0}")]
    Entropy(String),
    /// The task that makes files and processes broke.
    #[error("The launch was given up")]
    GivenUp,
}
