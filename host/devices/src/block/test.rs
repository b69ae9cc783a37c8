//! The block device whole, against a plain byte vector as oracle.
#![expect(clippy::cast_possible_truncation, reason = "test values are small")]

mod full;
mod save;

use super::BlockConfig;
use super::spec::{
    S_IOERR, S_OK, S_UNSUPP, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES,
};
use crate::testing::{Added, DriverQueue, QUEUES, Running, add_block, memory, set_up, write32};
use crate::{BlockError, BlockMetrics, DiskParent, Memory};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const BLOCKS: u64 = 64;
const SIZE: usize = 4096 * BLOCKS as usize;
const HEADERS: u64 = 0x1000;
const DATA: u64 = 0x10_0000;

struct Guest {
    running: Running<Added<BlockMetrics>>,
    memory: Arc<Memory>,
    queue: DriverQueue,
    next: u64,
}

fn base(len: usize) -> (File, Vec<u8>) {
    let bytes: Vec<u8> = (0..len).map(|i| (i / 512 + i % 7) as u8 | 1).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

impl Guest {
    fn new(base: File, layer: Option<File>) -> Self {
        let memory = memory();
        let running = Running::new(memory.clone(), move |event_loop| {
            let config = BlockConfig {
                base,
                layer,
                parent: DiskParent::default(),
                size: SIZE as u64,
                serial: "disk0".into(),
            };
            add_block(event_loop, config)
        });
        let queue = set_up(&running.made.0, &memory, 0, QUEUES).remove(0);
        Self {
            running,
            memory,
            queue,
            next: 0,
        }
    }

    /// Submits a request with `segments` pieces of data; the address of the status byte and data.
    fn submit(&mut self, kind: u32, sector: u64, data: Data<'_>, segments: usize) -> (u64, u64) {
        let slot = self.next % 32;
        self.next += 1;
        let (header, at) = (HEADERS + slot * 0x100, DATA + slot * 0x4_0000);
        self.memory.write_obj(kind, GuestAddress(header)).unwrap();
        self.memory
            .write_obj(0u32, GuestAddress(header + 4))
            .unwrap();
        self.memory
            .write_obj(sector, GuestAddress(header + 8))
            .unwrap();
        self.memory
            .write_obj(0xffu8, GuestAddress(header + 16))
            .unwrap();
        let (len, from_device) = match data {
            Data::Out(bytes) => {
                self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
                (bytes.len(), false)
            }
            Data::In(len) => {
                // Before the request is published: the device may see it at once.
                self.memory
                    .write_slice(&vec![0xee; len], GuestAddress(at))
                    .unwrap();
                (len, true)
            }
        };
        let mut chain = vec![(header, 16, false)];
        let part = len.div_ceil(segments.max(1)).max(1);
        for start in (0..len).step_by(part) {
            chain.push((at + start as u64, part.min(len - start) as u32, from_device));
        }
        chain.push((header + 16, 1, true));
        self.queue.add(&chain);
        (header + 16, at)
    }

    fn finish(&mut self, status: u64) -> u8 {
        self.queue.kick(&self.running.made.0);
        self.queue.wait_used();
        self.memory.read_obj(GuestAddress(status)).unwrap()
    }

    fn write(&mut self, sector: u64, data: &[u8], segments: usize) -> u8 {
        let (status, _) = self.submit(T_OUT, sector, Data::Out(data), segments);
        self.finish(status)
    }

    fn read(&mut self, sector: u64, len: usize, segments: usize) -> (u8, Vec<u8>) {
        let (status, at) = self.submit(T_IN, sector, Data::In(len), segments);
        let status = self.finish(status);
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        (status, bytes)
    }

    fn erase(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut segment = [0; 16];
        segment[..8].copy_from_slice(&sector.to_le_bytes());
        segment[8..12].copy_from_slice(&sectors.to_le_bytes());
        segment[12..].copy_from_slice(&flags.to_le_bytes());
        let (status, _) = self.submit(kind, 0, Data::Out(&segment), 1);
        self.finish(status)
    }
}

#[derive(Clone, Copy)]
enum Data<'a> {
    Out(&'a [u8]),
    In(usize),
}

#[derive(Clone, Debug)]
enum Step {
    Read {
        sector: u64,
        sectors: usize,
        segments: usize,
    },
    Write {
        sector: u64,
        sectors: usize,
        segments: usize,
        fill: u8,
    },
    Zero {
        sector: u64,
        sectors: u32,
    },
    Discard {
        sector: u64,
        sectors: u32,
    },
    /// Adjacent partial writes without waiting in between.
    Burst {
        sector: u64,
        fill: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let sector = 0..BLOCKS * 8 - 64;
    prop_oneof![
        (sector.clone(), 1usize..64, 1usize..20).prop_map(|(sector, sectors, segments)| {
            Step::Read {
                sector,
                sectors,
                segments,
            }
        }),
        (sector.clone(), 1usize..64, 1usize..20, any::<u8>()).prop_map(
            |(sector, sectors, segments, fill)| Step::Write {
                sector,
                sectors,
                segments,
                fill
            }
        ),
        (sector.clone(), 0u32..64).prop_map(|(sector, sectors)| Step::Zero { sector, sectors }),
        (sector.clone(), 0u32..64).prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        (sector, any::<u8>()).prop_map(|(sector, fill)| Step::Burst { sector, fill }),
    ]
}

/// What [`Step::Discard`] leaves: zeros in whole blocks, the rest as it was.
fn discard(oracle: &mut [u8], start: usize, len: usize) {
    let (from, to) = (start.next_multiple_of(4096), (start + len) / 4096 * 4096);
    if from < to {
        oracle[from..to].fill(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_disk_is_a_byte_vector(
        steps in proptest::collection::vec(step(), 1..40),
        base_len in 0..=SIZE,
    ) {
        let (base, mut oracle) = base(base_len);
        oracle.resize(SIZE, 0);
        let mut guest = Guest::new(base, Some(tempfile::tempfile().unwrap()));
        for step in steps {
            match step {
                Step::Read { sector, sectors, segments } => {
                    let (status, bytes) = guest.read(sector, sectors * 512, segments);
                    prop_assert_eq!(status, S_OK);
                    let at = sector as usize * 512;
                    prop_assert!(bytes == oracle[at..at + sectors * 512]);
                }
                Step::Write { sector, sectors, segments, fill } => {
                    let bytes = (0..sectors * 512).map(|i| fill ^ (i / 100) as u8);
                    let data: Vec<u8> = bytes.collect();
                    prop_assert_eq!(guest.write(sector, &data, segments), S_OK);
                    oracle[sector as usize * 512..][..data.len()].copy_from_slice(&data);
                }
                Step::Zero { sector, sectors } => {
                    prop_assert_eq!(guest.erase(T_WRITE_ZEROES, sector, sectors, 1), S_OK);
                    oracle[sector as usize * 512..][..sectors as usize * 512].fill(0);
                }
                Step::Discard { sector, sectors } => {
                    prop_assert_eq!(guest.erase(T_DISCARD, sector, sectors, 0), S_OK);
                    discard(&mut oracle, sector as usize * 512, sectors as usize * 512);
                }
                Step::Burst { sector, fill } => {
                    let mut statuses = Vec::new();
                    for i in 0..16u64 {
                        let data = [fill.wrapping_add(i as u8); 1536];
                        let at = sector + 3 * i;
                        statuses.push(guest.submit(T_OUT, at, Data::Out(&data), 1).0);
                        oracle[at as usize * 512..][..1536].copy_from_slice(&data);
                    }
                    for _ in 0..statuses.len() {
                        guest.queue.kick(&guest.running.made.0);
                        guest.queue.wait_used();
                    }
                    for status in statuses {
                        let status: u8 = guest.memory.read_obj(GuestAddress(status)).unwrap();
                        prop_assert_eq!(status, S_OK);
                    }
                }
            }
        }
        let mut got = Vec::new();
        for block in (0..BLOCKS).step_by(16) {
            got.extend(guest.read(block * 8, 16 * 4096, 3).1);
        }
        prop_assert!(got == oracle);
        prop_assert_eq!(guest.running.made.1.errors.get(), 0);
    }
}

#[test]
fn requests_out_of_bounds_are_refused() {
    let (base, _) = base(SIZE);
    let mut guest = Guest::new(base, Some(tempfile::tempfile().unwrap()));
    let end = SIZE as u64 / 512;
    assert_eq!(guest.read(end - 1, 512, 1).0, S_OK);
    assert_eq!(guest.read(end, 512, 1).0, S_IOERR);
    assert_eq!(guest.read(end - 1, 1024, 1).0, S_IOERR);
    assert_eq!(guest.read(u64::MAX, 512, 1).0, S_IOERR);
    assert_eq!(guest.read(u64::MAX / 512, 512, 1).0, S_IOERR);
    assert_eq!(guest.write(end, &[0; 512], 1), S_IOERR);
    assert_eq!(guest.write(0, &[0; 100], 1), S_IOERR);
    assert_eq!(guest.erase(T_DISCARD, end - 1, 2, 0), S_IOERR);
    assert_eq!(guest.erase(T_DISCARD, u64::MAX, 1, 0), S_IOERR);
    assert_eq!(guest.erase(T_DISCARD, 0, u32::MAX, 0), S_IOERR);
    assert_eq!(guest.erase(T_DISCARD, 0, 1, 1), S_UNSUPP);
    assert_eq!(guest.erase(T_WRITE_ZEROES, 0, 1, 2), S_UNSUPP);
    let (status, _) = guest.submit(77, 0, Data::In(512), 1);
    assert_eq!(guest.finish(status), S_UNSUPP);
    assert_eq!(guest.running.made.1.layer_blocks.get(), 0);
}

#[test]
fn malformed_chains_are_given_back() {
    let (base, _) = base(SIZE);
    let mut guest = Guest::new(base, None);
    // No status byte; no header; nothing writable at all; a loop.
    guest.queue.add(&[(HEADERS, 16, false)]);
    guest.queue.add(&[(HEADERS, 8, false), (DATA, 1, true)]);
    guest.queue.add(&[(DATA, 512, true), (HEADERS, 16, false)]);
    guest
        .queue
        .descriptor(10, DATA, 1, crate::testing::NEXT, 10);
    guest.queue.publish(10);
    for _ in 0..4 {
        guest.queue.kick(&guest.running.made.0);
        assert_eq!(guest.queue.wait_used().1, 0);
    }
    // Data outside memory fails the request or the device, never the process.
    let header = HEADERS + 0x800;
    guest
        .memory
        .write_slice(&[0; 16], GuestAddress(header))
        .unwrap();
    guest.queue.add(&[
        (header, 16, false),
        (1 << 40, 512, true),
        (header + 16, 1, true),
    ]);
    guest.queue.kick(&guest.running.made.0);
    guest.queue.wait_used();
    assert_eq!(
        guest
            .memory
            .read_obj::<u8>(GuestAddress(header + 16))
            .unwrap(),
        S_IOERR
    );
}

#[test]
fn a_disk_without_a_layer_is_read_only() {
    let (base, bytes) = base(SIZE);
    let mut guest = Guest::new(base, None);
    assert_eq!(guest.write(0, &[1; 512], 1), S_IOERR);
    assert_eq!(guest.erase(T_DISCARD, 0, 8, 0), S_UNSUPP);
    assert_eq!(guest.read(8, 4096, 1), (S_OK, bytes[4096..8192].to_vec()));
    let (status, _) = guest.submit(T_FLUSH, 0, Data::In(0), 1);
    assert_eq!(guest.finish(status), S_OK);
    let (status, at) = guest.submit(T_GET_ID, 0, Data::In(20), 1);
    assert_eq!(guest.finish(status), S_OK);
    let mut id = [0; 20];
    guest.memory.read_slice(&mut id, GuestAddress(at)).unwrap();
    assert_eq!(&id[..6], b"disk0\0");
}

#[test]
fn a_layer_that_cannot_be_written_is_an_error_and_the_image_stays() {
    let (base, bytes) = base(SIZE);
    let check = base.try_clone().unwrap();
    // A file that cannot become as long as the disk is refused before the guest sees it.
    let full = File::options()
        .read(true)
        .write(true)
        .open("/dev/full")
        .unwrap();
    let config = BlockConfig {
        base: base.try_clone().unwrap(),
        layer: Some(full),
        parent: DiskParent::default(),
        size: SIZE as u64,
        serial: String::new(),
    };
    assert!(matches!(
        super::Block::new(config),
        Err(BlockError::Io { .. })
    ));

    // A layer that stops to take writes.
    let layer = memfd_create("layer", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let seal = layer.try_clone().unwrap();
    let mut guest = Guest::new(base, Some(layer.into()));
    assert_eq!(guest.write(8, &[5; 4096], 2), S_OK);
    fcntl_add_seals(&seal, SealFlags::WRITE).unwrap();
    assert_eq!(guest.write(8, &[6; 512], 1), S_IOERR);
    assert_eq!(guest.write(16, &[6; 8192], 2), S_IOERR);
    assert_eq!(guest.write(33, &[6; 512], 1), S_IOERR);
    assert_eq!(guest.erase(T_DISCARD, 40, 8, 0), S_IOERR);
    // Nothing has changed, neither on the disk nor in the image.
    let mut expected = bytes.clone();
    expected[4096..8192].fill(5);
    assert!(guest.read(0, 128 * 1024, 4) == (S_OK, expected[..128 * 1024].to_vec()));
    assert_eq!(guest.running.made.1.errors.get(), 4);
    assert_eq!(guest.running.made.1.layer_blocks.get(), 1);
    let mut now = vec![0; SIZE];
    std::os::unix::fs::FileExt::read_exact_at(&check, &mut now, 0).unwrap();
    assert!(now == bytes);
}

#[test]
fn a_file_cut_short_is_an_error_not_garbage() {
    let layer = tempfile::tempfile().unwrap();
    let cut = layer.try_clone().unwrap();
    let mut guest = Guest::new(base(SIZE).0, Some(layer));
    assert_eq!(guest.write(0, &[5; 4096], 2), S_OK);
    cut.set_len(0).unwrap();
    assert_eq!(guest.read(0, 4096, 1).0, S_IOERR);
}

/// The table of this crate's README.
#[test]
fn one_request_costs_two_system_calls() {
    let mut guest = Guest::new(base(SIZE).0, Some(tempfile::tempfile().unwrap()));
    let before = guest.running.metrics.enters.get();
    for i in 0..BLOCKS {
        assert_eq!(guest.read(i * 8, 4096, 1).0, S_OK);
    }
    let enters = guest.running.metrics.enters.get() - before;
    assert!(enters <= 2 * BLOCKS + 2, "{enters}");
    assert_eq!(guest.running.metrics.syscalls.get(), 0);
}

#[test]
fn unusable_disks_are_refused() {
    let config = |size, layer| BlockConfig {
        base: base(8192).0,
        layer,
        parent: DiskParent::default(),
        size,
        serial: String::new(),
    };
    let refuse = |c| super::Block::new(c).unwrap_err();
    assert!(matches!(refuse(config(0, None)), BlockError::Size(0)));
    assert!(matches!(refuse(config(4097, None)), BlockError::Size(4097)));
    assert!(matches!(
        refuse(config(u64::MAX << 12, None)),
        BlockError::Size(_)
    ));
    assert!(matches!(
        refuse(config(4096, None)),
        BlockError::BaseTooLarge { base: 8192, .. }
    ));
    let layer = base(1).0;
    assert!(matches!(
        refuse(config(8192, Some(layer))),
        BlockError::LayerNotEmpty(1)
    ));
}

#[test]
fn a_driver_reset_with_requests_in_flight_is_clean() {
    let (base, bytes) = base(SIZE);
    let mut guest = Guest::new(base, Some(tempfile::tempfile().unwrap()));
    for _ in 0..50 {
        for i in 0..8 {
            guest.submit(T_IN, i * 8, Data::In(8 * 4096), 5);
        }
        guest.queue.kick(&guest.running.made.0);
        write32(&guest.running.made.0, 0x70, 0);
        guest.queue = set_up(&guest.running.made.0, &guest.memory, 0, QUEUES).remove(0);
    }
    assert_eq!(guest.read(0, 4096, 1), (S_OK, bytes[..4096].to_vec()));
}
