//! Saving all devices, and loading what was saved.

use super::{DeviceSlot, EventLoop, LoopError, SlotState, queue};
use crate::device::DeviceContext;
use crate::mmio::state::{LoadedWindow, WindowV1};
use crate::state::{InvalidState, LoadError, SaveError, SavedDevices, StateRefusal, take};
use std::mem;
use std::time::Instant;
use virtio_queue::QueueState;

impl DeviceSlot {
    fn save(&self, memory: &crate::Memory) -> postcard::Result<Vec<u8>> {
        let running = self.state == SlotState::Running;
        let live = if running {
            self.device.queues()
        } else {
            Vec::new()
        };
        let tag = postcard::to_allocvec(&self.device.kind().tag)?;
        let state = self.device.save(running, tag)?;
        postcard::to_extend(&self.mmio.save(&live, memory), state)
    }
}

/// The window, which is the last of a device's blob.
fn take_window(mut saved: &[u8]) -> Result<WindowV1, StateRefusal> {
    let window = take(&mut saved)?;
    if saved.is_empty() {
        Ok(window)
    } else {
        Err(StateRefusal::Trailing(saved.len()))
    }
}

impl EventLoop {
    pub(super) fn save(&self) -> Result<SavedDevices, SaveError> {
        let blob = |(index, slot): (usize, &DeviceSlot)| {
            slot.save(&self.memory).map_err(|source| SaveError::Encode {
                device: self.name(index),
                source,
            })
        };
        let slots = self.slots.iter();
        Ok(SavedDevices {
            devices: slots
                .clone()
                .enumerate()
                .map(blob)
                .collect::<Result<_, _>>()?,
            contents: slots.filter_map(|slot| slot.device.contents()).collect(),
        })
    }

    /// Takes over what [`crate::LoopHost::quiesced`] was given by another loop with the same
    /// devices, over a copy of the same memory. Before [`EventLoop::run`]; `devices` need not be
    /// trusted.
    ///
    /// A device that a driver had started resumes without the driver's doing: it looks at all its
    /// queues, and it interrupts once if the driver may not have seen all of its used buffers.
    ///
    /// # Errors
    /// [`LoadError`]; the loop must not be run then.
    pub fn load(&mut self, devices: &[Vec<u8>]) -> Result<(), LoadError> {
        self.begin_load(devices.len())?;
        for (index, bytes) in devices.iter().enumerate() {
            self.load_slot(index, bytes)?;
        }
        Ok(())
    }

    /// Takes over only the devices' contents (what the parents of disks hold), for a machine that
    /// boots. As [`EventLoop::load`] in all else.
    ///
    /// # Errors
    /// [`LoadError`]; the loop must not be run then.
    pub fn load_contents(&mut self, devices: &[Vec<u8>]) -> Result<(), LoadError> {
        self.begin_load(devices.len())?;
        for (index, bytes) in devices.iter().enumerate() {
            let mut saved = self.check_kind(index, bytes)?;
            let device = &mut self.slots[index].device;
            if device.contents().is_some() {
                let loaded = device.load(&mut saved).and_then(|()| take_window(saved));
                loaded.map_err(|refused| refused.of(self.name(index)))?;
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

    /// Refuses a state of more devices than there are, or of fewer, unless those that it does not
    /// know, the last ones, came later.
    pub(super) fn check_count(&self, saved: usize) -> Result<(), LoadError> {
        let present = self.slots.len();
        let unknown = self.slots.get(saved..);
        if unknown.is_some_and(|slots| slots.iter().all(|slot| slot.device.may_be_missing())) {
            return Ok(());
        }
        Err(LoadError::Count { saved, present })
    }

    /// What follows the tag of the device's kind in its blob.
    fn check_kind<'a>(&self, index: usize, bytes: &'a [u8]) -> Result<&'a [u8], LoadError> {
        let mut rest = bytes;
        let tag: u32 = take(&mut rest).map_err(|refused| refused.of(self.name(index)))?;
        if tag == self.slots[index].device.kind().tag {
            return Ok(rest);
        }
        let mut kinds = self.slots.iter().map(|slot| slot.device.kind());
        let saved = kinds.find(|kind| kind.tag == tag).map_or_else(
            || format!("device that this machine has none of (kind {tag})"),
            |kind| kind.name.into(),
        );
        Err(LoadError::Kind {
            device: self.name(index),
            saved,
        })
    }

    /// As [`EventLoop::load`], of one device.
    pub(super) fn load_slot(&mut self, index: usize, bytes: &[u8]) -> Result<(), LoadError> {
        let saved = self.check_kind(index, bytes)?;
        self.load_state(index, saved)
            .map_err(|refused| refused.of(self.name(index)))
    }

    fn load_state(&mut self, index: usize, mut saved: &[u8]) -> Result<(), StateRefusal> {
        let slot = &mut self.slots[index];
        slot.device.load(&mut saved)?;
        match slot.mmio.load(&take_window(saved)?)? {
            LoadedWindow::Idle => slot.device.check_idle(),
            LoadedWindow::Failed => {
                slot.state = SlotState::Failed;
                slot.interrupt_owed = true;
                slot.device.check_idle()
            }
            LoadedWindow::Running { queues, unseen } => {
                slot.interrupt_owed = unseen;
                Ok(self.start_loaded(index, queues)?)
            }
        }
    }

    /// Starts a loaded device as its driver did once.
    fn start_loaded(&mut self, index: usize, queues: Vec<QueueState>) -> Result<(), InvalidState> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        let valid = |(number, state): (usize, QueueState)| {
            queue(state, &self.memory)
                .map_err(|error| InvalidState(format!("queue {number} with {state:?}: {error}")))
        };
        let queues: Vec<_> = queues
            .into_iter()
            .enumerate()
            .map(valid)
            .collect::<Result<_, _>>()?;
        let mut cx = DeviceContext {
            ring: &mut self.ring,
            memory: &self.memory,
            mmio: &slot.mmio,
            index,
            metrics: &self.metrics,
            peer_closed: &mut self.peer_closed,
            now: Instant::now(),
        };
        slot.device
            .start(queues, &mut cx)
            .map_err(|_| InvalidState("a queue that it needs is missing".into()))?;
        slot.state = SlotState::Running;
        Ok(())
    }

    /// Raises the interrupts that may have been lost between saving and loading.
    pub(super) fn raise_owed(&mut self) -> Result<(), LoopError> {
        for index in 0..self.slots.len() {
            if mem::take(&mut self.slots[index].interrupt_owed) {
                self.with(index, Instant::now(), |_, cx| cx.interrupt())?;
            }
        }
        Ok(())
    }
}
