//! The socket device saved, and loaded over a copy of the memory.

use super::*;
use crate::{Attachment, SaveError, SavedDevices, VsockLink};

impl Guest {
    /// What a copy of this guest would be, with the devices `saved` and a link of its own.
    fn copied(&self, saved: SavedDevices, memory: &Arc<Memory>, after: SavedConnection) -> Self {
        let line = line();
        let (link, theirs) = UnixStream::pair().unwrap();
        link.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let irq = line.clone();
        let running = Running::new(memory.clone(), move |event_loop| {
            let made = add_vsock(event_loop, vsock_config(theirs, after), irq);
            event_loop.load(&saved.devices).unwrap();
            made
        });
        Self {
            running,
            memory: memory.clone(),
            line,
            queues: self.queues.iter().map(|q| q.copied(memory)).collect(),
            link,
            tx_at: self.tx_at,
        }
    }

    fn copy(&self, after: SavedConnection) -> Self {
        let (saved, memory) = self.running.save();
        self.copied(saved, &memory, after)
    }

    fn take_all_used(&mut self) {
        self.queues
            .iter_mut()
            .for_each(|q| while q.take_used().is_some() {});
    }

    /// A message each way, and what the guest is credited of the bytes it sent in all.
    fn talk(&mut self, sent_before: u32) {
        self.data(b"ping");
        let mut bytes = [0; 4];
        self.link.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
        self.link.write_all(b"pong").unwrap();
        assert_eq!(self.receive().1, b"pong");
        self.send(Self::header(PacketOp::CreditRequest), &[]);
        assert_eq!(self.expect(PacketOp::CreditUpdate).fwd_cnt, sent_before + 4);
    }
}

#[test]
fn a_kept_connection_goes_on_in_the_copy_and_in_the_original() {
    let mut guest = Guest::new(0);
    guest.connect();
    guest.talk(0);
    let mut copy = guest.copy(SavedConnection::Kept);
    let mut copy_of_copy = copy.copy(SavedConnection::Kept);
    copy.talk(4);
    copy.talk(8);
    guest.talk(4);
    copy_of_copy.talk(4);
    // Nothing of one came to another's link.
    for guest in [&guest, &copy, &copy_of_copy] {
        guest.link.set_nonblocking(true).unwrap();
        (&guest.link).read(&mut [0; 10]).unwrap_err();
    }
}

#[test]
fn the_copy_keeps_to_the_credit_of_both_sides() {
    let mut guest = Guest::new(0);
    let small = |op| PacketHeader {
        buf_alloc: 1000,
        ..Guest::header(op)
    };
    guest.send(small(PacketOp::Request), &[]);
    guest.expect(PacketOp::Response);
    guest.link.write_all(&[1; 600]).unwrap();
    assert_eq!(guest.receive().1.len(), 600);
    let mut copy = guest.copy(SavedConnection::Kept);
    copy.link.write_all(&[2; 1000]).unwrap();
    assert_eq!(copy.receive().1, [2; 400]);
    let freed = PacketHeader {
        fwd_cnt: 1000,
        ..small(PacketOp::CreditUpdate)
    };
    copy.send(freed, &[]);
    assert_eq!(copy.receive().1, [2; 600]);
}

#[test]
fn a_broken_connection_is_reset_and_a_new_one_works() {
    let mut guest = Guest::new(0);
    guest.connect();
    guest.talk(0);
    let mut copy = guest.copy(SavedConnection::Broken);
    let reset = copy.expect(PacketOp::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (1024, AGENT_PORT));
    // What the guest still sends on the old connection is refused, not delivered.
    copy.data(b"lost");
    copy.expect(PacketOp::Reset);
    copy.connect();
    copy.talk(0);
    guest.talk(4);
}

#[test]
fn everything_the_guest_sent_reaches_the_link_before_it_is_saved() {
    let mut guest = Guest::new(0);
    guest.connect();
    // More than the socket holds, in payloads that stay in guest memory, and a small one.
    const PACKETS: usize = 15;
    const TOTAL: usize = PACKETS * 32 * 1024 + 3;
    (0..PACKETS).for_each(|i| guest.data(&[i as u8; 32 * 1024]));
    guest.data(b"end");
    std::thread::sleep(Duration::from_millis(50));
    let mut link = guest.link.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        let mut bytes = vec![0; TOTAL];
        link.read_exact(&mut bytes).unwrap();
        bytes
    });
    let (saved, memory) = guest.running.save();
    let bytes = reader.join().unwrap();
    assert_eq!(bytes[TOTAL - 3..], *b"end");
    assert!((0..PACKETS).all(|i| bytes[i * 32 * 1024..][..32 * 1024] == [i as u8; 32 * 1024]));
    let mut copy = guest.copied(saved, &memory, SavedConnection::Kept);
    // All chains are back: nobody else would give them back in the copy.
    let used = std::iter::from_fn(|| copy.queues[TX].take_used()).count();
    assert_eq!(used, 1 + PACKETS + 1);
    // The guest's bytes of before are not sent again.
    while copy.expect(PacketOp::CreditUpdate).fwd_cnt as usize != TOTAL {}
    copy.talk(TOTAL as u32);
}

#[test]
fn a_link_that_nobody_reads_ends_the_wait_and_nothing_is_lost() {
    let mut guest = Guest::new(0);
    guest.connect();
    const TOTAL: usize = 15 * 32 * 1024;
    (0..15).for_each(|_| guest.data(&[5; 32 * 1024]));
    let start = Instant::now();
    let (saved, _) = guest.running.try_save();
    assert!(matches!(saved, Err(SaveError::Busy { .. })), "{saved:?}");
    let waited = start.elapsed();
    assert!(waited > Duration::from_millis(1900) && waited < Duration::from_secs(6));
    let mut bytes = vec![0; TOTAL];
    guest.link.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, vec![5; TOTAL]);
    // The last bytes are not worth an update of their own: it is asked for.
    guest.send(Guest::header(PacketOp::CreditRequest), &[]);
    while guest.receive().0.fwd_cnt as usize != TOTAL {
        guest.send(Guest::header(PacketOp::CreditRequest), &[]);
    }
    guest.link.write_all(b"mark").unwrap();
    while guest.receive().1 != b"mark" {}
    guest.copy(SavedConnection::Kept).talk(TOTAL as u32);
}

#[test]
fn packets_the_guest_has_not_taken_come_in_the_copy() {
    let mut guest = Guest::new(0);
    guest.connect();
    let elsewhere = PacketHeader {
        dst_port: 9,
        ..Guest::header(PacketOp::Request)
    };
    (0..70).for_each(|_| guest.send(elsewhere, &[]));
    // There are 64 rx buffers, so some of the resets wait in the device.
    let mut copy = guest.copy(SavedConnection::Kept);
    (0..70).for_each(|_| assert_eq!(copy.expect(PacketOp::Reset).src_port, 9));
    copy.talk(0);
}

#[test]
fn the_copy_is_interrupted_only_if_its_driver_has_not_seen_everything() {
    let mut guest = Guest::new(0);
    guest.connect();
    guest.talk(0);
    std::thread::sleep(Duration::from_millis(30));
    guest.take_all_used();
    let quiet = guest.copy(SavedConnection::Kept);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(quiet.running.metrics.interrupts.get(), 0);
    // A used buffer that is reported late, and so has not been seen.
    guest.data(b"x");
    let mut owed = guest.copy(SavedConnection::Kept);
    wait(|| owed.line.0.read().ok());
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(owed.running.metrics.interrupts.get(), 1);
    assert_eq!(read32(owed.mmio(), 0x60), 1);
    owed.take_all_used();
    owed.talk(5);
}

#[test]
fn a_device_without_a_driver_or_with_a_broken_one_is_saved_as_such() {
    let mut guest = Guest::new(0);
    guest.connect();
    guest.queues[TX].break_it();
    guest.queues[TX].force_kick(guest.mmio());
    wait(|| (read32(guest.mmio(), 0x70) & 64 != 0).then_some(()));
    let mut copy = guest.copy(SavedConnection::Kept);
    assert_eq!(read32(copy.mmio(), 0x70), 15 | 64);
    wait(|| copy.line.0.read().ok());
    write32(copy.mmio(), 0x70, 0);
    let mut fresh = copy.copy(SavedConnection::Broken);
    for guest in [&mut copy, &mut fresh] {
        assert_eq!(read32(guest.mmio(), 0x70), 0);
        guest.queues = set_up(guest.mmio(), &guest.memory, 0, QUEUES);
        (0..64).for_each(|i| guest.post_rx(i));
        guest.kick(RX);
        guest.connect();
        guest.talk(0);
    }
}

/// What the socket device is reset with.
fn link_to(socket: UnixStream, connection: SavedConnection) -> Vec<Attachment> {
    let socket = socket.into();
    vec![VsockLink { socket, connection }.into()]
}

/// Resets the guest's devices to where `saved` was taken, with another link.
fn reset(guest: &mut Guest, saved: &[Vec<u8>], memory: &Arc<Memory>, after: SavedConnection) {
    let (link, theirs) = UnixStream::pair().unwrap();
    link.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let (devices, own, from) = (saved.to_vec(), guest.memory.clone(), memory.clone());
    guest.running.clear(move |event_loop| {
        crate::testing::restore(&own, &from);
        event_loop.reset(&devices, link_to(theirs, after)).unwrap();
    });
    guest.link = link;
}

#[test]
fn a_device_in_use_is_reset_and_nothing_of_the_old_link_is_left() {
    let mut guest = Guest::new(0);
    guest.connect();
    guest.talk(0);
    let (saved, memory) = guest.running.save();
    let queues: Vec<_> = guest
        .queues
        .iter()
        .map(|q| q.copied(&guest.memory))
        .collect();
    for round in 0..10 {
        let mut old = guest.link.try_clone().unwrap();
        // Bytes that nobody reads, in both directions, more than the link and the credit hold.
        (0..12).for_each(|i| guest.data(&[i; 32 * 1024]));
        old.set_nonblocking(true).unwrap();
        while old.write(&[7; 4096]).is_ok() {}
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let kept = round % 3 != 2;
        let after = if kept {
            SavedConnection::Kept
        } else {
            SavedConnection::Broken
        };
        reset(&mut guest, &saved.devices, &memory, after);
        guest.queues = queues.iter().map(|q| q.copied(&guest.memory)).collect();
        if kept {
            guest.talk(4);
        } else {
            assert_eq!(guest.expect(PacketOp::Reset).dst_port, AGENT_PORT);
            guest.connect();
            guest.talk(0);
        }
        // Only we hold the old link now.
        old.set_nonblocking(false).unwrap();
        old.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut rest = vec![0; 1 << 20];
        while matches!(old.read(&mut rest), Ok(1..)) {}
        assert!(old.write(&[1]).is_err(), "the old link is open");
    }
}

#[test]
fn states_of_other_devices_are_refused_at_a_reset() {
    let guest = Guest::new(0);
    let (_, theirs) = UnixStream::pair().unwrap();
    guest.running.clear(move |event_loop| {
        let attachments = link_to(theirs, SavedConnection::Kept);
        let refused = event_loop.reset(&[vec![], vec![]], attachments);
        let count = crate::LoadError::Count {
            saved: 2,
            present: 1,
        };
        assert_eq!(refused.unwrap_err().to_string(), count.to_string());
    });
}
