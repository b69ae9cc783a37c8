//! `hatchery-vmm run`, with a kernel of a few instructions that speaks as the agent does.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::{LOAD, RESET, elf, file, kvm};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

/// What the guest says over the link.
const WORDS: &[u8] = b"hello";

/// Where the parts of the guest are, from its start.
const TABLE: usize = 0x800;
const DIRECTORY: usize = 0x1000;
const RX: usize = 0x2000;
const TX: usize = 0x3000;
/// In the page of a queue: descriptors, then its rings, then what the descriptors point to.
const AVAILABLE: usize = 0x100;
const USED: usize = 0x200;
const BUFFERS: usize = 0x400;
const END: usize = 0x4000;

/// The first window of virtio-mmio: the socket device.
const WINDOW: u32 = 0xc000_0000;
/// The fourth entry of the boot page tables' second level: the fourth GiB.
const FOURTH_GIB: u32 = 0xa000 + 3 * 8;

fn at(offset: usize) -> u32 {
    u32::try_from(LOAD).unwrap() + u32::try_from(offset).unwrap()
}

/// A packet of the socket device (virtio 1.2 §5.10.6) from port 9 of the guest to the agent's.
fn packet(op: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = [3_u64, 2].map(u64::to_le_bytes).concat();
    let len = u32::try_from(payload.len()).unwrap();
    packet.extend([9, 1024, len].map(u32::to_le_bytes).concat());
    packet.extend([1, op].map(u16::to_le_bytes).concat());
    packet.extend([0, 4096, 0].map(u32::to_le_bytes).concat());
    packet.extend(payload);
    packet
}

/// A page with a queue of four, in which these buffers are available.
fn queue(start: usize, buffers: &[&[u8]], flags: u16) -> Vec<u8> {
    let mut page = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    for (i, buffer) in buffers.iter().enumerate() {
        let place = BUFFERS + i * 0x100;
        put(place, buffer);
        put(i * 16, &u64::from(at(start + place)).to_le_bytes());
        let len = u32::try_from(buffer.len()).unwrap();
        put(i * 16 + 8, &len.to_le_bytes());
        put(i * 16 + 12, &flags.to_le_bytes());
        let head = u16::try_from(i).unwrap().to_le_bytes();
        put(AVAILABLE + 4 + i * 2, &head);
    }
    let available = u16::try_from(buffers.len()).unwrap();
    put(AVAILABLE + 2, &available.to_le_bytes());
    page
}

/// What the guest writes, and where to, in turn: a page table entry, then the registers of the
/// device (virtio 1.2 §4.2.2).
fn writes() -> Vec<(u32, u32)> {
    let mut writes = vec![(FOURTH_GIB, at(DIRECTORY) | 0b11)];
    let mut set = |register: u32, value: u32| writes.push((WINDOW + register, value));
    // Acknowledge, driver; VERSION_1 alone; features are fine.
    for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
        set(register, value);
    }
    for (number, page) in [(0, RX), (1, TX)] {
        set(0x30, number);
        set(0x38, 4);
        for (register, part) in [(0x80, 0), (0x90, AVAILABLE), (0xa0, USED)] {
            set(register, at(page + part));
        }
        set(0x44, 1);
    }
    // Driver ready; there is something to send.
    set(0x70, 15);
    set(0x50, 1);
    writes
}

/// A guest that opens the agent's connection, says [`WORDS`], waits until both packets are taken,
/// and resets the machine.
fn speaking() -> Vec<u8> {
    let mut guest = [
        &[0xfb][..], // sti: an emulated host can interrupt only who allows it
        &[0xbe],     // mov esi, table
        &at(TABLE).to_le_bytes(),
        &[0x8b, 0x3e],       // next: mov edi, [rsi]
        &[0x85, 0xff],       // test edi, edi
        &[0x74, 0x0a],       // jz wait
        &[0x8b, 0x46, 0x04], // mov eax, [rsi + 4]
        &[0x89, 0x07],       // mov [rdi], eax
        &[0x83, 0xc6, 0x08], // add esi, 8
        &[0xeb, 0xf0],       // jmp next
        &[0xbe],             // wait: mov esi, the used ring's index
        &at(TX + USED + 2).to_le_bytes(),
        &[0x0f, 0xb7, 0x06], // again: movzx eax, word [rsi]
        &[0x83, 0xf8, 0x02], // cmp eax, 2
        &[0x75, 0xf8],       // jne again
        &RESET,
    ]
    .concat();
    guest.resize(TABLE, 0);
    guest.extend(
        writes()
            .iter()
            .flat_map(|(to, value)| [to.to_le_bytes(), value.to_le_bytes()].concat()),
    );
    guest.resize(DIRECTORY, 0);
    // 2 MiB from the window on: present, writable, large.
    guest.extend(u64::from(WINDOW | 0b1000_0011).to_le_bytes());
    guest.resize(RX, 0);
    guest.extend(queue(RX, &[&[0; 64]], 2));
    guest.extend(queue(TX, &[&packet(1, b""), &packet(5, WORDS)], 0));
    assert_eq!(guest.len(), END);
    guest
}

fn path(file: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

#[test]
fn run_shows_the_agents_first_words_and_ends_with_the_machine() {
    if !kvm() {
        return;
    }
    let (kernel, agent) = (file(&elf(&speaking())), file(b"agent"));
    let ran = Command::new(env!("CARGO_BIN_EXE_hatchery-vmm"))
        .args(["run", "--kernel", &path(&kernel), "--agent", &path(&agent)])
        .args(["--memory", "128", "--timeout-s", "30", "--quiet"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{}: {said}", ran.status);
    let words = format!("after the kernel's entry: {WORDS:02x?}");
    assert!(said.contains(&words), "{said}");
    assert!(said.contains("ended: GuestShutdown"), "{said}");
}
