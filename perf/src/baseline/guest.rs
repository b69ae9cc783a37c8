//! A guest of a few dozen instructions, and snapshots of it.
//!
//! It says `ready`, waits until a byte of its memory is set, dirties as many pages as it is told,
//! and writes a value that only a guest with the right memory can know. It is booted once and
//! saved while it waits; base memory is what was saved with the control page filled in, so a
//! clone goes on at its first instruction.

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use snapshot_memory::{BaseMemory, LayerFile, PageRange, write_layer};
use std::fs::File;
use std::os::fd::OwnedFd;

/// Memory of a bare guest, MiB: the least there is.
pub(crate) const MEMORY_MIB: u32 = 128;
pub(super) const PAGES: u64 = (MEMORY_MIB as u64) << 20 >> 12;
/// Where the kernel is loaded and entered.
const LOAD: u64 = 0x100_0000;
/// The page that tells the guest what to do: go, nonce, pages, what then.
const CONTROL: usize = 0x20_0000;
/// Where the pages that it dirties begin; they end before the kernel, at 16 MiB.
const DIRTY: u64 = 0x40_0000;
/// Most pages it can dirty.
pub(crate) const MAX_DIRTY: u64 = (0x100_0000 - DIRTY) / 4096;
/// What the waiting guest says.
pub(super) const READY: &str = "ready";

/// What the guest does when it has written its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterAnswer {
    /// Sleeps for ever.
    Wait,
    /// Ends the machine.
    Reset,
}

/// Writes `text` and a line feed to the console, byte by byte.
fn say(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text.bytes().chain([b'\n']) {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code
}

/// The waiting guest.
pub(super) fn kernel() -> Vec<u8> {
    const AFTER: &[&[u8]] = &[
        &[0x80, 0x3c, 0x25, 0x00, 0x00, 0x20, 0x00, 0x00], // wait: cmp byte [0x200000], 0
        &[0x74, 0xf6],                                     // je wait
        &[0x48, 0x8b, 0x1c, 0x25, 0x08, 0x00, 0x20, 0x00], // mov rbx, [0x200008]
        &[0x48, 0x8b, 0x0c, 0x25, 0x10, 0x00, 0x20, 0x00], // mov rcx, [0x200010]
        &[0xbf, 0x00, 0x00, 0x40, 0x00],                   // mov edi, 0x400000
        &[0x48, 0x85, 0xc9],                               // test rcx, rcx
        &[0x74, 0x12],                                     // je write
        &[0x48, 0x89, 0x1f],                               // dirty: mov [rdi], rbx
        &[0x48, 0xff, 0xc3],                               // inc rbx
        &[0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00],       // add rdi, 4096
        &[0x48, 0xff, 0xc9],                               // dec rcx
        &[0x75, 0xee],                                     // jnz dirty
        &[0xb9, 0x04, 0x00, 0x00, 0x00],                   // write: mov ecx, 4
        &[0x88, 0xd8],                                     // digit: mov al, bl
        &[0x24, 0x0f],                                     // and al, 15
        &[0x04, 0x61],                                     // add al, 'a'
        &[0xee],                                           // out dx, al
        &[0x48, 0xc1, 0xeb, 0x04],                         // shr rbx, 4
        &[0xff, 0xc9],                                     // dec ecx
        &[0x75, 0xf1],                                     // jnz digit
        &[0xb0, 0x0a, 0xee],                               // mov al, '\n'; out dx, al
        &[0x80, 0x3c, 0x25, 0x18, 0x00, 0x20, 0x00, 0x00], // cmp byte [0x200018], 0
        &[0x74, 0x04],                                     // je sleep
        &[0xb0, 0xfe, 0xe6, 0x64],                         // mov al, 0xfe; out 0x64, al
        &[0xf4, 0xeb, 0xfd],                               // sleep: hlt; jmp sleep
    ];
    elf(&[say(READY), AFTER.concat()].concat())
}

/// The value of a guest with this nonce that dirtied so many pages, as it writes it.
pub(super) fn value(nonce: u16, pages: u64) -> String {
    let sum = u64::from(nonce) + pages;
    (0..4)
        .map(|digit| char::from(b'a' + u8::try_from(sum >> (4 * digit) & 15).unwrap_or(0)))
        .collect()
}

/// What clones begin at.
pub(crate) struct BareGuest {
    /// Their memory.
    pub(crate) memory: BaseMemory,
    /// The section file.
    pub(crate) state: OwnedFd,
    /// What each of them will write.
    pub(crate) value: String,
    /// Pages that each of them will dirty.
    pub(crate) pages: u64,
    pub(super) nonce: u16,
}

impl BareGuest {
    /// Checks that a layer that was saved of such a clone holds what the guest wrote.
    pub(crate) fn check_layer(&self, memory: File) -> Result<()> {
        let layer = LayerFile::open(memory)?;
        let mut right = 0;
        layer.apply(|offset, bytes| {
            for (at, page) in (offset..).step_by(4096).zip(bytes.chunks(4096)) {
                let expected = u64::from(self.nonce) + (at.saturating_sub(DIRTY) >> 12);
                right += u64::from(at >= DIRTY && page.starts_with(&expected.to_le_bytes()));
            }
            Ok(())
        })?;
        ensure!(
            right >= self.pages,
            "{right} pages of the saved layer hold what the guest wrote, not {}",
            self.pages
        );
        Ok(())
    }
}

pub(super) fn nonce() -> Result<u16> {
    let mut bytes = [0; 2];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    ensure!(got == bytes.len(), "The host gave {got} random bytes");
    // Not zero: a page of zeros is not stored.
    Ok(u16::from_le_bytes(bytes) | 1)
}

/// A layer with the control page and nothing else.
pub(super) fn control_page(nonce: u16, pages: u64, then: AfterAnswer) -> Result<File> {
    let mut memory = vec![0; usize::try_from(PAGES * 4096)?];
    let fields = [
        1,
        u64::from(nonce),
        pages,
        u64::from(then == AfterAnswer::Reset),
    ];
    for (slot, field) in memory[CONTROL..].chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes());
    }
    let first = u64::try_from(CONTROL / 4096)?;
    let layer = File::from(file()?);
    let range = PageRange {
        first,
        end: first + 1,
    };
    write_layer(&[&memory], &[range], &layer)?;
    Ok(layer)
}

/// An empty file in memory.
pub(super) fn file() -> Result<OwnedFd> {
    memfd_create("bare", MemfdFlags::CLOEXEC).context("Creating a memory file")
}

/// An ELF file with one segment of code, as a kernel.
fn elf(code: &[u8]) -> Vec<u8> {
    let len = u64::try_from(code.len()).unwrap_or(0);
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |n: u16| n.to_le_bytes().to_vec();
    let word = |n: u32| n.to_le_bytes().to_vec();
    let long = |n: u64| n.to_le_bytes().to_vec();
    // Executable, x86-64, version, entry, program headers at 64, no sections, no flags.
    file.extend(
        [
            half(2),
            half(62),
            word(1),
            long(LOAD),
            long(64),
            long(0),
            word(0),
        ]
        .concat(),
    );
    // Size of this header, size and number of program headers, none of sections.
    file.extend([half(64), half(56), half(1), half(0), half(0), half(0)].concat());
    // A segment to load: flags, offset, virtual and physical address, lengths, alignment.
    file.extend([word(1), word(5), long(120), long(LOAD), long(LOAD)].concat());
    file.extend([long(len), long(len), long(4096)].concat());
    file.extend(code);
    file
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_value_is_written_low_digit_first() {
        assert_eq!(value(0x1234, 0), "edcb");
        assert_eq!(value(0xffff, 1), "aaaa");
    }

    #[test]
    fn the_control_page_is_all_of_its_layer() {
        let layer = LayerFile::open(control_page(0x1234, 7, AfterAnswer::Reset).unwrap()).unwrap();
        let mut found = Vec::new();
        layer
            .apply(|offset, bytes| {
                found.push((offset, bytes[..32].to_vec()));
                Ok(())
            })
            .unwrap();
        let words = [1u64, 0x1234, 7, 1].map(u64::to_le_bytes).concat();
        assert_eq!(found, [(CONTROL as u64, words)]);
    }

    #[test]
    fn the_code_follows_the_headers() {
        assert_eq!(elf(b"code")[120..], *b"code");
    }
}
