//! How calls on a link fail.

use wire::{ErrorCode, ResetCode};

/// What the agent says about a request it could not carry out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AgentRefusal {
    /// What kind of failure.
    pub code: ErrorCode,
    /// The guest kernel's number; 0 when it was not involved.
    pub errno: i32,
    /// What was tried.
    pub message: String,
}

/// Why a link could not be made, or a call on it failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection to the guest agent has ended. Nothing will ever succeed on this link.
    #[error("The link to the guest agent is closed: {0}")]
    Closed(String),
    /// The agent speaks another version of the protocol.
    #[error(
        "The guest agent speaks wire version {theirs}, this server {}; use an agent of the same \
         build",
        wire::PROTOCOL_VERSION
    )]
    Version {
        /// The agent's version.
        theirs: u16,
    },
    /// The agent answered with an error.
    #[error("The guest agent refused")]
    Refused(#[from] AgentRefusal),
    /// The agent gave the stream up.
    #[error("The guest agent gave the stream up ({code:?}): {message}")]
    Reset {
        /// Why, for programs.
        code: ResetCode,
        /// Why, for people.
        message: String,
    },
    /// The request has a field that the protocol cannot carry: too long, or with a NUL byte.
    #[error("The request cannot be sent to the guest")]
    Unsendable(#[from] wire::EncodeError),
    /// The agent said something that makes no sense at this point of a stream.
    #[error("The guest agent answered {request} with {got}")]
    Unexpected {
        /// What was asked.
        request: &'static str,
        /// What came.
        got: String,
    },
    /// As many streams as there may be are open: no process begins, and another request has waited
    /// its time.
    #[error(
        "No more than {} processes and transfers may be open on a sandbox, and so many are; end \
         some first",
        wire::MAX_STREAMS
    )]
    Busy,
    /// As many connections to ports as there may be are open.
    #[error(
        "No more than {0} connections to ports may be open on a sandbox, and so many are: close \
         some, or raise limits.max_port_connections"
    )]
    PortsBusy(usize),
    /// The agent is of a time before this request.
    #[error(
        "The guest agent of this sandbox is older than this server and cannot {0}: it was saved by \
         an older version; create a new sandbox"
    )]
    OldAgent(&'static str),
    /// More came than this server is willing to hold.
    #[error("The answer has more than {0} entries; ask for less, for example a smaller depth")]
    TooMany(usize),
    /// The same, of few entries that are long.
    #[error("The answer has more than {0} bytes; ask for less, for example a smaller depth")]
    TooLarge(usize),
}

impl LinkError {
    /// The agent's code, if it was the agent who refused.
    #[must_use]
    pub fn refusal(&self) -> Option<&AgentRefusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether the link itself is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}
