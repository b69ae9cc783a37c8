//! The owner of the loop, as the loop sees it.
//!
//! Circle: the loop calls its owner, and [`LoopHost::cleared`] lends the owner the loop to reset
//! the devices.

use super::EventLoop;
use crate::state::{SaveError, SavedDevices};
use std::time::Instant;

/// A name the owner of the loop gives to one of its own descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchId(pub u32);

/// The owner of the loop: what the loop calls for events that no device handles. All calls come on
/// the loop's thread, one at a time.
pub trait LoopHost {
    /// The watched descriptor became readable, or its peer hung up, since the last call. It is
    /// called once per edge: read a non-blocking descriptor until it would block. An eventfd need
    /// not be read at all.
    fn ready(&mut self, watch: WatchId, control: &mut LoopControl);

    /// When [`LoopHost::tick`] wants to be called, if at all. Asked after each turn.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn tick(&mut self, _now: Instant, _control: &mut LoopControl) {}

    /// The other end of a device's attachment was closed or failed, as the service's end of the
    /// socket device's link; the device has notified its guest.
    fn peer_closed(&mut self, _control: &mut LoopControl) {}

    /// The answer to [`LoopControl::quiesce`]: all devices have settled and their interrupts are
    /// raised. Only during this call nothing touches guest memory or disks: what is to be
    /// consistent with `devices` must be read now. Afterwards the devices work as before, also
    /// after an error.
    fn quiesced(&mut self, _devices: Result<SavedDevices, SaveError>, _control: &mut LoopControl) {}

    /// The answer to [`LoopControl::clear`]: nothing of the devices is in flight, and the old
    /// link is not used any more. They do nothing until [`EventLoop::reset`] gives them a state.
    /// After an error something is still in flight: the loop must be stopped.
    fn cleared(
        &mut self,
        _outcome: Result<(), SaveError>,
        _event_loop: &mut EventLoop,
        _control: &mut LoopControl,
    ) {
    }
}

/// What a [`LoopHost`] may ask of the loop while it is called.
#[derive(Debug, Default)]
pub struct LoopControl {
    pub(crate) stop: bool,
    pub(crate) quiesce: bool,
    pub(crate) clear: bool,
}

impl LoopControl {
    /// Makes [`EventLoop::run`] return at the end of this turn.
    pub fn stop(&mut self) {
        self.stop = true;
    }

    /// Quiesces the devices: they take nothing more from the guest and finish what is in flight.
    /// Then, at most 2 s later, [`LoopHost::quiesced`] is called once. The vCPUs must be parked
    /// before and until that call.
    pub fn quiesce(&mut self) {
        self.quiesce = true;
    }

    /// Stops all devices and drops what is in flight. What follows is a reset or the end. Then, at
    /// most 2 s later, [`LoopHost::cleared`] is called once. The vCPUs must be parked before and
    /// until that call.
    pub fn clear(&mut self) {
        self.clear = true;
    }
}
