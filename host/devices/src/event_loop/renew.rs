//! Putting devices that are in use back to a saved state, with another link.
//!
//! ```text
//! LoopControl::clear ─> all devices stop, sends and receives are cancelled
//!                    ─> nothing is in flight: Host::cleared ─> EventLoop::put_back
//! ```
//!
//! Unlike saving, nothing is waited for that a slow reader of the link could hold up: what was under
//! way belongs to a machine that is about to not have been.

use super::quiesce::TIMEOUT;
use super::{EventLoop, LoopControl, LoopError, SlotState};
use crate::Host;
use crate::device::{Fresh, Next};
use crate::state::{LinkAfter, LoadError};
use std::fs::File;
use std::mem;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// A state for devices that have been cleared, and the files of that state.
#[derive(Debug)]
pub struct Beginning<'a> {
    /// As [`crate::SavedDevices::devices`]; need not be trusted.
    pub devices: &'a [Vec<u8>],
    /// The socket device's new link.
    pub link: OwnedFd,
    /// What becomes of the saved connection on it.
    pub after: LinkAfter,
    /// Each disk's parent ([`crate::BlockConfig::parent`]), in the order of the disks.
    pub parents: Vec<Option<File>>,
}

impl EventLoop {
    /// Begins if the host has asked for it.
    pub(super) fn begin_clear(
        &mut self,
        control: &mut LoopControl,
        now: Instant,
    ) -> Result<(), LoopError> {
        if !mem::take(&mut control.clear) || self.clearing.is_some() {
            return Ok(());
        }
        self.clearing = Some(now + TIMEOUT);
        for index in 0..self.slots.len() {
            self.with(index, now, |device, cx| device.clear(cx))?;
            self.slots[index].state = SlotState::Idle;
        }
        Ok(())
    }

    /// Tells the host when nothing is in flight, or when that takes too long.
    pub(super) fn cleared(
        &mut self,
        until: Instant,
        now: Instant,
        host: &mut dyn Host,
        control: &mut LoopControl,
    ) -> Next {
        let busy = self.slots.iter().position(|slot| !slot.device.cleared());
        // Interrupts of the old state, too, must not come after the new one is in place.
        let outcome = match self.standstill(busy, until, now) {
            Ok(outcome) => outcome,
            Err(next) => return next,
        };
        self.clearing = None;
        self.link_closed = false;
        host.cleared(outcome, self, control);
        Next::Again
    }

    /// Gives cleared devices a saved state, over memory that has been put back to the same moment, as
    /// [`EventLoop::load`] does for new ones. Disks lose all that their private layers hold. Only
    /// within [`Host::cleared`].
    ///
    /// # Errors
    /// [`LoadError`]; the loop must be stopped then.
    pub fn put_back(&mut self, to: Beginning<'_>) -> Result<(), LoadError> {
        self.check_count(to.devices.len())?;
        let mut fresh = Fresh {
            link: Some(to.link),
            parents: to.parents.into_iter(),
        };
        for (index, bytes) in to.devices.iter().enumerate() {
            let renewed = self.slots[index].device.renew(&mut fresh);
            renewed.map_err(|source| LoadError::Renew {
                device: self.name(index),
                source,
            })?;
            self.load_slot(index, bytes, to.after)?;
        }
        self.pay_owed().map_err(|error| LoadError::Renew {
            device: "the event loop".into(),
            source: std::io::Error::other(error),
        })
    }
}
