//! The network device whole: registers, queues, event loop, a real socket pair.
#![expect(clippy::cast_possible_truncation, reason = "test values are small")]

use super::FrameSocket;
use super::spec::{HEADER_LEN, MAX_FRAME, MTU, RX_HEADER};
use crate::queue_pair::{RX, TX};
use crate::testing::{DriverQueue, QUEUES, Running, copy, line, memory, set_up, wait};
use crate::{Attachment, EventLoop, LoadError, Memory, MmioWindow, Net, NetMetrics, Rng};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const TX_AT: u64 = 0x10_0000;
const RX_AT: u64 = 0x20_0000;

type Added = (Arc<MmioWindow>, Arc<NetMetrics>);

fn wire() -> (OwnedFd, OwnedFd) {
    let kind = (
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
    );
    socketpair(kind.0, kind.1, kind.2, None).unwrap()
}

fn add(event_loop: &mut EventLoop, socket: OwnedFd) -> Added {
    let device = Net::new(FrameSocket(socket));
    let metrics = device.metrics();
    (event_loop.add(Box::new(device), line()).unwrap(), metrics)
}

/// A guest with the device, and the other end of its wire.
struct Guest {
    running: Running<Added>,
    memory: Arc<Memory>,
    queues: Vec<DriverQueue>,
    far: OwnedFd,
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 7 + seed) % 251) as u8).collect()
}

impl Guest {
    fn new() -> Self {
        let memory = memory();
        let (far, socket) = wire();
        let running = Running::new(memory.clone(), move |event_loop| add(event_loop, socket));
        let queues = set_up(&running.made.0, &memory, 0, QUEUES);
        Self {
            running,
            memory,
            queues,
            far,
        }
    }

    /// A copy of this guest where it was saved, on a wire of its own.
    fn copied(&self, saved: Vec<Vec<u8>>, memory: Arc<Memory>) -> Self {
        let (far, socket) = wire();
        let running = Running::new(memory.clone(), move |event_loop| {
            let added = add(event_loop, socket);
            event_loop.load(&saved).unwrap();
            added
        });
        let queues = self.queues.iter().map(|q| q.copied(&memory)).collect();
        Self {
            running,
            memory,
            queues,
            far,
        }
    }

    /// Sends a frame as Linux does: the header, then the frame in pieces.
    fn send(&mut self, frame: &[u8]) {
        let (header, data) = (TX_AT, TX_AT + 0x1000);
        let memory = &self.memory;
        memory
            .write_slice(&[0; HEADER_LEN], GuestAddress(header))
            .unwrap();
        memory.write_slice(frame, GuestAddress(data)).unwrap();
        let half = frame.len() / 2;
        self.queues[TX].add(&[
            (header, HEADER_LEN as u32, false),
            (data, half as u32, false),
            (data + half as u64, (frame.len() - half) as u32, false),
        ]);
        self.queues[TX].kick(&self.running.made.0);
    }

    fn arrives(&self) -> Vec<u8> {
        let mut frame = vec![0; MAX_FRAME + 1];
        let (len, _) = recv(&self.far, &mut frame[..], RecvFlags::empty()).unwrap();
        frame.truncate(len);
        frame
    }

    fn post(&mut self, len: u32) {
        self.queues[RX].add(&[(RX_AT, 12, true), (RX_AT + 0x1000, len, true)]);
        self.queues[RX].kick(&self.running.made.0);
    }

    fn put(&self, frame: &[u8]) {
        let sent = send(&self.far, frame, SendFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// The frame in the receive buffer, once the device has given it back.
    fn received(&mut self) -> Vec<u8> {
        let (_, used) = self.queues[RX].wait_used();
        let mut header = [0; HEADER_LEN];
        self.memory
            .read_slice(&mut header, GuestAddress(RX_AT))
            .unwrap();
        assert_eq!(header, RX_HEADER);
        let mut frame = vec![0; used as usize - HEADER_LEN];
        self.memory
            .read_slice(&mut frame, GuestAddress(RX_AT + 0x1000))
            .unwrap();
        frame
    }
}

#[test]
fn frames_of_every_size_pass_both_ways_unchanged() {
    let mut guest = Guest::new();
    for (seed, len) in [14, 60, 1514, 9014, MAX_FRAME].into_iter().enumerate() {
        let sent = frame(len, seed);
        guest.send(&sent);
        assert_eq!(guest.arrives(), sent);
        assert_eq!(guest.queues[TX].wait_used().1, 0);
        let back = frame(len, seed + 100);
        guest.post(MAX_FRAME as u32);
        guest.put(&back);
        assert_eq!(guest.received(), back);
    }
    let metrics = guest.running.made.1.clone();
    let (from, to) = (
        metrics.from_guest_frames.get(),
        metrics.to_guest_frames.get(),
    );
    assert_eq!((from, to, metrics.malformed.get()), (5, 5, 0));
    assert_eq!(metrics.from_guest_bytes.get(), metrics.to_guest_bytes.get());
}

#[test]
fn a_frame_is_cut_to_the_buffer_and_never_written_past_it() {
    let mut guest = Guest::new();
    let guard = GuestAddress(RX_AT + 0x1000 + 100);
    guest.memory.write_slice(&[0xee; 64], guard).unwrap();
    guest.post(100);
    guest.put(&frame(1000, 3));
    assert_eq!(guest.received(), frame(1000, 3)[..100]);
    let mut after = [0; 64];
    guest.memory.read_slice(&mut after, guard).unwrap();
    assert_eq!(after, [0xee; 64]);
}

#[test]
fn what_is_no_frame_is_given_back_and_counted() {
    let mut guest = Guest::new();
    for len in [0, 1, 13 + HEADER_LEN, MAX_FRAME + HEADER_LEN + 1] {
        guest.queues[TX].add(&[(TX_AT, len as u32, false)]);
        guest.queues[TX].force_kick(&guest.running.made.0);
        assert_eq!(guest.queues[TX].wait_used().1, 0);
    }
    // A buffer that is to be read only, and one without room for the least frame. The driver hears
    // of them.
    let heard = guest.running.metrics.interrupts.get();
    guest.queues[RX].add(&[(RX_AT, 2000, false)]);
    guest.queues[RX].add(&[(RX_AT, 25, true)]);
    guest.queues[RX].kick(&guest.running.made.0);
    guest.queues[RX].wait_used();
    guest.queues[RX].wait_used();
    wait(|| (guest.running.metrics.interrupts.get() > heard).then_some(()));
    assert_eq!(guest.running.made.1.malformed.get(), 6);
    guest.send(&frame(100, 1));
    assert_eq!(guest.arrives(), frame(100, 1));
}

#[test]
fn nobody_reads_and_the_queue_waits_without_loss() {
    let mut guest = Guest::new();
    let sent = frame(60_000, 9);
    // All are the same frame, in the same place.
    (0..12).for_each(|_| guest.send(&sent));
    wait(|| guest.queues[TX].take_used());
    std::thread::sleep(std::time::Duration::from_millis(50));
    let taken = guest.running.made.1.from_guest_frames.get();
    assert!(
        (1..12).contains(&taken),
        "{taken} frames fit into the socket"
    );
    (0..12).for_each(|_| assert_eq!(guest.arrives(), sent));
    wait(|| (guest.running.made.1.from_guest_frames.get() == 12).then_some(()));
    assert_eq!(guest.running.made.1.dropped.get(), 0);
}

#[test]
fn a_guest_is_saved_while_it_waits_and_while_nobody_reads() {
    let mut guest = Guest::new();
    guest.post(2000);
    let sent = frame(60_000, 9);
    (0..12).for_each(|_| guest.send(&sent));
    wait(|| guest.queues[TX].take_used());
    let (saved, then) = guest.running.save();
    assert!(saved.contents.is_empty());
    let mut copied = guest.copied(saved.devices, copy(&then));
    // The buffer that was posted before is the copy's, and the original's, too.
    copied.put(&frame(500, 1));
    assert_eq!(copied.received(), frame(500, 1));
    guest.put(&frame(600, 2));
    assert_eq!(guest.received(), frame(600, 2));
    // The copy begins with the frames that the original had not sent.
    assert_eq!(copied.arrives(), sent);
}

#[test]
fn a_reset_puts_it_on_another_wire() {
    let mut guest = Guest::new();
    guest.post(2000);
    let (saved, then) = guest.running.save();
    let queues: Vec<_> = guest.queues.clone();
    for round in 0..3 {
        guest.put(&frame(300, round));
        assert_eq!(guest.received(), frame(300, round));
        let (far, socket) = wire();
        let (saved, own, from) = (saved.devices.clone(), guest.memory.clone(), then.clone());
        guest.running.clear(move |event_loop| {
            crate::testing::restore(&own, &from);
            event_loop
                .reset(&saved, vec![FrameSocket(socket).into()])
                .unwrap();
        });
        guest.far = far;
        guest.queues = queues.clone();
    }
    guest.put(&frame(300, 9));
    assert_eq!(guest.received(), frame(300, 9));
}

#[test]
fn a_wire_whose_other_end_is_gone_drops_what_is_sent() {
    let mut guest = Guest::new();
    guest.far = wire().0;
    for _ in 0..3 {
        guest.send(&frame(100, 1));
        guest.queues[TX].wait_used();
    }
    assert_eq!(guest.running.made.1.dropped.get(), 3);
}

#[test]
fn a_state_from_before_there_was_a_network_loads() {
    let rng = || Box::new(Rng::default());
    let before = Running::new(memory(), move |event_loop| {
        event_loop.add(rng(), line()).unwrap()
    });
    let (saved, then) = before.save();
    let with_net = move |event_loop: &mut EventLoop| {
        event_loop.add(rng(), line()).unwrap();
        add(event_loop, wire().1)
    };
    let state = saved.devices.clone();
    let now = Running::new(copy(&then), move |event_loop| {
        with_net(event_loop);
        event_loop.load(&state).unwrap();
    });
    assert_eq!(now.save().0.devices.len(), 2);
    let state = saved.devices.clone();
    now.clear(move |event_loop| {
        let attachments = vec![Attachment::none(), FrameSocket(wire().1).into()];
        event_loop.reset(&state, attachments).unwrap();
    });
    // But not one of more devices, and not without one that was always there.
    let mut event_loop = EventLoop::new(memory()).unwrap();
    with_net(&mut event_loop);
    let refused = event_loop.load(&[]).unwrap_err();
    assert!(matches!(
        refused,
        LoadError::Count {
            saved: 0,
            present: 2
        }
    ));
}

#[test]
fn the_driver_finds_the_address_and_the_mtu() {
    let guest = Guest::new();
    let mut config = [0; 12];
    guest.running.made.0.read(0x100, &mut config);
    assert_eq!(config[..6], [0x02, 0xfc, 0, 0, 0, 5]);
    assert_eq!(config[10..], MTU.to_le_bytes());
}

#[test]
fn an_empty_message_ends_that_way_only() {
    let mut guest = Guest::new();
    guest.post(2000);
    guest.put(&[]);
    for seed in 0..3 {
        guest.send(&frame(100, seed));
        assert_eq!(guest.arrives(), frame(100, seed));
    }
    assert!(guest.queues[RX].take_used().is_none());
}
