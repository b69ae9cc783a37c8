//! Fuzz entry points: bytes become what a hostile guest does, on real devices and a real loop.
//!
//! Each ends with the same question: can a well-behaved driver still reset the devices and use
//! them? A guest may break its own sandbox, never the process that holds it.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a fuzz target fails by panicking"
)]

mod load;

use crate::queue_pair::{RX, TX};
use crate::testing::{
    DriverQueue, QUEUES, Running, add_block, add_vsock, line, memory, read32, set_up, vsock_config,
    wait, write32,
};
use crate::vsock::packet::{PacketHeader, PacketOp};
use crate::vsock::spec::HEADER_LEN;
use crate::{
    BlockConfig, DiskParent, EventLoop, FrameSocket, Ioapic, IrqRoutes, Memory, MmioWindow,
    MsiRoute, Net, Rng, SavedConnection,
};
pub use load::fuzz_load;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

/// Values out of the input; zeros after its end.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let n = N.min(self.0.len());
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        out
    }
    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    /// Mostly small, sometimes anything.
    fn len(&mut self) -> u32 {
        match self.u8() % 8 {
            0 => self.u32(),
            1 => 0,
            2 => 65536,
            _ => u32::from(self.u16()) % 5000,
        }
    }
    /// Mostly in memory, sometimes at its end or anywhere.
    fn address(&mut self) -> u64 {
        let value = u64::from(self.u32());
        match self.u8() % 8 {
            0 => u64::from_le_bytes(self.take()),
            1 => crate::testing::MEMORY as u64 - value % 64,
            _ => value % QUEUES,
        }
    }
}

struct Guest {
    running: Running<Vec<Arc<MmioWindow>>>,
    memory: Arc<Memory>,
    queues: Vec<Vec<DriverQueue>>,
    link: UnixStream,
    wire: OwnedFd,
}

const VSOCK: usize = 0;
const BLOCK: usize = 1;
const NET: usize = 3;
/// Where a frame lies, behind its header.
const FRAME: u64 = 0x40_0000;

fn file(len: u64) -> File {
    let fd = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd.into()
}

/// A network card's wire: the far end, and the card's.
fn wire() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn add_net(event_loop: &mut EventLoop, frames: OwnedFd) -> Arc<MmioWindow> {
    let device = Net::new(FrameSocket(frames));
    event_loop.add(Box::new(device), line()).unwrap()
}

impl Guest {
    fn new() -> Self {
        let memory = memory();
        let (link, theirs) = UnixStream::pair().unwrap();
        link.set_nonblocking(true).unwrap();
        let (wire, frames) = wire();
        let running = Running::new(memory.clone(), move |event_loop| {
            let config = vsock_config(theirs, SavedConnection::Broken);
            let (vsock, _) = add_vsock(event_loop, config, line());
            let (base, layer) = (file(1 << 20), Some(file(0)));
            let config = BlockConfig {
                base,
                layer,
                parent: DiskParent::default(),
                size: 2 << 20,
                serial: String::new(),
            };
            let (block, _) = add_block(event_loop, config);
            let rng = event_loop.add(Box::new(Rng::default()), line()).unwrap();
            vec![vsock, block, rng, add_net(event_loop, frames)]
        });
        let mut guest = Self {
            running,
            memory,
            queues: Vec::new(),
            link,
            wire,
        };
        guest.set_up();
        guest
    }

    fn set_up(&mut self) {
        let made = self.running.made.iter().enumerate();
        self.queues = made
            .map(|(i, mmio)| {
                // Each device's queues in their own place.
                set_up(mmio, &self.memory, 0, QUEUES + 0x2_0000 * i as u64)
            })
            .collect();
    }

    fn step(&mut self, source: &mut Source<'_>) {
        let device = usize::from(source.u8()) % self.queues.len();
        let mmio = self.running.made[device].clone();
        let queues = &mut self.queues[device];
        let count = queues.len();
        let queue = &mut queues[usize::from(source.u8()) % count];
        match source.u8() % 12 {
            0 => write32(&mmio, u64::from(source.u8() % 70) * 4, source.u32()),
            1 => {
                let at = QUEUES + u64::from(source.u32()) % 0x8_0000;
                self.memory
                    .write_slice(&source.take::<8>(), GuestAddress(at))
                    .unwrap();
            }
            2 => {
                let buffers: Vec<_> = (0..source.u8() % 6)
                    .map(|_| {
                        (
                            source.address(),
                            source.len(),
                            source.u8().is_multiple_of(2),
                        )
                    })
                    .collect();
                if !buffers.is_empty() {
                    queue.add(&buffers);
                }
            }
            3 => queue.publish(source.u16() % 512),
            4 => self.packet(source),
            5 => self.request(source),
            6 => {
                let len = usize::from(source.u16());
                let _ = (&self.link).write(&vec![7; len]);
            }
            7 => {
                let len = usize::from(source.u16());
                let _ = (&self.link).read(&mut vec![0; len]);
            }
            8 => self.frame(source),
            9 => {
                let len = source.u16();
                let _ = send(&self.wire, &vec![7; len.into()], SendFlags::DONTWAIT);
            }
            10 => drop(recv(&self.wire, &mut [0; 64][..], RecvFlags::DONTWAIT)),
            _ => {}
        }
        self.queues[device].iter().for_each(|q| q.force_kick(&mmio));
    }

    /// A socket packet that is nearly right.
    fn packet(&mut self, source: &mut Source<'_>) {
        let len = source.len();
        let header = PacketHeader {
            src_cid: if source.u8() == 0 { 9 } else { 3 },
            dst_cid: 2,
            src_port: u32::from(source.u8() % 3),
            dst_port: if source.u8() == 0 { 1 } else { 1024 },
            len,
            kind: if source.u8() == 0 { 2 } else { 1 },
            op: PacketOp::from(u16::from(source.u8() % 9)),
            flags: source.u32() % 5,
            buf_alloc: source.len(),
            fwd_cnt: source.len(),
        };
        let at = 0x1000 + 0x100 * u64::from(source.u8());
        self.memory
            .write_slice(&header.emit(), GuestAddress(at))
            .unwrap();
        let data = if source.u8() == 0 { source.len() } else { len };
        let head = (at, u32::try_from(HEADER_LEN).unwrap(), false);
        self.queues[VSOCK][TX].add(&[head, (0x10_0000, data, false)]);
        if source.u8().is_multiple_of(2) {
            self.queues[VSOCK][RX].add(&[(0x20_0000, source.len(), true)]);
        }
    }

    /// A frame that is nearly right, and sometimes a buffer for one.
    fn frame(&mut self, source: &mut Source<'_>) {
        let header = if source.u8() == 0 { source.len() } else { 12 };
        let parts = [(FRAME - 0x100, header, false), (FRAME, source.len(), false)];
        self.queues[NET][0].add(&[(FRAME + 0x2_0000, source.len(), true)]);
        self.queues[NET][1].add(&parts[..if source.u8() == 0 { 1 } else { 2 }]);
    }

    /// A disk request that is nearly right.
    fn request(&mut self, source: &mut Source<'_>) {
        let at = 0x1_1000 + 0x100 * u64::from(source.u8());
        let kind = [0, 1, 4, 8, 11, 13, 1, 1][usize::from(source.u8() % 8)];
        self.memory
            .write_obj::<u32>(kind, GuestAddress(at))
            .unwrap();
        let sector = u64::from(source.u16()) % 4200;
        self.memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
        let sectors = u32::from(source.u8());
        let data = GuestAddress(0x30_0000);
        self.memory.write_obj(sector, data).unwrap();
        self.memory
            .write_obj(sectors, GuestAddress(data.0 + 8))
            .unwrap();
        self.memory
            .write_obj(0u32, GuestAddress(data.0 + 12))
            .unwrap();
        let len = if matches!(kind, 11 | 13) {
            16
        } else {
            sectors * 512
        };
        let len = if source.u8() == 0 { source.len() } else { len };
        let from_device = matches!(kind, 0 | 8);
        self.queues[BLOCK][0].add(&[
            (at, 16, false),
            (data.0, len, from_device),
            (at + 16, 1, true),
        ]);
    }

    /// A well-behaved driver comes back.
    fn recovers(&mut self) {
        self.set_up();
        let mmio = self.running.made[BLOCK].clone();
        self.memory
            .write_slice(&[0; 17], GuestAddress(0x1000))
            .unwrap();
        self.memory.write_obj(0xffu8, GuestAddress(0x1010)).unwrap();
        let queue = &mut self.queues[BLOCK][0];
        queue.add(&[(0x1000, 16, false), (0x2000, 512, true), (0x1010, 1, true)]);
        queue.force_kick(&mmio);
        wait(|| queue.take_used());
        assert_eq!(self.memory.read_obj::<u8>(GuestAddress(0x1010)).unwrap(), 0);

        let mmio = self.running.made[VSOCK].clone();
        let request = PacketHeader {
            src_cid: 3,
            dst_cid: 2,
            src_port: 9,
            dst_port: 1024,
            len: 0,
            kind: 1,
            op: PacketOp::Request,
            flags: 0,
            buf_alloc: 4096,
            fwd_cnt: 0,
        };
        self.memory
            .write_slice(&request.emit(), GuestAddress(0x1000))
            .unwrap();
        let queues = &mut self.queues[VSOCK];
        queues[RX].add(&[(0x4000, 4096, true)]);
        queues[TX].add(&[(0x1000, u32::try_from(HEADER_LEN).unwrap(), false)]);
        queues[TX].force_kick(&mmio);
        wait(|| queues[RX].take_used());
        let mut header = [0; HEADER_LEN];
        self.memory
            .read_slice(&mut header, GuestAddress(0x4000))
            .unwrap();
        assert_eq!(PacketHeader::parse(&header).op, PacketOp::Response);
        assert_eq!(read32(&mmio, 0x70), 15);
        self.wire_recovers();
    }

    /// A frame gets through, after those that were under way.
    fn wire_recovers(&mut self) {
        let (mmio, sent) = (self.running.made[NET].clone(), [0xa5; 99]);
        self.memory.write_slice(&sent, GuestAddress(FRAME)).unwrap();
        let queue = &mut self.queues[NET][1];
        queue.add(&[(FRAME - 0x100, 12, false), (FRAME, 99, false)]);
        queue.force_kick(&mmio);
        wait(|| {
            let mut frame = [0; 100];
            let got = recv(&self.wire, &mut frame[..], RecvFlags::DONTWAIT);
            got.is_ok_and(|(len, _)| frame[..len] == sent).then_some(())
        });
    }
}

/// A hostile driver of the socket, block, entropy and network devices: register writes,
/// descriptors, rings, packets, requests and frames out of `input`, while the link and the far end
/// of the network are read and written.
pub fn fuzz_devices(input: &[u8]) {
    let mut guest = Guest::new();
    let mut source = Source(input);
    while !source.is_empty() {
        guest.step(&mut source);
    }
    std::thread::sleep(Duration::from_micros(200));
    guest.recovers();
}

struct NoRoutes;

impl IrqRoutes for NoRoutes {
    fn set(&self, pin: u8, route: MsiRoute) {
        assert!(pin < crate::IOAPIC_PINS && route.address >> 20 == 0xfee);
    }
}

/// Any access to the IOAPIC.
pub fn fuzz_ioapic(input: &[u8]) {
    let ioapic = Ioapic::new(Arc::new(NoRoutes));
    let mut source = Source(input);
    while !source.is_empty() {
        let offset = u64::from(source.u8());
        let len = usize::from(source.u8() % 9);
        let mut data = source.take::<8>();
        if source.u8().is_multiple_of(2) {
            ioapic.write(offset & 0x1f, &data[..len]);
        } else {
            ioapic.read(offset, &mut data[..len]);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 150,
            max_shrink_iters: 0,
            ..ProptestConfig::default()
        })]
        #[test]
        fn hostile_drivers_break_nothing(input in proptest::collection::vec(any::<u8>(), 0..4000)) {
            fuzz_devices(&input);
        }

        #[test]
        fn hostile_ioapic_accesses_break_nothing(
            input in proptest::collection::vec(any::<u8>(), 0..4000),
        ) {
            fuzz_ioapic(&input);
        }
    }
}
