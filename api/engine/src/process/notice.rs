//! What listeners of a process hear, and why a process does not do what it is asked.

use bytes::Bytes;
use link::OutputChannel;
use std::time::Duration;
use wire::ProcessEnd;

/// What a listener hears of a process, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessNotice {
    /// It listens from now on; always the first.
    Started {
        /// The process's id in the guest.
        pid: u32,
    },
    /// The process wrote.
    Output(OutputChannel, Bytes),
    /// The process ended; nothing follows.
    Ended(ProcessEnd),
    /// The listener took nothing for this long while the process wrote, and hears no more of it;
    /// the process goes on.
    CutOff {
        /// The process.
        pid: u32,
        /// How long the process was held up.
        after: Duration,
    },
    /// What became of the process is not known; nothing follows.
    Lost(String),
}

/// Why a process does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// No process has this id.
    #[error("process with pid {0} not found")]
    NoPid(u32),
    /// No process has this tag.
    #[error("process with tag {0} not found")]
    NoTag(String),
    /// Neither id nor tag is given.
    #[error("no process is selected by pid or tag")]
    NoSelector,
    /// As many listen as may.
    #[error("process {pid} has {max} listeners already")]
    TooManyListeners {
        /// The process.
        pid: u32,
        /// The limit.
        max: usize,
    },
    /// Standard input is given to a process that has a terminal.
    #[error("the process has a terminal; send the input to that")]
    HasTerminal,
    /// A process without standard input is fed.
    #[error("standard input is not enabled; start the process with it")]
    NoStdin,
    /// Input for a terminal is given to a process without one.
    #[error("the process has no terminal")]
    NoTerminal,
    /// Its standard input has been closed.
    #[error("standard input is closed")]
    StdinClosed,
    /// It has ended.
    #[error("process with pid {0} has ended")]
    HasEnded(u32),
    /// The input of a terminal is to be closed.
    #[error("the input of a terminal cannot be closed: send Ctrl+D (0x04) instead")]
    TerminalStaysOpen,
}
