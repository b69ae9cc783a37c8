//! Quiescing all devices, for saving them.
//!
//! ```text
//!  LoopControl::quiesce --> each turn: devices settle instead of working
//!                             |  all settled, all interrupts raised     2 s are over
//!                             +----------> LoopHost::quiesced(Ok) / (Err) <--+
//!                                               |
//!                                          work resumes
//! ```

use super::{DeviceSlot, EventLoop, LoopControl, LoopHost, SlotState};
use crate::device::NextTurn;
use crate::state::SaveError;
use std::mem;
use std::time::{Duration, Instant};

/// The longest the loop waits for its devices.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

impl DeviceSlot {
    /// Nothing that is saved changes any more unless the driver does something.
    fn settled(&self) -> bool {
        match self.state {
            SlotState::Running => self.device.settled(),
            SlotState::Idle | SlotState::Failed => self.device.drained(),
            SlotState::Resetting => false,
        }
    }
}

impl EventLoop {
    /// Begins if the host has asked for it; whether it has.
    pub(super) fn begin_quiesce(&mut self, control: &mut LoopControl, now: Instant) -> bool {
        let asked = mem::take(&mut control.quiesce);
        if asked && self.quiescing.is_none() {
            self.quiescing = Some(now + TIMEOUT);
            // A driver may have asked for something just before its vCPU was parked.
            self.attended = true;
        }
        asked
    }

    /// Calls the host when all devices have settled, or when that takes too long.
    pub(super) fn tell_quiesced(
        &mut self,
        until: Instant,
        now: Instant,
        host: &mut dyn LoopHost,
        control: &mut LoopControl,
    ) -> NextTurn {
        let busy = self.slots.iter().position(|slot| !slot.settled());
        let outcome = match self.outcome(busy, until, now) {
            Ok(outcome) => outcome,
            Err(next) => return next,
        };
        self.quiescing = None;
        host.quiesced(outcome.and_then(|()| self.save()), control);
        NextTurn::Again
    }

    /// Whether it is time for the host, which waits for the `busy` device until then: no device is
    /// busy and the kernel has taken every interrupt, or it takes too long. Otherwise what the loop
    /// does meanwhile.
    pub(super) fn outcome(
        &mut self,
        busy: Option<usize>,
        until: Instant,
        now: Instant,
    ) -> Result<Result<(), SaveError>, NextTurn> {
        match busy {
            None if self.ring.all_submitted() => Ok(Ok(())),
            // The last interrupts have to be raised.
            None => Err(NextTurn::Again),
            Some(_) if now < until => Err(NextTurn::Wait),
            Some(index) => Ok(Err(SaveError::Busy {
                device: self.name(index),
                after: TIMEOUT,
            })),
        }
    }
}
