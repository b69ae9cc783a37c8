//! Which descriptors have something to do. All are edge-triggered: an event is told once, and holds
//! until a call says that there is nothing more.

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Most events of one wait.
const MOST: usize = 128;

/// One of a table's entries. What comes later at the same index is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FlowId {
    pub(crate) index: u32,
    /// At most 28 bits.
    pub(crate) generation: u32,
}

/// Whose a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollToken {
    /// The frames.
    Frames,
    /// The service.
    Control,
    /// A TCP flow's host socket.
    Tcp(FlowId),
    /// A UDP or echo flow's host socket.
    Udp(FlowId),
    /// A question's socket to a name server.
    Dns(FlowId),
}

const KIND_SHIFT: u32 = 60;
const GENERATION_SHIFT: u32 = 32;
/// Generations begin anew after this many.
pub(crate) const GENERATIONS: u32 = 1 << (KIND_SHIFT - GENERATION_SHIFT);

impl PollToken {
    fn pack(self) -> u64 {
        let (kind, id) = match self {
            Self::Frames => (0, None),
            Self::Control => (1, None),
            Self::Tcp(id) => (2, Some(id)),
            Self::Udp(id) => (3, Some(id)),
            Self::Dns(id) => (4, Some(id)),
        };
        let id = id.map_or(0, |id| {
            u64::from(id.generation) << GENERATION_SHIFT | u64::from(id.index)
        });
        kind << KIND_SHIFT | id
    }

    fn unpack(bits: u64) -> Option<Self> {
        let index = u32::try_from(bits & u64::from(u32::MAX)).ok()?;
        let generation = u64::from(GENERATIONS - 1) & bits >> GENERATION_SHIFT;
        let generation = u32::try_from(generation).ok()?;
        let id = FlowId { index, generation };
        match bits >> KIND_SHIFT {
            0 => Some(Self::Frames),
            1 => Some(Self::Control),
            2 => Some(Self::Tcp(id)),
            3 => Some(Self::Udp(id)),
            4 => Some(Self::Dns(id)),
            _ => None,
        }
    }
}

/// Something to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollEvent {
    pub(crate) token: PollToken,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The other side will send no more.
    pub(crate) ended: bool,
}

/// An epoll instance.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("epoll", &self.epoll)
            .finish_non_exhaustive()
    }
}

/// What is watched of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    Read,
    ReadWrite,
}

impl Watch {
    fn flags(self) -> EventFlags {
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        match self {
            Self::Read => flags,
            Self::ReadWrite => flags | EventFlags::OUT,
        }
    }
}

impl Poller {
    /// One that watches nothing.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(MOST),
        })
    }

    /// Watches a descriptor until it is closed.
    pub(crate) fn add(&self, fd: impl AsFd, token: PollToken, watch: Watch) -> Result<(), Errno> {
        let data = EventData::new_u64(token.pack());
        epoll::add(&self.epoll, fd, data, watch.flags())
    }

    /// Watches something else of it; what is there already is told again.
    pub(crate) fn change(
        &self,
        fd: impl AsFd,
        token: PollToken,
        watch: Watch,
    ) -> Result<(), Errno> {
        let data = EventData::new_u64(token.pack());
        epoll::modify(&self.epoll, fd, data, watch.flags())
    }

    /// Waits until there is something to do, or for `limit`; at most 128 events.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<Vec<PollEvent>, Errno> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            limit.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let told = self.events.iter().filter_map(|event| {
            let flags = event.flags;
            let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            Some(PollEvent {
                token: PollToken::unpack(event.data.u64())?,
                readable: broken || flags.contains(EventFlags::IN),
                writable: broken || flags.contains(EventFlags::OUT),
                ended: broken || flags.contains(EventFlags::RDHUP),
            })
        });
        Ok(told.collect())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_token_survives_its_packing() {
        let id = FlowId {
            index: u32::MAX,
            generation: GENERATIONS - 1,
        };
        let zero = FlowId {
            index: 0,
            generation: 0,
        };
        for token in [
            PollToken::Frames,
            PollToken::Control,
            PollToken::Tcp(id),
            PollToken::Tcp(zero),
            PollToken::Udp(id),
            PollToken::Dns(id),
        ] {
            assert_eq!(PollToken::unpack(token.pack()), Some(token));
        }
    }
}
