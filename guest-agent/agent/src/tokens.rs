//! What the event loop waits on, as the tokens of epoll: a kind, and the place of a process.

/// What an epoll token means for a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessPort {
    Stdin,
    Out,
    Err,
}

/// The connection to the host.
pub(crate) const LINK: u64 = 1 << 32;
/// A child has ended.
pub(crate) const SIGNAL: u64 = 2 << 32;
/// A process takes input.
pub(crate) const STDIN: u64 = 3 << 32;
/// A process's output, or its terminal.
pub(crate) const OUT: u64 = 4 << 32;
/// A process's errors.
pub(crate) const ERR: u64 = 5 << 32;
/// Output that is thrown away.
pub(crate) const DRAIN: u64 = 6 << 32;
/// A connection to a port of the guest.
pub(crate) const PORT: u64 = 7 << 32;

/// The token of a process's descriptor.
pub(crate) fn of_process(process: usize, port: ProcessPort) -> u64 {
    let kind = match port {
        ProcessPort::Stdin => STDIN,
        ProcessPort::Out => OUT,
        ProcessPort::Err => ERR,
    };
    kind | u64::try_from(process).unwrap_or(0)
}

/// The token of a pipe whose bytes are thrown away.
pub(crate) fn of_drain(place: usize) -> u64 {
    DRAIN | u64::try_from(place).unwrap_or(0)
}

/// The token of a connection to a port.
pub(crate) fn of_port(place: usize) -> u64 {
    PORT | u64::try_from(place).unwrap_or(0)
}
