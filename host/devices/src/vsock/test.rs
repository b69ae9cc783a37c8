//! The socket device whole: registers, queues, event loop, a real socket pair as link.
#![expect(clippy::cast_possible_truncation, reason = "test values are small")]

mod save;

use super::SavedConnection;
use super::connection::BUFFER;
use super::packet::{PacketHeader, PacketOp};
use super::spec::{HEADER_LEN, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::queue_pair::{RX, TX};
use crate::testing::{
    Added, DriverQueue, Line, QUEUES, Running, add_vsock, line, memory, read32, set_up,
    vsock_config, wait, write32,
};
use crate::{Memory, MmioWindow, VsockMetrics};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const RX_LEN: u32 = 4096;
const TX_DATA: u64 = 0x80_0000;
/// Whence the guest's agent calls.
const AGENT_PORT: u32 = 1023;

/// A guest with the socket device, and the service's end of the link.
struct Guest {
    running: Running<Added<VsockMetrics>>,
    memory: Arc<Memory>,
    line: Arc<Line>,
    queues: Vec<DriverQueue>,
    link: UnixStream,
    tx_at: u64,
}

impl Guest {
    fn new(without: u64) -> Self {
        let (memory, line) = (memory(), line());
        let (link, theirs) = UnixStream::pair().unwrap();
        let irq = line.clone();
        let running = Running::new(memory.clone(), move |event_loop| {
            let config = vsock_config(theirs, SavedConnection::Broken);
            add_vsock(event_loop, config, irq)
        });
        let queues = set_up(&running.made.0, &memory, without, QUEUES);
        let mut guest = Self {
            running,
            memory,
            line,
            queues,
            link,
            tx_at: TX_DATA,
        };
        guest
            .link
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        (0..64).for_each(|i| guest.post_rx(i));
        guest.kick(RX);
        guest
    }

    fn mmio(&self) -> &MmioWindow {
        &self.running.made.0
    }

    fn kick(&mut self, queue: usize) {
        self.queues[queue].kick(&self.running.made.0);
    }

    /// The rx buffer with descriptor `i`.
    fn post_rx(&mut self, i: u16) {
        self.queues[RX].add(&[(0x10_0000 + u64::from(i) * u64::from(RX_LEN), RX_LEN, true)]);
    }

    fn header(op: PacketOp) -> PacketHeader {
        PacketHeader {
            src_cid: 3,
            dst_cid: 2,
            src_port: AGENT_PORT,
            dst_port: 1024,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
        }
    }

    fn send(&mut self, header: PacketHeader, data: &[u8]) {
        let at = self.tx_at;
        self.tx_at = if at > TX_DATA + 0x40_0000 {
            TX_DATA
        } else {
            at + 0x2_0000
        };
        self.memory
            .write_slice(&header.emit(), GuestAddress(at))
            .unwrap();
        self.memory
            .write_slice(data, GuestAddress(at + 0x100))
            .unwrap();
        let head = (at, HEADER_LEN as u32, false);
        match data.len() {
            0 => self.queues[TX].add(&[head]),
            len => self.queues[TX].add(&[head, (at + 0x100, len as u32, false)]),
        };
        self.kick(TX);
    }

    fn data(&mut self, data: &[u8]) {
        self.send(
            PacketHeader {
                len: data.len() as u32,
                ..Self::header(PacketOp::Data)
            },
            data,
        );
    }

    fn receive(&mut self) -> (PacketHeader, Vec<u8>) {
        let (head, len) = self.queues[RX].wait_used();
        let at = 0x10_0000 + u64::from(head) * u64::from(RX_LEN);
        let mut bytes = vec![0; len as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        let header = PacketHeader::parse(bytes.first_chunk().unwrap());
        assert_eq!(header.len as usize, bytes.len() - HEADER_LEN);
        // The descriptor can be posted again as it is.
        self.queues[RX].publish(head);
        self.kick(RX);
        (header, bytes.split_off(HEADER_LEN))
    }

    fn expect(&mut self, op: PacketOp) -> PacketHeader {
        let (header, data) = self.receive();
        assert_eq!((header.op, data.len()), (op, 0));
        header
    }

    fn connect(&mut self) {
        self.send(Self::header(PacketOp::Request), &[]);
        let response = self.expect(PacketOp::Response);
        assert_eq!(
            (response.src_port, response.dst_port, response.dst_cid),
            (1024, AGENT_PORT, 3)
        );
    }
}

#[test]
fn small_messages_go_both_ways() {
    for without in [0, crate::mmio::F_EVENT_IDX] {
        let mut guest = Guest::new(without);
        guest.connect();
        guest.data(b"hello");
        let mut bytes = [0; 5];
        guest.link.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        guest.link.write_all(b"welcome").unwrap();
        assert_eq!(guest.receive().1, b"welcome");
        assert!(guest.line.0.read().unwrap() > 0);
        assert_eq!(read32(guest.mmio(), 0x60), 1);
        write32(guest.mmio(), 0x64, 1);
        assert_eq!(read32(guest.mmio(), 0x60), 0);
    }
}

#[test]
fn nobody_else_in_the_guest_takes_the_agents_place() {
    let mut guest = Guest::new(0);
    let from = |src_port, op| PacketHeader {
        src_port,
        ..Guest::header(op)
    };
    let mut refused = 0;
    let mut knock = |guest: &mut Guest, port| {
        guest.send(from(port, PacketOp::Request), &[]);
        assert_eq!(guest.expect(PacketOp::Reset).dst_port, port);
        let len = 5;
        let data = PacketHeader {
            len,
            ..from(port, PacketOp::Data)
        };
        guest.send(data, b"hello");
        assert_eq!(guest.expect(PacketOp::Reset).dst_port, port);
        refused += 2;
        assert_eq!(guest.running.made.1.refused.get(), refused);
    };
    // Before the agent's connection, while it stands, and after it.
    knock(&mut guest, 5000);
    guest.connect();
    guest.data(b"first");
    knock(&mut guest, 5000);
    knock(&mut guest, AGENT_PORT - 1);
    guest.link.write_all(b"still the agent's").unwrap();
    assert_eq!(guest.receive().1, b"still the agent's");
    guest.send(Guest::header(PacketOp::Reset), &[]);
    knock(&mut guest, 5000);
    guest.connect();
    guest.data(b"again");
    let mut bytes = [0; 10];
    guest.link.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"firstagain");
    assert_eq!(guest.running.made.1.connections.get(), 2);
}

#[test]
fn bulk_from_the_guest_arrives_whole_and_costs_few_system_calls() {
    let mut guest = Guest::new(0);
    guest.connect();
    const TOTAL: usize = 8 << 20;
    let pattern = |at: usize| (at / 7 % 251) as u8;
    let mut link = guest.link.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; TOTAL];
        link.read_exact(&mut bytes).unwrap();
        bytes
    });
    let before = guest.running.metrics.enters.get();
    let (mut sent, mut forwarded) = (0usize, 0u32);
    while sent < TOTAL {
        let credit = BUFFER as usize - (sent - forwarded as usize);
        let len = credit.min(64 * 1024).min(TOTAL - sent);
        if len == 0 || guest.queues[RX].take_used_peek() {
            forwarded = guest.expect(PacketOp::CreditUpdate).fwd_cnt;
            continue;
        }
        let data: Vec<u8> = (sent..sent + len).map(pattern).collect();
        guest.data(&data);
        sent += len;
        while guest.queues[TX].take_used().is_some() {}
    }
    let bytes = reader.join().unwrap();
    assert!(bytes.iter().enumerate().all(|(i, &b)| b == pattern(i)));
    let metrics = &guest.running.made.1;
    assert_eq!(metrics.from_guest_bytes.get(), TOTAL as u64);
    assert_eq!(metrics.copied_bytes.get(), 0);
    let enters = guest.running.metrics.enters.get() - before;
    let interrupts = guest.running.metrics.interrupts.get();
    println!("8 MiB from the guest: {enters} enters, {interrupts} interrupts");
    assert!(enters <= 60 * 8, "{enters} system calls for 8 MiB");
}

#[test]
fn bulk_to_the_guest_arrives_whole_within_its_credit() {
    let mut guest = Guest::new(0);
    guest.connect();
    const TOTAL: usize = 4 << 20;
    let pattern = |at: usize| (at / 5 % 241) as u8;
    let mut link = guest.link.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..TOTAL).map(pattern).collect();
        link.write_all(&bytes).unwrap();
    });
    let (mut got, mut told) = (0, 0);
    while got < TOTAL {
        let (header, data) = guest.receive();
        assert_eq!(header.op, PacketOp::Data);
        assert!(data.iter().enumerate().all(|(i, &b)| b == pattern(got + i)));
        got += data.len();
        assert!(got - told <= 256 * 1024);
        if got - told >= 128 * 1024 {
            told = got;
            guest.send(
                PacketHeader {
                    fwd_cnt: got as u32,
                    ..Guest::header(PacketOp::CreditUpdate)
                },
                &[],
            );
            while guest.queues[TX].take_used().is_some() {}
        }
    }
    writer.join().unwrap();
    let (enters, interrupts) = (
        guest.running.metrics.enters.get(),
        guest.running.metrics.interrupts.get(),
    );
    println!("4 MiB to the guest: {enters} enters, {interrupts} interrupts");
    assert!(enters <= 4 * 128);
}

#[test]
fn a_guest_without_credit_stalls_the_writer_not_the_device() {
    let mut guest = Guest::new(0);
    guest.send(
        PacketHeader {
            buf_alloc: 10,
            ..Guest::header(PacketOp::Request)
        },
        &[],
    );
    guest.expect(PacketOp::Response);
    guest.link.set_nonblocking(true).unwrap();
    let mut written = 0;
    // What fits into the pool and the socket's buffers, and no more.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        written += guest.link.write(&[7; 4096]).unwrap_or(0);
    }
    assert!(written < 2 << 20, "{written}");
    assert_eq!(guest.receive().1, [7; 10]);
    // The guest still is heard.
    let freed = PacketHeader {
        buf_alloc: 1000,
        ..Guest::header(PacketOp::CreditUpdate)
    };
    guest.send(
        PacketHeader {
            fwd_cnt: 10,
            ..freed
        },
        &[],
    );
    assert_eq!(guest.receive().1.len(), 1000);
}

#[test]
fn a_link_that_does_not_read_keeps_the_control_path_open() {
    let mut guest = Guest::new(0);
    guest.connect();
    // Fill the socket, then the whole credit with payloads that are held in guest memory.
    let mut sent = 0;
    while sent < BUFFER as usize {
        guest.data(&[1; 8192]);
        sent += 8192;
        while guest.queues[TX].take_used().is_some() {}
        if guest.queues[RX].take_used_peek() {
            guest.expect(PacketOp::CreditUpdate);
            break;
        }
    }
    guest.send(Guest::header(PacketOp::CreditRequest), &[]);
    assert_eq!(guest.expect(PacketOp::CreditUpdate).buf_alloc, BUFFER);
}

#[test]
fn an_orderly_close_delivers_everything_first() {
    let mut guest = Guest::new(0);
    guest.connect();
    guest.data(&[9; 30_000]);
    guest.send(
        PacketHeader {
            flags: SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
            ..Guest::header(PacketOp::Shutdown)
        },
        &[],
    );
    guest.expect(PacketOp::Reset);
    let mut bytes = [0; 30_000];
    guest.link.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [9; 30_000]);
    guest.connect();
    guest.data(b"again");
    guest.link.read_exact(&mut bytes[..5]).unwrap();
    assert_eq!(&bytes[..5], b"again");
}

#[test]
fn the_end_of_the_link_resets_the_connection() {
    let mut guest = Guest::new(0);
    guest.connect();
    guest.link.shutdown(std::net::Shutdown::Both).unwrap();
    guest.expect(PacketOp::Reset);
    guest.send(Guest::header(PacketOp::Request), &[]);
    guest.expect(PacketOp::Reset);
}

#[test]
fn overrunning_the_credit_resets_the_connection() {
    let mut guest = Guest::new(0);
    guest.connect();
    // The link is not read, so at some point the guest is over its credit.
    // Credit updates may come before: they are no reason to stop sending.
    let header = wait(|| {
        guest.data(&[1; 64 * 1024]);
        while guest.queues[TX].take_used().is_some() {}
        guest.queues[RX]
            .take_used_peek()
            .then(|| guest.receive().0)
            .filter(|header| header.op != PacketOp::CreditUpdate)
    });
    assert_eq!(header.op, PacketOp::Reset);
}

#[test]
fn a_driver_reset_in_the_middle_of_everything_is_clean() {
    let mut guest = Guest::new(0);
    for round in 0..5 {
        guest.connect();
        // A send that cannot complete, because nobody reads the link.
        (0..7).for_each(|_| guest.data(&[1; 64 * 1024]));
        guest.link.write_all(&[2; 100]).unwrap();
        let start = Instant::now();
        write32(guest.mmio(), 0x70, 0);
        assert!(start.elapsed() < Duration::from_secs(1), "round {round}");
        assert_eq!(read32(guest.mmio(), 0x70), 0);
        guest.queues = set_up(guest.mmio(), &guest.memory, 0, QUEUES);
        (0..64).for_each(|i| guest.post_rx(i));
        guest.kick(RX);
        // Drain what the rounds before left in the socket.
        guest.link.set_nonblocking(true).unwrap();
        while guest.link.read(&mut [0; 65536]).is_ok() {}
        guest.link.set_nonblocking(false).unwrap();
    }
}

#[test]
fn a_broken_queue_stops_the_device_and_a_reset_mends_it() {
    let mut guest = Guest::new(0);
    guest.queues[TX].break_it();
    guest.queues[TX].force_kick(guest.mmio());
    wait(|| (read32(guest.mmio(), 0x70) & 64 != 0).then_some(()));
    guest.queues = set_up(guest.mmio(), &guest.memory, 0, QUEUES);
    (0..64).for_each(|i| guest.post_rx(i));
    guest.kick(RX);
    guest.connect();
}

#[test]
fn an_idle_device_makes_no_system_calls() {
    let mut guest = Guest::new(0);
    guest.connect();
    guest.data(b"x");
    std::thread::sleep(Duration::from_millis(100));
    let before = guest.running.metrics.enters.get();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(guest.running.metrics.enters.get(), before);
}

/// Enters of the ring for `rounds` of something.
fn enters(guest: &mut Guest, rounds: u64, mut round: impl FnMut(&mut Guest)) -> f64 {
    let before = guest.running.metrics.enters.get();
    (0..rounds).for_each(|_| round(guest));
    let after = guest.running.metrics.enters.get();
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let per_round = (after - before) as f64 / rounds as f64;
    per_round
}

/// The table of this crate's README.
#[test]
fn one_message_costs_few_system_calls() {
    let mut guest = Guest::new(0);
    guest.connect();
    let mut bytes = [0; 100];
    let to_guest = enters(&mut guest, 200, |g| {
        g.link.write_all(&bytes).unwrap();
        g.receive();
    });
    let from_guest = enters(&mut guest, 200, |g| {
        g.data(&[1; 100]);
        g.link.read_exact(&mut bytes).unwrap();
        while g.queues[TX].take_used().is_some() {}
    });
    let both = enters(&mut guest, 200, |g| {
        g.link.write_all(&[1; 100]).unwrap();
        g.receive();
        g.data(&[1; 100]);
        g.link.read_exact(&mut [0; 100]).unwrap();
        while g.queues[TX].take_used().is_some() {}
    });
    let others = guest.running.metrics.syscalls.get();
    println!("enters: to guest {to_guest}, from guest {from_guest}, both {both}; others {others}");
    assert!(to_guest <= 1.6 && from_guest <= 2.6 && both <= 3.6 && others == 0);
}
