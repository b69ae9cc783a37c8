//! The entropy device (virtio 1.2 §5.4): the host's random numbers, rationed.

use crate::chain::{self, BufferChain};
use crate::device::{BrokenQueue, Device, DeviceContext, DeviceFault, NextTurn};
use crate::mmio::{DeviceIdentity, F_EVENT_IDX};
use crate::state::DeviceKind;
use rustix::rand::{GetRandomFlags, getrandom};
use std::time::{Duration, Instant};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

/// Virtio device type (§5.4.1).
const DEVICE_ID: u32 = 4;
/// One request is in use at a time (the Linux driver has one buffer).
const QUEUE_SIZES: &[u16] = &[8];
/// Most bytes given for one request.
const MAX_REQUEST: usize = 256;
/// Bytes given per period; Linux asks for about 64 per second once it is seeded.
const BYTES_PER_PERIOD: usize = 16 * 1024;
const PERIOD: Duration = Duration::from_secs(1);

/// The entropy device. Nothing of it is saved: a ration that begins anew is no harm.
#[derive(Debug)]
pub struct Rng {
    // Runtime glue
    queue: Option<Queue>,
    chain: BufferChain,
    // Volatile state
    kicked: bool,
    period_start: Instant,
    left: usize,
}

impl Default for Rng {
    fn default() -> Self {
        Self {
            queue: None,
            chain: BufferChain::default(),
            kicked: false,
            period_start: Instant::now(),
            left: BYTES_PER_PERIOD,
        }
    }
}

impl Rng {
    /// Answers one request; `false` when there is none.
    fn serve(&mut self, cx: &mut DeviceContext<'_>) -> Result<bool, DeviceFault> {
        let Some(queue) = &mut self.queue else {
            return Ok(false);
        };
        let Some(chain) = queue.iter(cx.memory)?.next() else {
            return Ok(false);
        };
        let mut written = 0;
        if self.chain.load(chain).is_ok() {
            let mut bytes = [0; MAX_REQUEST];
            let len = chain::len(&self.chain.writable)
                .min(MAX_REQUEST)
                .min(self.left);
            cx.metrics.syscalls.add(1);
            let got = getrandom(&mut bytes[..len], GetRandomFlags::empty()).unwrap_or(0);
            if chain::write(cx.memory, &self.chain.writable, 0, &bytes[..got]).is_ok() {
                self.left -= got;
                written = u32::try_from(got).map_err(|_| BrokenQueue)?;
            }
        }
        queue.add_used(cx.memory, self.chain.head, written)?;
        Ok(true)
    }
}

impl Device for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            tag: 2,
            name: "entropy device",
        }
    }

    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            device_id: DEVICE_ID,
            features: F_EVENT_IDX,
            queue_sizes: QUEUE_SIZES,
            config: Box::default(),
        }
    }

    fn start(
        &mut self,
        queues: Vec<Option<Queue>>,
        _: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        self.queue = queues.into_iter().next().flatten();
        self.kicked = true;
        Ok(())
    }

    fn kick(&mut self, _: usize, _: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.kicked = true;
        Ok(())
    }

    fn turn(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault> {
        if cx.now.saturating_duration_since(self.period_start) >= PERIOD {
            self.period_start = cx.now;
            self.left = BYTES_PER_PERIOD;
        }
        let mut served = 0;
        // A request that comes when nothing is left waits for the next period.
        while self.kicked && self.left > 0 && served < QUEUE_SIZES[0] {
            if self.serve(cx)? {
                served += 1;
            } else {
                let Some(queue) = &mut self.queue else { break };
                self.kicked = queue.enable_notification(cx.memory)?;
            }
        }
        if let (Some(queue), 1..) = (&mut self.queue, served) {
            cx.interrupt_if_needed(queue)?;
        }
        Ok(if self.kicked && self.left > 0 {
            NextTurn::Again
        } else {
            NextTurn::Wait
        })
    }

    fn deadline(&self) -> Option<Instant> {
        (self.kicked && self.left == 0).then(|| self.period_start + PERIOD)
    }

    fn stop(&mut self, _: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.queue = None;
        self.kicked = false;
        Ok(())
    }

    fn queues(&self) -> Vec<Option<&Queue>> {
        vec![self.queue.as_ref()]
    }
}
