//! Credit: how much a sender may still send, and what a receiver owes.

use crate::limits::MAX_WINDOW;
use core::fmt;

/// A window was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowError {
    /// Bytes sent or granted.
    pub bytes: u32,
    /// Bytes that would have been in order.
    pub allowed: u32,
}

impl fmt::Display for FlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes where the window allows {}",
            self.bytes, self.allowed
        )
    }
}

impl core::error::Error for FlowError {}

/// The sender's side of one direction of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow {
    available: u32,
}

impl SendWindow {
    /// A window of `initial` bytes.
    #[must_use]
    pub const fn new(initial: u32) -> Self {
        Self { available: initial }
    }

    /// Bytes that may be sent now.
    #[must_use]
    pub const fn available(&self) -> u32 {
        self.available
    }

    /// Accounts for bytes being sent.
    ///
    /// # Errors
    /// When they are more than [`Self::available`]; nothing changes then.
    pub const fn take(&mut self, bytes: u32) -> Result<(), FlowError> {
        if bytes > self.available {
            return Err(FlowError {
                bytes,
                allowed: self.available,
            });
        }
        self.available -= bytes;
        Ok(())
    }

    /// Adds a grant of the peer.
    ///
    /// # Errors
    /// When the window would exceed [`MAX_WINDOW`]; nothing changes then.
    pub const fn grant(&mut self, bytes: u32) -> Result<(), FlowError> {
        let allowed = MAX_WINDOW.saturating_sub(self.available);
        if bytes > allowed {
            return Err(FlowError { bytes, allowed });
        }
        self.available += bytes;
        Ok(())
    }
}

/// The receiver's side of one direction of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecvWindow {
    open: u32,
    owed: u32,
    threshold: u32,
}

impl RecvWindow {
    /// A window of `initial` bytes; grants are worth a frame from half of it on.
    #[must_use]
    pub const fn new(initial: u32) -> Self {
        Self {
            open: initial,
            owed: 0,
            threshold: initial / 2,
        }
    }

    /// Bytes the peer may still send.
    #[must_use]
    pub const fn open(&self) -> u32 {
        self.open
    }

    /// Accounts for bytes that arrived.
    ///
    /// # Errors
    /// When the peer had no credit for them: reset the stream.
    pub const fn receive(&mut self, bytes: u32) -> Result<(), FlowError> {
        if bytes > self.open {
            return Err(FlowError {
                bytes,
                allowed: self.open,
            });
        }
        self.open -= bytes;
        Ok(())
    }

    /// Accounts for bytes that left the receiver's buffer.
    pub const fn consume(&mut self, bytes: u32) {
        self.owed = self.owed.saturating_add(bytes);
    }

    /// The grant to send now, if it is worth a frame.
    pub const fn take_grant(&mut self) -> Option<u32> {
        if self.owed == 0 || self.owed < self.threshold {
            return None;
        }
        let bytes = self.owed;
        self.owed = 0;
        self.open = self.open.saturating_add(bytes);
        Some(bytes)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_sender_cannot_exceed_its_window() {
        let mut w = SendWindow::new(10);
        w.take(10).unwrap();
        assert_eq!(
            w.take(1),
            Err(FlowError {
                bytes: 1,
                allowed: 0
            })
        );
        w.grant(5).unwrap();
        assert_eq!(w.available(), 5);
        w.grant(MAX_WINDOW).unwrap_err();
        assert_eq!(w.available(), 5);
    }

    #[test]
    fn a_receiver_grants_what_it_consumed_and_no_more() {
        let mut r = RecvWindow::new(100);
        r.receive(60).unwrap();
        r.receive(41).unwrap_err();
        r.consume(49);
        assert_eq!(r.take_grant(), None);
        r.consume(1);
        assert_eq!(r.take_grant(), Some(50));
        assert_eq!(r.open(), 90);
        assert_eq!(r.take_grant(), None);
    }
}
