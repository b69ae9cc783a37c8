//! What can go wrong.

/// What could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call filter does not apply.
    #[error("The system call filter cannot be applied")]
    Filter(#[source] seccompiler::Error),
    /// A list of system calls cannot be a filter.
    #[error("The list of system calls makes no filter: {0}")]
    Unfit(String),
    /// A file system restriction cannot be applied.
    #[error("Landlock cannot be applied")]
    Landlock(#[source] landlock::RulesetError),
    /// Another restriction failed.
    #[error("Could not {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}
