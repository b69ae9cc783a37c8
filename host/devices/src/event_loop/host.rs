//! The owner of the loop, as the loop sees it.

use super::EventLoop;
use crate::state::{SaveError, SavedDevices};
use std::time::Instant;

/// A name the owner of the loop gives to one of its own descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchId(pub u32);

/// The owner of the loop: what the loop calls for events that no device handles. All calls come on
/// the loop's thread, one at a time.
pub trait Host {
    /// The watched descriptor became readable, or its peer hung up, since the last call. It is told
    /// once per edge: read a non-blocking descriptor until it would block. An eventfd need not be
    /// read at all.
    fn ready(&mut self, watch: WatchId, control: &mut LoopControl);

    /// When [`Host::tick`] wants to be called, if at all. Asked after each turn.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn tick(&mut self, _now: Instant, _control: &mut LoopControl) {}

    /// The other end of a device's attachment was closed or failed, as the service's end of the socket
    /// device's link; the device has told its guest.
    fn peer_closed(&mut self, _control: &mut LoopControl) {}

    /// The answer to [`LoopControl::quiesce`]: all devices are still and their interrupts raised.
    /// Only during this call nothing touches guest memory or disks: what belongs to one moment with
    /// `devices` must be read now. Afterwards the devices work as before, also after an error.
    fn quiesced(&mut self, _devices: Result<SavedDevices, SaveError>, _control: &mut LoopControl) {}

    /// The answer to [`LoopControl::clear`]: nothing that the devices had begun is left, and the old
    /// link is not used any more. They do nothing until [`EventLoop::reset`] gives them a state.
    /// After an error something is still under way: the loop must be stopped.
    fn cleared(
        &mut self,
        _outcome: Result<(), SaveError>,
        _event_loop: &mut EventLoop,
        _control: &mut LoopControl,
    ) {
    }
}

/// What a [`Host`] may ask of the loop while it is called.
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

    /// Brings the devices to a standstill: they take nothing more from the guest and end what they
    /// have begun. Then, at most 2 s later, [`Host::quiesced`] is called once. The vCPUs must be
    /// parked before and until that call.
    pub fn quiesce(&mut self) {
        self.quiesce = true;
    }

    /// Stops all devices and the link, and drops what they have begun. There is no way back. Then,
    /// at most 2 s later, [`Host::cleared`] is called once. The vCPUs must be parked before and until
    /// that call.
    pub fn clear(&mut self) {
        self.clear = true;
    }
}
