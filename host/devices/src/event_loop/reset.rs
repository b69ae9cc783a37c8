//! Resetting devices that are in use to a saved state, with other attachments.
//!
//! ```text
//! LoopControl::clear ─> all devices stop, sends and receives are cancelled
//!                    ─> nothing is in flight: LoopHost::cleared ─> EventLoop::reset
//! ```
//!
//! Unlike saving, nothing is waited for that a slow reader of the link could hold up: what was
//! under way is of no use to the state that follows.

use super::quiesce::TIMEOUT;
use super::{EventLoop, LoopControl, LoopError, SlotState};
use crate::device::NextTurn;
use crate::state::LoadError;
use crate::{Attachment, LoopHost};
use std::mem;
use std::time::Instant;

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

    /// Calls the host when nothing is in flight, or when that takes too long.
    pub(super) fn tell_cleared(
        &mut self,
        until: Instant,
        now: Instant,
        host: &mut dyn LoopHost,
        control: &mut LoopControl,
    ) -> NextTurn {
        let busy = self.slots.iter().position(|slot| !slot.device.cleared());
        // Interrupts of the old state, too, must not come after the new one is in place.
        let outcome = match self.outcome(busy, until, now) {
            Ok(outcome) => outcome,
            Err(next) => return next,
        };
        self.clearing = None;
        self.peer_closed = false;
        host.cleared(outcome, self, control);
        NextTurn::Again
    }

    /// Gives cleared devices a saved state, over memory that has been reset to the same point, as
    /// [`EventLoop::load`] does for new ones, and each its attachment. Disks lose all that their
    /// private layers hold. Only within [`LoopHost::cleared`]; `devices` need not be trusted.
    ///
    /// # Errors
    /// [`LoadError`]; the loop must be stopped then.
    pub fn reset(
        &mut self,
        devices: &[Vec<u8>],
        attachments: Vec<Attachment>,
    ) -> Result<(), LoadError> {
        self.check_count(devices.len())?;
        let (saved, present) = (attachments.len(), self.slots.len());
        if saved != present {
            return Err(LoadError::Count { saved, present });
        }
        for (index, attachment) in attachments.into_iter().enumerate() {
            let reset = self.slots[index].device.reset(attachment);
            reset.map_err(|source| LoadError::Reset {
                device: self.name(index),
                source,
            })?;
            match devices.get(index) {
                Some(bytes) => self.load_slot(index, bytes)?,
                None => self.slots[index].mmio.renew(),
            }
        }
        self.raise_owed().map_err(|error| LoadError::Reset {
            device: "the event loop".into(),
            source: std::io::Error::other(error),
        })
    }
}
