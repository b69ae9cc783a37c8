//! Bringing all devices to a standstill, saving them, and loading what was saved.
//!
//! ```text
//!  LoopControl::quiesce --> each turn: devices settle instead of working
//!                             |  all still, all interrupts raised        2 s are over
//!                             +------------> Host::quiesced(Ok) / (Err) <----+
//!                                               |
//!                                          work goes on
//! ```

use super::{EventLoop, Host, LoopControl, LoopError, Slot, SlotState, queue};
use crate::device::{Context, Next};
use crate::mmio::Loaded;
use crate::state::{
    DeviceV1, Invalid, LinkAfter, LoadError, SaveError, SavedDevices, SlotV1, decode,
};
use std::mem;
use std::time::{Duration, Instant};
use virtio_queue::QueueState;

/// The longest the loop waits for its devices to be still.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

impl Slot {
    /// Nothing that is saved changes any more unless the driver does something.
    fn still(&self) -> bool {
        match self.state {
            SlotState::Running => self.device.still(),
            SlotState::Idle | SlotState::Failed => self.device.drained(),
            SlotState::Resetting => false,
        }
    }

    fn save(&self, memory: &crate::Memory) -> Result<Vec<u8>, postcard::Error> {
        let running = self.state == SlotState::Running;
        let live = if running {
            self.device.queues()
        } else {
            Vec::new()
        };
        postcard::to_allocvec(&SlotV1 {
            device: self.device.save(running),
            window: self.mmio.save(&live, memory),
        })
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

    /// Tells the host when everything is still, or when that takes too long.
    pub(super) fn settled(
        &mut self,
        until: Instant,
        now: Instant,
        host: &mut dyn Host,
        control: &mut LoopControl,
    ) -> Next {
        let restless = self.slots.iter().position(|slot| !slot.still());
        let still = match self.standstill(restless, until, now) {
            Ok(still) => still,
            Err(next) => return next,
        };
        self.quiescing = None;
        host.quiesced(still.and_then(|()| self.save()), control);
        Next::Again
    }

    /// Whether it is time for the host, which waits for `restless` until then: all is still and told,
    /// or it takes too long. Otherwise what the loop does meanwhile.
    pub(super) fn standstill(
        &mut self,
        restless: Option<usize>,
        until: Instant,
        now: Instant,
    ) -> Result<Result<(), SaveError>, Next> {
        match restless {
            None if self.ring.all_submitted() => Ok(Ok(())),
            // The last interrupts have to be raised.
            None => Err(Next::Again),
            Some(_) if now < until => Err(Next::Wait),
            Some(index) => Ok(Err(SaveError::NotStill {
                device: self.name(index),
                after: TIMEOUT,
            })),
        }
    }

    pub(super) fn name(&self, index: usize) -> String {
        let kind = self.slots.get(index).map_or("device", |s| s.device.kind());
        format!("{kind} {index}")
    }

    fn save(&self) -> Result<SavedDevices, SaveError> {
        let blob = |(index, slot): (usize, &Slot)| {
            slot.save(&self.memory).map_err(|source| SaveError::Encode {
                device: self.name(index),
                source,
            })
        };
        Ok(SavedDevices {
            devices: self
                .slots
                .iter()
                .enumerate()
                .map(blob)
                .collect::<Result<_, _>>()?,
            disks: self
                .slots
                .iter()
                .filter_map(|s| s.device.layers())
                .collect(),
        })
    }

    /// Takes over what [`Host::quiesced`] was given by another loop with the same devices, over a
    /// copy of the same memory. Before [`EventLoop::run`]; `devices` need not be trusted.
    ///
    /// A device that a driver had started goes on without the driver's doing: it looks at all its
    /// queues, and it interrupts once if the driver may not have seen all of its used buffers.
    ///
    /// # Errors
    /// [`LoadError`]; the loop must not be run then.
    pub fn load(&mut self, devices: &[Vec<u8>], link: LinkAfter) -> Result<(), LoadError> {
        self.begin_load(devices.len())?;
        for (index, bytes) in devices.iter().enumerate() {
            self.load_slot(index, bytes, link)?;
        }
        Ok(())
    }

    /// Takes over only what disks' parents hold, for a machine that boots. As [`EventLoop::load`] in
    /// all else.
    ///
    /// # Errors
    /// [`LoadError`]; the loop must not be run then.
    pub fn load_disks(&mut self, devices: &[Vec<u8>]) -> Result<(), LoadError> {
        self.begin_load(devices.len())?;
        for (index, bytes) in devices.iter().enumerate() {
            let device = self.name(index);
            let saved: SlotV1 = decode(bytes, &device)?;
            let Some(slot) = self.slots.get_mut(index) else {
                break;
            };
            if matches!(saved.device, DeviceV1::Block(_)) {
                let loaded = slot.device.load(saved.device, false, LinkAfter::Broken);
                loaded.map_err(|invalid| invalid.of(device))?;
            }
        }
        Ok(())
    }

    fn begin_load(&mut self, saved: usize) -> Result<(), LoadError> {
        if self.started || self.loaded {
            return Err(LoadError::Late);
        }
        self.loaded = true;
        self.check_count(saved)
    }

    pub(super) fn check_count(&self, saved: usize) -> Result<(), LoadError> {
        let present = self.slots.len();
        if saved != present {
            return Err(LoadError::Count { saved, present });
        }
        Ok(())
    }

    pub(super) fn load_slot(
        &mut self,
        index: usize,
        bytes: &[u8],
        link: LinkAfter,
    ) -> Result<(), LoadError> {
        let device = self.name(index);
        let saved: SlotV1 = decode(bytes, &device)?;
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        if saved.device.kind() != slot.device.kind() {
            let saved = saved.device.kind();
            return Err(LoadError::Kind { device, saved });
        }
        let wrong = |invalid: Invalid| invalid.of(device.clone());
        let loaded = slot.mmio.load(&saved.window).map_err(wrong)?;
        let running = matches!(loaded, Loaded::Running { .. });
        match loaded {
            Loaded::Idle => {}
            Loaded::Failed => {
                slot.state = SlotState::Failed;
                slot.owed = true;
            }
            Loaded::Running { queues, unseen } => {
                slot.owed = unseen;
                self.start_loaded(index, queues).map_err(wrong)?;
            }
        }
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        slot.device.load(saved.device, running, link).map_err(wrong)
    }

    fn start_loaded(&mut self, index: usize, queues: Vec<QueueState>) -> Result<(), Invalid> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        let valid = |(number, state): (usize, QueueState)| {
            queue(state, &self.memory)
                .map_err(|error| Invalid(format!("queue {number} with {state:?}: {error}")))
        };
        let queues: Vec<_> = queues
            .into_iter()
            .enumerate()
            .map(valid)
            .collect::<Result<_, _>>()?;
        let mut cx = Context {
            ring: &mut self.ring,
            memory: &self.memory,
            mmio: &slot.mmio,
            index,
            metrics: &self.metrics,
            link_closed: &mut self.link_closed,
            now: Instant::now(),
        };
        slot.device
            .start(queues, &mut cx)
            .map_err(|_| Invalid("a queue that it needs is missing".into()))?;
        slot.state = SlotState::Running;
        Ok(())
    }

    /// Raises the interrupts that may have been lost between saving and loading.
    pub(super) fn pay_owed(&mut self) -> Result<(), LoopError> {
        for index in 0..self.slots.len() {
            if mem::take(&mut self.slots[index].owed) {
                self.with(index, Instant::now(), |_, cx| cx.interrupt())?;
            }
        }
        Ok(())
    }
}
