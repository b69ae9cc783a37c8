//! Output that nobody reads any more: of programs in the background that outlive their command.
//! They keep writing without an error, and what they write is thrown away.

use crate::sys::event::Epoll;
use crate::sys::{Errno, Fd, read};
use crate::tokens::of_drain;

/// Pipes kept open; one more closes another one, the oldest unless places were used again, whose
/// writers get an error then.
const MAX_DRAINS: usize = 1024;
/// Bytes thrown away at once.
pub(crate) const DISCARD: usize = 8 * 1024;

struct OutputDrain {
    fd: Option<Fd>,
    ready: bool,
}

/// All pipes that are emptied.
pub(crate) struct DrainTable {
    table: [OutputDrain; MAX_DRAINS],
    /// Where the next pipe goes when no place is free: round and round.
    next: usize,
    /// No place at or beyond is in use.
    high: usize,
    /// Some may have bytes.
    ready: bool,
}

impl DrainTable {
    pub(crate) const fn new() -> Self {
        Self {
            table: [const {
                OutputDrain {
                    fd: None,
                    ready: false,
                }
            }; MAX_DRAINS],
            next: 0,
            high: 0,
            ready: false,
        }
    }

    /// Empties a pipe from now on, which `epoll` watches already, until nobody can write to it.
    pub(crate) fn take(&mut self, pipe: Fd, epoll: &Epoll) {
        let free = self.table[..self.high].iter().position(|d| d.fd.is_none());
        let place = free.unwrap_or(if self.high < MAX_DRAINS {
            self.high
        } else {
            let next = self.next;
            self.next = (next + 1) % MAX_DRAINS;
            next
        });
        // A pipe that cannot be watched is closed.
        if epoll.change(&pipe, of_drain(place), false, true).is_ok() {
            self.table[place] = OutputDrain {
                fd: Some(pipe),
                ready: true,
            };
            self.high = self.high.max(place + 1);
            self.ready = true;
        }
    }

    /// A pipe has bytes, or an end.
    pub(crate) fn on_event(&mut self, place: usize) {
        if let Some(drain) = self.table.get_mut(place) {
            drain.ready = true;
            self.ready = true;
        }
    }

    /// Reads once from each that may have bytes. Says whether there may be more at once.
    pub(crate) fn pump(&mut self) -> bool {
        if !self.ready {
            return false;
        }
        self.ready = false;
        for drain in &mut self.table[..self.high] {
            let Some(fd) = drain.fd.as_ref().filter(|_| drain.ready) else {
                continue;
            };
            match read(fd, &mut [0; DISCARD]) {
                Ok(0) => drain.fd = None,
                Ok(_) | Err(Errno::INTR) => self.ready = true,
                Err(Errno::AGAIN) => drain.ready = false,
                Err(_) => drain.fd = None,
            }
        }
        while self.high > 0 && self.table[self.high - 1].fd.is_none() {
            self.high -= 1;
        }
        self.ready
    }
}
