//! What a new kind of device takes: this file, and the one line with `add`. It goes through saving,
//! restoring and reset, with a state and an attachment of its own, and nothing else in this crate
//! has heard of it.

use crate::attachment::Attachment;
use crate::device::{Device, DeviceContext, DeviceFault, NextTurn};
use crate::mmio::{DeviceIdentity, F_EVENT_IDX};
use crate::state::{DeviceKind, InvalidState, StateRefusal, take};
use crate::testing::{DriverQueue, QUEUES, Running, line, memory, restore, set_up, vsock_config};
use crate::{
    Block, BlockConfig, DiskParent, EventLoop, FrameSocket, LoadError, Memory, MmioWindow, Net,
    Rng, SavedConnection, Vsock,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

const BUFFER: u64 = 0x1000;
const LIMIT: u64 = 1 << 32;

/// Adds a fixed step to a sum for each buffer it is given, and puts the sum there.
#[derive(Debug)]
struct SumDevice {
    queue: Option<Queue>,
    step: u64,
    sum: u64,
}

/// Its saved state.
#[derive(Serialize, Deserialize)]
struct SumV1 {
    sum: u64,
}

/// Its attachment.
struct Step(u64);

impl Device for SumDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            tag: 1_000_000,
            name: "sum device",
        }
    }

    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            device_id: 63,
            features: F_EVENT_IDX,
            queue_sizes: &[8],
            config: Box::default(),
        }
    }

    fn start(
        &mut self,
        queues: Vec<Option<Queue>>,
        _: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        self.queue = queues.into_iter().next().flatten();
        Ok(())
    }

    fn kick(&mut self, _: usize, _: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn turn(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault> {
        let Some(queue) = &mut self.queue else {
            return Ok(NextTurn::Wait);
        };
        while let Some(chain) = queue.iter(cx.memory)?.next() {
            let head = chain.head_index();
            self.sum += self.step;
            for descriptor in chain {
                let put = cx.memory.write_obj(self.sum, descriptor.addr());
                put.map_err(|_| crate::device::BrokenQueue)?;
            }
            queue.add_used(cx.memory, head, 8)?;
        }
        let again = queue.enable_notification(cx.memory)?;
        cx.interrupt_if_needed(queue)?;
        Ok(if again {
            NextTurn::Again
        } else {
            NextTurn::Wait
        })
    }

    fn stop(&mut self, _: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.queue = None;
        Ok(())
    }

    fn reset(&mut self, attachment: Attachment) -> io::Result<()> {
        Step(self.step) = attachment.take()?;
        Ok(())
    }

    fn queues(&self) -> Vec<Option<&Queue>> {
        vec![self.queue.as_ref()]
    }

    fn save(&self, _: bool, into: Vec<u8>) -> postcard::Result<Vec<u8>> {
        postcard::to_extend(&SumV1 { sum: self.sum }, into)
    }

    fn load(&mut self, saved: &mut &[u8]) -> Result<(), StateRefusal> {
        let SumV1 { sum } = take(saved)?;
        if sum > LIMIT {
            return Err(InvalidState(format!("a sum of {sum}")).into());
        }
        self.sum = sum;
        Ok(())
    }
}

/// The devices of one machine: the line.
fn add(event_loop: &mut EventLoop, step: u64) -> Arc<MmioWindow> {
    let (queue, sum) = (None, 0);
    let device = SumDevice { queue, step, sum };
    event_loop.add(Box::new(device), line()).unwrap()
}

struct Guest {
    running: Running<Arc<MmioWindow>>,
    memory: Arc<Memory>,
    queue: DriverQueue,
}

impl Guest {
    fn new(step: u64) -> Self {
        let memory = memory();
        let running = Running::new(memory.clone(), move |event_loop| add(event_loop, step));
        let queue = set_up(&running.made, &memory, 0, QUEUES).remove(0);
        Self {
            running,
            memory,
            queue,
        }
    }

    /// A copy of this guest where it was saved.
    fn copied(&self, saved: Vec<Vec<u8>>, memory: Arc<Memory>, step: u64) -> Self {
        let running = Running::new(memory.clone(), move |event_loop| {
            let made = add(event_loop, step);
            event_loop.load(&saved).unwrap();
            made
        });
        Self {
            running,
            queue: self.queue.copied(&memory),
            memory,
        }
    }

    /// Gives the device a buffer; the sum it finds there.
    fn next_sum(&mut self) -> u64 {
        self.queue.add(&[(BUFFER, 8, true)]);
        self.queue.kick(&self.running.made);
        assert_eq!(self.queue.wait_used().1, 8);
        self.memory.read_obj(GuestAddress(BUFFER)).unwrap()
    }
}

#[test]
fn a_new_kind_is_saved_restored_and_reset() {
    let mut guest = Guest::new(1);
    assert_eq!((guest.next_sum(), guest.next_sum()), (1, 2));
    let (saved, then) = guest.running.save();
    assert!(saved.contents.is_empty());
    let saved = saved.devices;
    let queue = guest.queue.copied(&guest.memory);
    let mut copy = guest.copied(saved.clone(), crate::testing::copy(&then), 10);
    assert_eq!((copy.next_sum(), copy.next_sum()), (12, 22));
    assert_eq!(guest.next_sum(), 3);
    for step in [100, 200] {
        let (own, from, saved) = (guest.memory.clone(), then.clone(), saved.clone());
        guest.running.clear(move |event_loop| {
            restore(&own, &from);
            let attachments = vec![Attachment::new(Step(step))];
            event_loop.reset(&saved, attachments).unwrap();
        });
        guest.queue = queue.copied(&guest.memory);
        assert_eq!(guest.next_sum(), 2 + step);
    }
}

#[test]
fn it_refuses_what_is_not_its_own() {
    let guest = Guest::new(1);
    let saved = guest.running.save().0.devices;
    let load = |bytes: Vec<u8>| {
        let mut event_loop = EventLoop::new(memory()).unwrap();
        add(&mut event_loop, 1);
        event_loop.load(&[bytes]).unwrap_err().to_string()
    };
    // The tag, then the sum.
    let tag = postcard::to_allocvec(&1_000_000u32).unwrap();
    assert!(saved[0].starts_with(&tag) && saved[0][tag.len()] == 0);
    let large = postcard::to_extend(&(LIMIT + 1), tag.clone()).unwrap();
    let large = [&large[..], &saved[0][tag.len() + 1..]].concat();
    assert_eq!(
        load(large),
        "The saved state of sum device 0 cannot be: a sum of 4294967297"
    );
    let unknown = [&[7], &saved[0][tag.len()..]].concat();
    let refused = load(unknown);
    assert!(
        refused.starts_with("sum device 0 cannot take over"),
        "{refused}"
    );
    assert!(refused.contains("kind 7"), "{refused}");

    guest.running.clear(move |event_loop| {
        let refused = event_loop.reset(&saved, vec![Attachment::none()]);
        assert!(
            matches!(refused, Err(LoadError::Reset { .. })),
            "{refused:?}"
        );
    });
}

#[test]
fn each_kind_has_a_tag_of_its_own() {
    let (link, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let vsock = Vsock::new(vsock_config(link, SavedConnection::Kept));
    let base = tempfile::tempfile().unwrap();
    let block = Block::new(BlockConfig {
        base,
        layer: None,
        parent: DiskParent::default(),
        size: 4096,
        serial: String::new(),
    });
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let net = Net::new(FrameSocket(socket.into()));
    let (block, rng) = (block.unwrap(), Rng::default());
    let kinds = [vsock.kind(), block.kind(), rng.kind(), net.kind()];
    assert_eq!(kinds.map(|kind| kind.tag), [0, 1, 2, 3], "on disk for ever");
}
