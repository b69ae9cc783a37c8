//! Rewrites vmlinux so that a loader touches only pages that hold something.
//!
//! The linker aligns the kernel's parts to 2 MiB and fills the gaps in its text with breakpoint
//! instructions (0xcc); a loader would copy 4 MiB of them into every guest. Here each loadable
//! segment is split around its filler: the rest of the file is the same ELF program, with more and
//! smaller segments, no sections, and nothing else.

use anyhow::{Context, Result, ensure};

const PAGE: usize = 4096;

/// Shorter runs of filler are copied: a segment more is not worth them.
const SHORTEST_RUN: usize = 4 * PAGE;

const HEADER: usize = 64;
const ENTRY: usize = 56;
const PT_LOAD: u32 = 1;
const FLAG_EXECUTE: u32 = 1;
const FLAG_WRITE: u32 = 2;

/// A program header.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ElfSegment {
    kind: u32,
    flags: u32,
    offset: usize,
    virtual_address: u64,
    physical_address: u64,
    file_size: usize,
    memory_size: u64,
    align: u64,
}

/// The same program as `input`, an ELF64 little-endian executable, without its filler.
///
/// # Errors
/// An input that is not such a file, or whose segments lie outside it.
pub(super) fn compact(input: &[u8]) -> Result<Vec<u8>> {
    let segments = read(input)?;
    let mut pieces = Vec::new();
    for segment in &segments {
        if segment.kind == PT_LOAD {
            split(input, segment, &mut pieces);
        }
    }
    // A note is a view on bytes that a loadable segment carries; it comes after them.
    pieces.extend(segments.into_iter().filter(|s| s.kind != PT_LOAD));
    let head = HEADER + pieces.len() * ENTRY;
    let mut output = input
        .get(..HEADER)
        .context("The file is too short")?
        .to_vec();
    output.resize(head, 0);
    let mut placed: Vec<(usize, usize, usize)> = Vec::new();
    for (index, piece) in pieces.iter_mut().enumerate() {
        let from = piece.offset;
        if piece.kind == PT_LOAD {
            let page_offset = usize::try_from(piece.virtual_address)? % PAGE;
            let at = output.len().next_multiple_of(PAGE) + page_offset;
            output.resize(at, 0);
            output.extend_from_slice(&input[from..from + piece.file_size]);
            placed.push((from, piece.file_size, at));
            piece.offset = at;
        } else {
            piece.offset = placed
                .iter()
                .find(|(start, size, _)| *start <= from && from + piece.file_size <= start + size)
                .map(|(start, _, at)| at + (from - start))
                .context("A note lies outside the loadable segments")?;
        }
        let entry = HEADER + index * ENTRY;
        output[entry..entry + ENTRY].copy_from_slice(&piece.bytes());
    }
    put(&mut output, 32, &u64::try_from(HEADER)?.to_le_bytes()); // e_phoff
    put(&mut output, 40, &[0; 8]); // e_shoff
    put(&mut output, 56, &u16::try_from(pieces.len())?.to_le_bytes()); // e_phnum
    put(&mut output, 58, &[0; 6]); // e_shentsize, e_shnum, e_shstrndx
    Ok(output)
}

/// The program headers of `input`.
fn read(input: &[u8]) -> Result<Vec<ElfSegment>> {
    ensure!(
        input.len() >= HEADER,
        "The file is too short for an ELF header"
    );
    ensure!(
        input.starts_with(b"\x7fELF\x02\x01"),
        "Not a 64-bit little-endian ELF file"
    );
    let table = usize::try_from(u64_at(input, 32))?;
    let count = usize::from(u16_at(input, 56));
    ensure!(
        usize::from(u16_at(input, 54)) == ENTRY,
        "Program headers of an unknown size"
    );
    (0..count)
        .map(|index| {
            let start = table.saturating_add(index * ENTRY);
            let end = start.saturating_add(ENTRY);
            let entry = input
                .get(start..end)
                .context("Program headers outside the file")?;
            let segment = ElfSegment::parse(entry)?;
            let end = segment.offset.checked_add(segment.file_size);
            ensure!(
                end.is_some_and(|e| e <= input.len()),
                "Segment {index} is outside the file"
            );
            Ok(segment)
        })
        .collect()
}

/// Pushes the parts of a loadable segment that are not filler. The memory of each reaches to the
/// next, so a loader that clears what the file does not hold clears the gaps too.
fn split(input: &[u8], segment: &ElfSegment, pieces: &mut Vec<ElfSegment>) {
    let data = &input[segment.offset..segment.offset + segment.file_size];
    let text = segment.flags & FLAG_EXECUTE != 0 && segment.flags & FLAG_WRITE == 0;
    let runs = filler(data, text);
    let mut start = 0;
    for (from, to) in runs.into_iter().chain([(data.len(), data.len())]) {
        if from > start {
            pieces.push(segment.part(start, from));
        }
        start = to;
    }
    let first = pieces.len()
        - pieces
            .iter()
            .rev()
            .take_while(|p| segment.covers(p))
            .count();
    let end = segment.physical_address + segment.memory_size;
    for index in first..pieces.len() {
        let next = pieces.get(index + 1).map_or(end, |p| p.physical_address);
        pieces[index].memory_size = next - pieces[index].physical_address;
    }
}

/// Runs of whole pages that hold only zeros or, in text, only breakpoints. The first page of a
/// segment is never one: a segment must begin where it began.
fn filler(data: &[u8], text: bool) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, page) in data.chunks_exact(PAGE).enumerate().skip(1) {
        let empty = page.iter().all(|&b| b == 0) || text && page.iter().all(|&b| b == 0xcc);
        let start = index * PAGE;
        match runs.last_mut() {
            _ if !empty => {}
            Some(run) if run.1 == start => run.1 += PAGE,
            _ => runs.push((start, start + PAGE)),
        }
    }
    runs.retain(|(from, to)| to - from >= SHORTEST_RUN);
    runs
}

impl ElfSegment {
    fn parse(entry: &[u8]) -> Result<Self> {
        Ok(Self {
            kind: u32_at(entry, 0),
            flags: u32_at(entry, 4),
            offset: usize::try_from(u64_at(entry, 8))?,
            virtual_address: u64_at(entry, 16),
            physical_address: u64_at(entry, 24),
            file_size: usize::try_from(u64_at(entry, 32))?,
            memory_size: u64_at(entry, 40),
            align: u64_at(entry, 48),
        })
    }

    fn bytes(&self) -> [u8; ENTRY] {
        let mut entry = [0; ENTRY];
        put(&mut entry, 0, &self.kind.to_le_bytes());
        put(&mut entry, 4, &self.flags.to_le_bytes());
        let sizes = [
            self.offset as u64,
            self.virtual_address,
            self.physical_address,
            self.file_size as u64,
            self.memory_size,
            self.align,
        ];
        for (index, value) in sizes.iter().enumerate() {
            put(&mut entry, 8 + index * 8, &value.to_le_bytes());
        }
        entry
    }

    /// Bytes `from..to` of this segment's file part; its memory size is still to be set.
    fn part(&self, from: usize, to: usize) -> Self {
        Self {
            offset: self.offset + from,
            virtual_address: self.virtual_address + from as u64,
            physical_address: self.physical_address + from as u64,
            file_size: to - from,
            memory_size: (to - from) as u64,
            align: PAGE as u64,
            ..self.clone()
        }
    }

    fn covers(&self, part: &Self) -> bool {
        let end = self.physical_address + self.memory_size;
        (self.physical_address..end).contains(&part.physical_address)
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod test {
    use super::*;

    const BASE: u64 = 0x10_0000;

    /// An executable with one text segment, one data segment after it, and a note in the text.
    fn program(text: &[u8], data: &[u8], data_memory: usize) -> Vec<u8> {
        let load = |flags, offset: usize, at: u64, size: usize, memory: usize| ElfSegment {
            kind: PT_LOAD,
            flags,
            offset,
            virtual_address: 0xffff_8000_0000_0000 + at,
            physical_address: at,
            file_size: size,
            memory_size: memory as u64,
            align: 0x20_0000,
        };
        let after = text.len().next_multiple_of(PAGE);
        let segments = [
            load(5, PAGE, BASE, text.len(), text.len()),
            load(
                6,
                PAGE + after,
                BASE + after as u64,
                data.len(),
                data_memory,
            ),
            ElfSegment {
                kind: 4,
                ..load(4, PAGE + 64, BASE + 64, 32, 32)
            },
        ];
        let mut file = vec![0; PAGE];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        put(&mut file, 24, &BASE.to_le_bytes());
        put(&mut file, 32, &(HEADER as u64).to_le_bytes());
        put(&mut file, 54, &[56, 0, 3, 0]);
        for (index, segment) in segments.iter().enumerate() {
            put(&mut file, HEADER + index * ENTRY, &segment.bytes());
        }
        file.extend_from_slice(text);
        file.resize(PAGE + after, 0);
        file.extend_from_slice(data);
        file
    }

    /// What a loader makes of the file, and how many bytes it copied.
    fn load(file: &[u8]) -> (Vec<u8>, usize) {
        let mut memory = vec![0xaa; 1 << 20];
        let mut copied = 0;
        for segment in read(file).unwrap().iter().filter(|s| s.kind == PT_LOAD) {
            let at = usize::try_from(segment.physical_address - BASE).unwrap();
            memory[at..at + usize::try_from(segment.memory_size).unwrap()].fill(0);
            memory[at..at + segment.file_size]
                .copy_from_slice(&file[segment.offset..segment.offset + segment.file_size]);
            copied += segment.file_size;
        }
        (memory, copied)
    }

    /// Pages of text: code where the pattern has a letter, filler elsewhere.
    fn pages(pattern: &str) -> Vec<u8> {
        let page = |c| match c {
            '.' => [0; PAGE],
            '!' => [0xcc; PAGE],
            letter => [u8::try_from(letter).unwrap(); PAGE],
        };
        pattern.chars().flat_map(page).collect()
    }

    #[test]
    fn a_compacted_program_loads_to_the_same_memory_without_filler() {
        let text = pages("a!!!!!!b..c......d!!!!!!!");
        let data = pages("x........y");
        let file = program(&text, &data, data.len() + 3 * PAGE);
        let (mut wanted, all) = load(&file);
        let (found, copied) = load(&compact(&file).unwrap());
        for byte in wanted[..text.len()].iter_mut().filter(|b| **b == 0xcc) {
            *byte = 0;
        }
        assert!(wanted == found, "the memory differs");
        assert_eq!((all - copied) / PAGE, 6 + 6 + 7 + 8);
    }

    #[test]
    fn breakpoints_in_data_are_data() {
        let data = pages("x!!!!!!!!y");
        let file = program(&pages("ab"), &data, data.len());
        assert!(load(&compact(&file).unwrap()) == load(&file));
    }

    #[test]
    fn entry_point_and_note_survive() {
        let mut text = pages("a!!!!!!b");
        text[64..96].copy_from_slice(b"a note that a loader must find!!");
        let file = program(&text, &pages("x"), PAGE);
        let small = compact(&file).unwrap();
        assert_eq!(u64_at(&small, 24), BASE);
        let note = read(&small)
            .unwrap()
            .into_iter()
            .find(|s| s.kind == 4)
            .unwrap();
        assert_eq!(
            &small[note.offset..note.offset + 32],
            b"a note that a loader must find!!"
        );
    }

    #[test]
    fn other_files_are_refused() {
        let file = program(&pages("ab"), &pages("x"), PAGE);
        for end in [0, 63, HEADER + 10, file.len() - 1] {
            assert!(compact(&file[..end]).err().is_some(), "{end} bytes");
        }
        assert!(compact(&[0; 128]).err().is_some());
    }
}
