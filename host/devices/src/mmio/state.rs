//! The saved form of a register window and its queues, and the gate back.

use super::{F_EVENT_IDX, MmioWindow, WindowPhase, WindowState, status};
use crate::Memory;
use crate::interrupt::{CONFIG_CHANGE, USED_BUFFER};
use crate::state::InvalidState;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// A register window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WindowV1 {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    interrupt_status: u32,
    /// There may be used buffers that the driver has not looked at.
    unseen: bool,
    queues: Vec<QueueV1>,
}

/// A queue: what the driver wrote, and how far the device has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct QueueV1 {
    size: u16,
    ready: bool,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

/// What a loaded device does next.
#[derive(Debug)]
pub(crate) enum LoadedWindow {
    /// It waits for its driver.
    Idle,
    /// It serves these queues, which are to be checked against memory.
    Running {
        queues: Vec<QueueState>,
        /// The driver is to be interrupted once.
        unseen: bool,
    },
    /// Its driver has to reset it.
    Failed,
}

/// Whether the driver may not have looked at all buffers that were put into the used rings. An
/// acknowledged interrupt does not tell (see [`MmioWindow::acknowledge_eventfd`]); a driver with
/// `EVENT_IDX` tells in `used_event` how far it has come when it wants the next interrupt.
fn unseen(live: &[Option<&Queue>], memory: &Memory, interrupt_status: u32) -> bool {
    live.iter().flatten().any(|queue| {
        if !queue.event_idx_enabled() {
            return interrupt_status != 0;
        }
        let at = queue.avail_ring() + 4 + 2 * u64::from(queue.size());
        let used_event = memory.load::<u16>(GuestAddress(at), Ordering::Relaxed);
        used_event.map_or(true, |event| u16::from_le(event) != queue.next_used())
    })
}

impl MmioWindow {
    /// The window with the positions of `live`, the queues by number that are being served.
    pub(crate) fn save(&self, live: &[Option<&Queue>], memory: &Memory) -> WindowV1 {
        let state = self.lock();
        let queue = |(index, q): (usize, &QueueState)| {
            let live = live.get(index).copied().flatten();
            QueueV1 {
                size: q.size,
                ready: q.ready,
                event_idx: q.event_idx_enabled,
                next_avail: live.map_or(q.next_avail, QueueT::next_avail),
                next_used: live.map_or(q.next_used, QueueT::next_used),
                desc_table: q.desc_table,
                avail_ring: q.avail_ring,
                used_ring: q.used_ring,
            }
        };
        let interrupt_status = self.interrupt.status();
        WindowV1 {
            status: state.status,
            device_features_select: state.device_features_select,
            driver_features_select: state.driver_features_select,
            driver_features: state.driver_features,
            queue_select: state.queue_select,
            interrupt_status,
            unseen: unseen(live, memory, interrupt_status),
            queues: state.queues.iter().enumerate().map(queue).collect(),
        }
    }

    /// Makes the window of a device that is not in use as no driver has seen it.
    pub(crate) fn renew(&self) {
        *self.lock() = WindowState::new(&self.identity);
        self.interrupt.reset();
    }

    /// Takes over a saved window. The answer says how the device is to be started.
    pub(crate) fn load(&self, saved: &WindowV1) -> Result<LoadedWindow, InvalidState> {
        self.check(saved)?;
        let queue = |(q, &max_size): (&QueueV1, &u16)| QueueState {
            max_size,
            next_avail: q.next_avail,
            next_used: q.next_used,
            event_idx_enabled: q.event_idx,
            size: q.size,
            ready: q.ready,
            desc_table: q.desc_table,
            avail_ring: q.avail_ring,
            used_ring: q.used_ring,
        };
        let queues = saved.queues.iter().zip(self.identity.queue_sizes);
        let queues: Vec<_> = queues.map(queue).collect();
        let driven = saved.status & status::DRIVER_OK != 0;
        *self.lock() = WindowState {
            phase: if driven {
                WindowPhase::Running
            } else {
                WindowPhase::Idle
            },
            status: saved.status,
            device_features_select: saved.device_features_select,
            driver_features_select: saved.driver_features_select,
            driver_features: saved.driver_features,
            queue_select: saved.queue_select,
            queues: queues.clone(),
            reset_taken: false,
        };
        self.interrupt.reset();
        self.interrupt.set(saved.interrupt_status);
        Ok(match saved.status & status::NEEDS_RESET {
            _ if !driven => LoadedWindow::Idle,
            0 => LoadedWindow::Running {
                queues,
                unseen: saved.unseen,
            },
            _ => LoadedWindow::Failed,
        })
    }

    fn check(&self, saved: &WindowV1) -> Result<(), InvalidState> {
        let (has, features) = (saved.status, saved.driver_features);
        let wrong = |what: String| Err(InvalidState(what));
        if has & !(status::BY_DRIVER | status::NEEDS_RESET) != 0
            || has & (status::DRIVER_OK | status::FEATURES_OK) == status::DRIVER_OK
        {
            return wrong(format!("status {has:#x}"));
        }
        if has & status::FEATURES_OK != 0 && !self.acceptable(features) {
            let offered = self.identity.features;
            return wrong(format!(
                "driver features {features:#x} of {offered:#x} offered"
            ));
        }
        if saved.interrupt_status & !(USED_BUFFER | CONFIG_CHANGE) != 0 {
            return wrong(format!("interrupt status {:#x}", saved.interrupt_status));
        }
        let (queues, present) = (saved.queues.len(), self.identity.queue_sizes.len());
        if queues != present {
            return wrong(format!("{queues} queues instead of {present}"));
        }
        if saved.queues.iter().any(|q| q.event_idx) && features & F_EVENT_IDX == 0 {
            return wrong("a queue with event indices that were not agreed on".into());
        }
        Ok(())
    }
}
