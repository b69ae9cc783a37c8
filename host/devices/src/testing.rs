//! A guest driver for tests: sets a device up through its registers as Linux does, and keeps one
//! side of its queues.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "only for tests and fuzzing"
)]
#![allow(dead_code, reason = "fuzzing uses less of it than the tests")]

use crate::mmio::{F_EVENT_IDX, MmioWindow};
use crate::{
    Block, BlockConfig, BlockMetrics, EventLoop, IrqLine, LoopControl, LoopHost, LoopMetrics,
    Memory, SaveError, SavedConnection, SavedDevices, Vsock, VsockConfig, VsockLink, VsockMetrics,
    WatchId,
};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const MEMORY: usize = 16 << 20;
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;

/// An interrupt line that tests can wait on.
#[derive(Debug)]
pub(crate) struct Line(pub(crate) EventFd);

impl IrqLine for Line {
    fn raise(&self) {
        self.0.write(1).unwrap();
    }
    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        Some(crate::ring::borrow(&self.0))
    }
}

pub(crate) fn line() -> Arc<Line> {
    Arc::new(Line(EventFd::new(EFD_NONBLOCK).unwrap()))
}

pub(crate) fn memory() -> Arc<Memory> {
    Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
}

/// What a device is found under: its registers and its counters.
pub(crate) type Added<M> = (Arc<MmioWindow>, Arc<M>);

/// Adds a socket device to a loop.
pub(crate) fn add_vsock(
    event_loop: &mut EventLoop,
    config: VsockConfig,
    line: Arc<dyn IrqLine>,
) -> Added<VsockMetrics> {
    let device = Vsock::new(config);
    let metrics = device.metrics();
    (event_loop.add(Box::new(device), line).unwrap(), metrics)
}

/// The configuration that tests use.
pub(crate) fn vsock_config(link: impl Into<OwnedFd>, connection: SavedConnection) -> VsockConfig {
    VsockConfig {
        guest_cid: 3,
        port: 1024,
        link: VsockLink {
            socket: link.into(),
            connection,
        },
    }
}

/// Adds a block device to a loop.
pub(crate) fn add_block(event_loop: &mut EventLoop, config: BlockConfig) -> Added<BlockMetrics> {
    let device = Block::new(config).unwrap();
    let metrics = device.metrics();
    (event_loop.add(Box::new(device), line()).unwrap(), metrics)
}

/// An event loop on its own thread, ended when dropped.
pub(crate) struct Running<T> {
    pub(crate) made: T,
    pub(crate) metrics: Arc<LoopMetrics>,
    stop: OwnedFd,
    quiesce: OwnedFd,
    saved: mpsc::Receiver<Saved>,
    clear: OwnedFd,
    reset: mpsc::Sender<Work>,
    is_reset: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// What a host takes while the devices are quiesced: their state, and a copy of the memory.
pub(crate) type Saved = (Result<SavedDevices, SaveError>, Arc<Memory>);

const STOP: WatchId = WatchId(0);
const QUIESCE: WatchId = WatchId(1);
const CLEAR: WatchId = WatchId(2);

/// What is done with devices that are cleared.
type Work = Box<dyn FnOnce(&mut EventLoop) + Send>;

struct TestHost {
    memory: Arc<Memory>,
    saved: mpsc::Sender<Saved>,
    reset: mpsc::Receiver<Work>,
    is_reset: mpsc::Sender<()>,
}

impl LoopHost for TestHost {
    fn ready(&mut self, watch: WatchId, control: &mut LoopControl) {
        match watch {
            STOP => control.stop(),
            CLEAR => control.clear(),
            _ => control.quiesce(),
        }
    }

    fn cleared(
        &mut self,
        outcome: Result<(), SaveError>,
        event_loop: &mut EventLoop,
        _: &mut LoopControl,
    ) {
        outcome.unwrap();
        self.reset.recv().unwrap()(event_loop);
        self.is_reset.send(()).unwrap();
    }

    fn quiesced(&mut self, devices: Result<SavedDevices, SaveError>, _: &mut LoopControl) {
        let _ = self.saved.send((devices, copy(&self.memory)));
    }
}

/// Makes `memory` what `from` is.
pub(crate) fn restore(memory: &Memory, from: &Memory) {
    let mut bytes = vec![0; MEMORY];
    from.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    memory.write_slice(&bytes, GuestAddress(0)).unwrap();
}

/// The same bytes in memory of its own.
pub(crate) fn copy(memory: &Memory) -> Arc<Memory> {
    let mut bytes = vec![0; MEMORY];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    let copy = self::memory();
    copy.write_slice(&bytes, GuestAddress(0)).unwrap();
    copy
}

fn event() -> (OwnedFd, OwnedFd) {
    let ours = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    let theirs = ours.try_clone().unwrap();
    (ours, theirs)
}

impl<T: Send + 'static> Running<T> {
    /// Runs a loop whose devices `make` adds.
    pub(crate) fn new(
        memory: Arc<Memory>,
        make: impl FnOnce(&mut EventLoop) -> T + Send + 'static,
    ) -> Self {
        let (stop, stopped) = event();
        let (quiesce, quiesced) = event();
        let (clear, cleared) = event();
        let (reset, to_reset) = mpsc::channel();
        let (done, is_reset) = mpsc::channel();
        let (saver, saved) = mpsc::channel();
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut event_loop = EventLoop::new(memory.clone()).unwrap();
            let made = make(&mut event_loop);
            event_loop.watch(stopped, STOP).unwrap();
            event_loop.watch(quiesced, QUIESCE).unwrap();
            event_loop.watch(cleared, CLEAR).unwrap();
            sender.send((made, event_loop.metrics())).unwrap();
            let mut host = TestHost {
                memory,
                saved: saver,
                reset: to_reset,
                is_reset: done,
            };
            event_loop.run(&mut host).unwrap();
        });
        let (made, metrics) = receiver.recv().unwrap();
        Self {
            made,
            metrics,
            stop,
            quiesce,
            saved,
            clear,
            reset,
            is_reset,
            thread: Some(thread),
        }
    }
}

impl<T> Running<T> {
    /// Quiesces the devices and saves them. Their driver does nothing meanwhile.
    pub(crate) fn try_save(&self) -> Saved {
        rustix::io::write(self.quiesce.as_fd(), &1u64.to_ne_bytes()).unwrap();
        self.saved.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    /// Clears the devices and does `work` with them. Their driver does nothing meanwhile.
    pub(crate) fn clear(&self, work: impl FnOnce(&mut EventLoop) + Send + 'static) {
        self.reset.send(Box::new(work)).unwrap();
        rustix::io::write(self.clear.as_fd(), &1u64.to_ne_bytes()).unwrap();
        self.is_reset.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    pub(crate) fn save(&self) -> (SavedDevices, Arc<Memory>) {
        let (devices, memory) = self.try_save();
        (devices.unwrap(), memory)
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        rustix::io::write(self.stop.as_fd(), &1u64.to_ne_bytes()).unwrap();
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking());
    }
}

pub(crate) fn write32(mmio: &MmioWindow, offset: u64, value: u32) {
    mmio.write(offset, &value.to_le_bytes());
}

pub(crate) fn read32(mmio: &MmioWindow, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    mmio.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// One queue from the driver's side. Memory of queue `n`: descriptors at `base`, then the rings.
#[derive(Clone, Debug)]
pub(crate) struct DriverQueue {
    memory: Arc<Memory>,
    index: u32,
    size: u16,
    base: u64,
    next_descriptor: u16,
    avail: u16,
    /// `avail` at the last kick.
    notified: u16,
    used: u16,
    pub(crate) event_idx: bool,
}

impl DriverQueue {
    /// The driver of a copy of the machine, which has `memory`.
    pub(crate) fn copied(&self, memory: &Arc<Memory>) -> Self {
        Self {
            memory: memory.clone(),
            ..self.clone()
        }
    }

    fn avail_ring(&self) -> u64 {
        self.base + 0x2000
    }
    fn used_ring(&self) -> u64 {
        self.base + 0x3000
    }
    fn put16(&self, at: u64, value: u16) {
        self.memory
            .store(value, GuestAddress(at), std::sync::atomic::Ordering::SeqCst)
            .unwrap();
    }
    fn get16(&self, at: u64) -> u16 {
        self.memory
            .load(GuestAddress(at), std::sync::atomic::Ordering::SeqCst)
            .unwrap()
    }

    /// Writes descriptor `index`.
    pub(crate) fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index);
        self.memory.write_obj(addr, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain of `(address, length, device writes)` available; its head.
    pub(crate) fn add(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor;
        for (i, &(addr, len, write)) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = i + 1 < buffers.len();
            let flags = if more { NEXT } else { 0 } | if write { WRITE } else { 0 };
            self.descriptor(index, addr, len, flags, self.next_descriptor);
        }
        self.publish(head);
        head
    }

    /// Makes a head available without writing descriptors.
    pub(crate) fn publish(&mut self, head: u16) {
        self.put16(
            self.avail_ring() + 4 + 2 * u64::from(self.avail % self.size),
            head,
        );
        self.avail = self.avail.wrapping_add(1);
        self.put16(self.avail_ring() + 2, self.avail);
    }

    /// Breaks the queue: its available index jumps by more than its size, at once, so that a device
    /// which looks just now sees all of it.
    pub(crate) fn break_it(&mut self) {
        self.avail = self.avail.wrapping_add(self.size + 1);
        self.put16(self.avail_ring() + 2, self.avail);
    }

    /// Whether the device wants to be notified of what was added last (§2.7.10).
    pub(crate) fn wants_kick(&self) -> bool {
        let event = self.get16(self.used_ring() + 4 + 8 * u64::from(self.size));
        !self.event_idx
            || self.avail.wrapping_sub(event).wrapping_sub(1)
                < self.avail.wrapping_sub(self.notified)
    }

    /// Notifies the device, if it wants that.
    pub(crate) fn kick(&mut self, mmio: &MmioWindow) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let wanted = self.wants_kick();
        self.notified = self.avail;
        if wanted {
            write32(mmio, crate::QUEUE_NOTIFY, self.index);
        }
    }

    /// Notifies the device in any case.
    pub(crate) fn force_kick(&self, mmio: &MmioWindow) {
        write32(mmio, crate::QUEUE_NOTIFY, self.index);
    }

    /// A used chain: head and length.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.get16(self.used_ring() + 2) == self.used {
            return None;
        }
        let at = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let len = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        // used_event: interrupt at the next one.
        self.put16(self.avail_ring() + 4 + 2 * u64::from(self.size), self.used);
        Some((u16::try_from(head).unwrap(), len))
    }

    /// Whether [`DriverQueue::take_used`] would give one.
    pub(crate) fn take_used_peek(&self) -> bool {
        self.get16(self.used_ring() + 2) != self.used
    }

    /// Waits for a used chain.
    pub(crate) fn wait_used(&mut self) -> (u16, u32) {
        wait(|| self.take_used())
    }
}

/// Polls until there is a value, at most 10 s.
pub(crate) fn wait<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "nothing happened"
        );
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Where the queues' memory begins; below is free for buffers.
pub(crate) const QUEUES: u64 = (MEMORY - (1 << 20)) as u64;

/// Brings a device up as a driver does, with every feature it offers except those in `without`,
/// and its queues' memory from `base` on.
pub(crate) fn set_up(
    mmio: &MmioWindow,
    memory: &Arc<Memory>,
    without: u64,
    base: u64,
) -> Vec<DriverQueue> {
    write32(mmio, 0x70, 0);
    write32(mmio, 0x70, 1);
    write32(mmio, 0x70, 3);
    let mut features = 0u64;
    for half in [0, 1] {
        write32(mmio, 0x14, half);
        features |= u64::from(read32(mmio, 0x10)) << (32 * half);
    }
    features &= !without;
    for half in [0, 1] {
        write32(mmio, 0x24, half);
        write32(
            mmio,
            0x20,
            u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap(),
        );
    }
    write32(mmio, 0x70, 11);
    assert_eq!(read32(mmio, 0x70), 11, "features refused");
    let mut queues = Vec::new();
    for index in 0u32.. {
        write32(mmio, 0x30, index);
        let size = u16::try_from(read32(mmio, 0x34)).unwrap();
        if size == 0 {
            break;
        }
        let queue = DriverQueue {
            memory: memory.clone(),
            index,
            size,
            base: base + u64::from(index) * 0x8000,
            next_descriptor: 0,
            avail: 0,
            notified: 0,
            used: 0,
            event_idx: features & F_EVENT_IDX != 0,
        };
        memory
            .write_slice(&[0; 0x8000], GuestAddress(queue.base))
            .unwrap();
        write32(mmio, 0x38, size.into());
        for (register, address) in [
            (0x80, queue.base),
            (0x90, queue.avail_ring()),
            (0xa0, queue.used_ring()),
        ] {
            write32(
                mmio,
                register,
                u32::try_from(address & 0xffff_ffff).unwrap(),
            );
            write32(mmio, register + 4, u32::try_from(address >> 32).unwrap());
        }
        write32(mmio, 0x44, 1);
        assert_eq!(read32(mmio, 0x44), 1);
        queues.push(queue);
    }
    write32(mmio, 0x70, 15);
    assert_eq!(read32(mmio, 0x70), 15);
    queues
}
