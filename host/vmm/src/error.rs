//! Why things fail, one enum an operation.

pub(crate) use control::chain;
use control::{ChannelError, MissingFd, SpecError};
use devices::{BlockError, LoopError};
use machine::layout;
use snapshot_format::FormatError;
use snapshot_memory::MemoryError;
use snapshot_memory::pager::PagerError;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssembleError {
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Loop(#[from] LoopError),
    #[error("The agent could not be read")]
    Agent(#[source] std::io::Error),
    #[error("The agent has over {0} bytes")]
    AgentTooLarge(u64),
    #[error(transparent)]
    Descriptor(#[from] MissingFd),
    #[error("Could not make block device {serial:?}")]
    Disk {
        serial: String,
        #[source]
        source: BlockError,
    },
    #[error("{0} devices are over {max}", max = layout::MAX_MMIO_DEVICES)]
    TooManyDevices(u32),
    #[error("An eventfd could not be had")]
    EventFd(#[source] std::io::Error),
    #[error("The base memory {what}")]
    BaseMemory { what: String },
    #[error("The machine could not be resumed")]
    Saved(#[from] SaveError),
    #[error("The devices' state was refused")]
    Devices(#[from] devices::LoadError),
    #[error("Its memory cannot be demand-paged")]
    Pager(#[from] PagerError),
    #[error("The pager cannot be watched")]
    PagerWatch(#[source] std::io::Error),
    #[error("It was saved on another kind of processor")]
    Cpu(#[from] machine::CpuMismatch),
    #[error("Could not write guest memory")]
    Memory(#[from] MemoryError),
}

/// Why a machine could not be saved, or not be resumed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error(transparent)]
    Descriptor(#[from] MissingFd),
    #[error("The contents of {asked} devices asked to be saved, {has} have any")]
    Contents { asked: usize, has: usize },
    #[error("The processors could not be paused")]
    Park(#[source] machine::Error),
    #[error("The processors' state was refused")]
    Processor(#[from] machine::Error),
    #[error("The devices' state was refused")]
    Devices(#[from] devices::SaveError),
    #[error("The machine's memory was refused")]
    Memory(#[from] MemoryError),
    #[error("The section file was refused")]
    Format(#[from] FormatError),
    #[error("Section {name:?} does not {what}")]
    Section {
        name: &'static str,
        what: &'static str,
        #[source]
        source: postcard::Error,
    },
    #[error("Could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Why a machine could not be reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResetError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Descriptor(#[from] MissingFd),
    #[error("The machine booted: it has no base memory that it could be reset to")]
    Booted,
    #[error(
        "The machine's memory is demand-paged: it has no base memory that it could be reset to"
    )]
    DemandPaged,
    #[error("A state of {asked} {what} was given, the machine has {has}")]
    Count {
        what: &'static str,
        asked: usize,
        has: usize,
    },
    #[error("The state was refused")]
    State(#[from] SaveError),
    #[error("The memory was refused")]
    Memory(#[from] MemoryError),
    #[error("The processors were refused")]
    Machine(#[from] machine::Error),
    #[error("The devices could not be cleared")]
    Busy(#[source] devices::SaveError),
    #[error("The devices' state was refused")]
    Devices(#[from] devices::LoadError),
}

/// Why the process could not do its work to the end. What concerns the sandbox goes to the service
/// as an event; this is for the case that there is nobody to tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    #[error("The control socket does not work")]
    Control(#[from] ChannelError),
    #[error("A control message came out of turn: {0}")]
    OutOfTurn(String),
    #[error("The machine could not be built: {0}")]
    Build(String),
    #[error("Could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}
