//! What the event loop waits on, as the tokens of epoll: a kind, and the place of a process.

use crate::procs::ProcessPort;

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

/// The token of a process's descriptor.
pub(crate) fn of_process(process: usize, port: ProcessPort) -> u64 {
    let kind = match port {
        ProcessPort::Stdin => STDIN,
        ProcessPort::Out => OUT,
        ProcessPort::Err => ERR,
    };
    kind | u64::try_from(process).unwrap_or(0)
}
