//! Why the engine refuses or fails: for whoever asked, in words, without a status.

use crate::quota::LimitReached;
pub use control::chain;

/// What a request to the engine comes to when it does not succeed. Says what was tried and with
/// which values; who serves a protocol maps it to that protocol's codes.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The request asks for something that cannot be: a bad name, for example.
    #[error("{0}")]
    Invalid(String),
    /// No such sandbox, now.
    #[error("Sandbox {0:?} was not found")]
    SandboxNotFound(String),
    /// No such template or snapshot.
    #[error("Template {0:?} was not found")]
    TemplateNotFound(String),
    /// The limit of sandboxes is reached.
    #[error(
        "The maximum number of concurrent sandboxes ({max}) is reached. Kill one, or raise \
         limits.max_sandboxes"
    )]
    TooManySandboxes {
        /// The limit.
        max: usize,
    },
    /// Another limit is reached, of one owner or of all.
    #[error(transparent)]
    LimitReached(#[from] LimitReached),
    /// The host is short of memory.
    #[error(
        "The host has {available} MiB of memory left, and {needed} have to be for this to begin \
         (limits.min_memory_mb, and what is to be loaded). Kill a sandbox, or come again later"
    )]
    NoMemory {
        /// What is left, MiB.
        available: u64,
        /// What has to be, MiB.
        needed: u64,
    },
    /// The volume of the data folder is almost full.
    #[error(
        "The disk of the host has {free} MiB left, and {needed} have to be for this to begin \
         (resources.disk_reserve_mb). Kill a sandbox, delete snapshots, or come again later"
    )]
    NoDisk {
        /// What is left, MiB.
        free: u64,
        /// What has to be, MiB.
        needed: u64,
    },
    /// No such checkpoint, now.
    #[error("Sandbox {sandbox_id:?} has no checkpoint {checkpoint:?}")]
    CheckpointNotFound {
        /// The sandbox.
        sandbox_id: String,
        /// The id or name, shortened.
        checkpoint: String,
    },
    /// The limit of checkpoints is reached.
    #[error(
        "The sandbox has {max} checkpoints, the most that are kept. Delete one, or raise \
         limits.max_checkpoints"
    )]
    TooManyCheckpoints {
        /// The limit.
        max: usize,
    },
    /// The sandbox is in another state than this needs.
    #[error("{0}")]
    Conflict(String),
    /// A sandbox could not be saved, and runs on; the message says why.
    #[error("The sandbox was not paused and runs on: {0}")]
    PauseFailed(String),
    /// A sandbox ended when it was to be saved; the message says what was noticed.
    #[error("The sandbox ended while it was being saved: {0}")]
    EndedMeanwhile(String),
    /// A paused sandbox could not be resumed, and stays paused; the message says why.
    #[error("The sandbox was not resumed: {0}")]
    ResumeFailed(String),
    /// A sandbox's stored state could not be removed.
    #[error("The sandbox was not killed: {0}")]
    KillFailed(String),
    /// A snapshot or checkpoint could not be removed.
    #[error("It was not deleted: {0}")]
    DeleteFailed(String),
    /// The server is shutting down.
    #[error("The server is shutting down")]
    ShuttingDown,
    /// A sandbox could not be started; the message says at which step and why.
    #[error("{0}")]
    StartFailed(String),
}

/// Most characters of an id that an error repeats.
const MAX_ID: usize = 64;

impl EngineError {
    /// [`EngineError::SandboxNotFound`] with the id, shortened.
    #[must_use]
    pub fn no_sandbox(id: &str) -> Self {
        Self::SandboxNotFound(id.chars().take(MAX_ID).collect())
    }

    /// [`EngineError::TemplateNotFound`] with the name, shortened.
    #[must_use]
    pub fn no_template(name: &str) -> Self {
        Self::TemplateNotFound(name.chars().take(MAX_ID).collect())
    }

    /// [`EngineError::CheckpointNotFound`] with the id or name, shortened.
    #[must_use]
    pub fn no_checkpoint(sandbox_id: &str, checkpoint: &str) -> Self {
        Self::CheckpointNotFound {
            sandbox_id: sandbox_id.to_owned(),
            checkpoint: checkpoint.chars().take(MAX_ID).collect(),
        }
    }
}
