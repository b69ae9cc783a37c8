//! Descriptors beside a message, each under a name.
//!
//! Whoever puts a descriptor beside a message gets its [`FdName`] and writes that into the field it
//! is for; whoever receives the message takes the descriptor by the field's value. No message can
//! be written with a position that somebody counted.

use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The name of a descriptor that comes with the same packet. Only [`Descriptors::add`] makes one;
/// in a message that was received it may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdName(u8);

impl From<FdName> for usize {
    /// Its position in the packet.
    fn from(name: FdName) -> Self {
        name.0.into()
    }
}

/// The descriptors that go with one message.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<OwnedFd>);

impl From<Vec<OwnedFd>> for Descriptors {
    /// With those of a packet that was received, under the names that they have in it.
    fn from(fds: Vec<OwnedFd>) -> Self {
        Self(fds)
    }
}

impl From<Descriptors> for Vec<OwnedFd> {
    fn from(fds: Descriptors) -> Self {
        fds.0
    }
}

impl Descriptors {
    /// Adds one; its name for the message.
    pub fn add(&mut self, fd: impl Into<OwnedFd>) -> FdName {
        // A message takes a dozen at most; one with too many is refused when it is sent.
        let name = u8::try_from(self.0.len()).unwrap_or(u8::MAX);
        self.0.push(fd.into());
        FdName(name)
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// For [`crate::send`].
    #[must_use]
    pub fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// A message names a descriptor that it did not bring, or one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Descriptor index {index} is used twice or is not among the {count} that came along")]
pub struct MissingFd {
    /// The name's position.
    pub index: usize,
    /// How many descriptors came with the packet.
    pub count: usize,
}

/// The descriptors that came with one message; each can be taken once.
#[derive(Debug)]
pub struct ReceivedFds(Vec<Option<OwnedFd>>);

impl From<Vec<OwnedFd>> for ReceivedFds {
    fn from(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }
}

impl ReceivedFds {
    /// The descriptor of this name.
    ///
    /// # Errors
    /// There is none, or it was taken before.
    pub fn take(&mut self, name: FdName) -> Result<OwnedFd, MissingFd> {
        let count = self.0.len();
        let index = usize::from(name);
        let fd = self.0.get_mut(index).and_then(Option::take);
        fd.ok_or(MissingFd { index, count })
    }
}

/// Checks that all `names` are among `count` descriptors, and each is there once.
pub(crate) fn check_names(
    names: impl IntoIterator<Item = FdName>,
    count: usize,
) -> Result<(), MissingFd> {
    let mut used = [false; u8::MAX as usize + 1];
    for name in names {
        let index = usize::from(name);
        if used[index] || index >= count {
            return Err(MissingFd { index, count });
        }
        used[index] = true;
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    fn event() -> OwnedFd {
        crate::pair().unwrap().0
    }

    #[test]
    fn each_descriptor_is_taken_once_by_its_name() {
        use std::os::fd::AsRawFd;
        let mut fds = Descriptors::default();
        let (first, second) = (event(), event());
        let numbers = [&first, &second].map(AsRawFd::as_raw_fd);
        let names = [fds.add(first), fds.add(second)];
        assert_eq!((fds.count(), fds.borrow().len()), (2, 2));
        let mut received = ReceivedFds::from(Vec::from(fds));
        assert_eq!(received.take(names[1]).unwrap().as_raw_fd(), numbers[1]);
        let twice = MissingFd { index: 1, count: 2 };
        assert_eq!(received.take(names[1]).unwrap_err(), twice);
        assert_eq!(received.take(names[0]).unwrap().as_raw_fd(), numbers[0]);
        received.take(FdName(2)).unwrap_err();
    }

    #[test]
    fn names_are_checked_as_a_whole() {
        let check = |names: &[u8], count| check_names(names.iter().map(|n| FdName(*n)), count);
        assert_eq!(check(&[0, 2, 1], 3), Ok(()));
        assert_eq!(check(&[255], 256), Ok(()));
        assert_eq!(check(&[0, 1], 1), Err(MissingFd { index: 1, count: 1 }));
        assert_eq!(check(&[1, 1], 2), Err(MissingFd { index: 1, count: 2 }));
    }
}
