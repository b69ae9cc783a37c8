//! What belongs to one kind of device only, as it passes through code that knows no kinds.

use std::any::Any;
use std::fs::File;
use std::{fmt, io};

/// The files and sockets that a device begins with when the machine is reset. Each kind of device
/// with an attachment has a type for it, which becomes this one by `into`; see
/// [`crate::VsockLink`] and [`crate::DiskParent`].
#[derive(Debug)]
pub struct Attachment(Box<dyn Any + Send>);

impl Attachment {
    /// For a device that takes none.
    #[must_use]
    pub fn none() -> Self {
        Self::new(())
    }

    pub(crate) fn new(value: impl Any + Send) -> Self {
        Self(Box::new(value))
    }

    /// The value of the device's own kind.
    pub(crate) fn take<T: Any>(self) -> io::Result<T> {
        let value = self.0.downcast().map_err(|_| {
            let what = "The attachment is of another kind of device";
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        Ok(*value)
    }
}

/// What a device holds besides its state, at the point where it was saved: valid during
/// [`crate::LoopHost::quiesced`] only, as the device changes the same files afterwards.
pub trait Contents: fmt::Debug + Send {
    /// Blocks of 4096 bytes that are to be copied.
    fn blocks(&self) -> u64;

    /// Makes `to`, an empty file open for reading and writing, what a device that loads the saved
    /// state needs. The number of blocks copied. Nothing is synced.
    ///
    /// # Errors
    /// `to` is not empty, or a file operation failed; `to` is incomplete then.
    fn write_to(&self, to: &File) -> io::Result<u64>;
}
