//! Memory that comes through the real pager process, on real mappings.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]
#![expect(unsafe_code, reason = "maps memory and touches it as a guest would")]

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapshot_memory::pager::{LazyMemory, PagerError, PagingEnd, PagingJob, send_job};
use snapshot_memory::{BaseMemory, LayerFile, PageRange, Pagemap, write_layer};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const PAGE: usize = 4096;

fn pair() -> (OwnedFd, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

/// Whether this kernel and user may do it; says so if not.
fn device() -> Option<File> {
    let open = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    if let Err(error) = &open {
        eprintln!("skipped: no /dev/userfaultfd: {error}");
    }
    open.ok()
}

/// The program, as the service runs it.
struct Pager {
    process: Child,
    socket: Option<OwnedFd>,
}

impl Pager {
    fn start() -> Self {
        let (ours, theirs) = pair();
        let process = Command::new(env!("CARGO_BIN_EXE_hatchery-pager"))
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let socket = Some(ours);
        Self { process, socket }
    }

    /// A machine's end of its socket.
    fn machine(&self, pages: usize, layers: &[File], record: Option<&File>) -> OwnedFd {
        let (ours, theirs) = pair();
        let copy = |file: &File| OwnedFd::from(file.try_clone().unwrap());
        let job = PagingJob {
            name: "itest".into(),
            pages: pages as u64,
            machine: theirs,
            layers: layers.iter().map(copy).collect(),
            record: record.map(copy),
        };
        send_job(self.socket.as_ref().unwrap(), &job).unwrap();
        ours
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// What it has open.
    fn descriptors(&self) -> Vec<String> {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.process.id()));
        let links = open
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.map(|link| link.display().to_string()).collect()
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        drop(self.socket.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Anonymous memory in two mappings, as a large guest has it.
struct Memory {
    parts: Vec<std::ops::Range<usize>>,
}

impl Memory {
    fn new(pages: usize) -> Self {
        let part = |pages: usize| {
            let (read, write) = (ProtFlags::READ, ProtFlags::WRITE);
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            // SAFETY: a fresh mapping at an address of the kernel's choice.
            let start =
                unsafe { mmap_anonymous(std::ptr::null_mut(), pages * PAGE, read | write, flags) };
            let start = start.unwrap();
            // SAFETY: advice about that mapping, which changes nothing it holds.
            unsafe { madvise(start, pages * PAGE, Advice::LinuxNoHugepage) }.unwrap();
            start.addr()..start.addr() + pages * PAGE
        };
        let low = pages / 3;
        let parts = [low, pages - low].into_iter().filter(|n| *n > 0);
        Self {
            parts: parts.map(part).collect(),
        }
    }

    fn at(&self, page: usize) -> *mut u8 {
        let mut page = page;
        for part in &self.parts {
            if page * PAGE < part.len() {
                return std::ptr::with_exposed_provenance_mut(part.start + page * PAGE);
            }
            page -= part.len() / PAGE;
        }
        panic!("no such page")
    }

    fn read(&self, page: usize) -> Vec<u8> {
        // SAFETY: the page is mapped and readable; nobody writes it at this moment.
        unsafe { std::slice::from_raw_parts(self.at(page), PAGE) }.to_vec()
    }

    fn write(&self, page: usize, byte: u8) {
        // SAFETY: the page is mapped and writable, and this thread alone uses it.
        unsafe { std::ptr::write_bytes(self.at(page), byte, PAGE) };
    }

    fn discard(&self, page: usize) {
        // SAFETY: whole pages of a mapping of ours, to which nobody holds a reference.
        unsafe { madvise(self.at(page).cast(), PAGE, Advice::LinuxDontNeed) }.unwrap();
    }

    fn written(&self) -> Vec<PageRange> {
        let pagemap = Pagemap::open().unwrap();
        let (mut all, mut before) = (Vec::new(), 0);
        for part in &self.parts {
            let ranges = pagemap.written_ranges(part).unwrap().into_iter();
            all.extend(ranges.flat_map(|r| r.first + before..r.end + before));
            before += (part.len() / PAGE) as u64;
        }
        all.into_iter()
            .map(|n| PageRange {
                first: n,
                end: n + 1,
            })
            .collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for part in &self.parts {
            let start = std::ptr::with_exposed_provenance_mut(part.start);
            // SAFETY: the mapping is ours and nothing refers to it any more.
            unsafe { munmap(start, part.len()) }.unwrap();
        }
    }
}

/// A layer file: for each mark 0 nothing, 9 zeros, else a page of that byte and its number.
fn layer(marks: &[u8]) -> File {
    let mut memory = vec![0; marks.len() * PAGE];
    for (page, (chunk, mark)) in memory.chunks_mut(PAGE).zip(marks).enumerate() {
        if !matches!(mark, 0 | 9) {
            chunk.fill(*mark);
            chunk[..8].copy_from_slice(&(page as u64).to_le_bytes());
        }
    }
    let named = (0..).zip(marks).filter(|(_, m)| **m != 0);
    let ranges: Vec<_> = named
        .map(|(n, _)| PageRange {
            first: n,
            end: n + 1,
        })
        .collect();
    let file = tempfile::tempfile().unwrap();
    write_layer(&[&memory], &ranges, &file).unwrap();
    file
}

fn merged(pages: usize, layers: &[File]) -> Vec<u8> {
    let open = |file: &File| LayerFile::open(file.try_clone().unwrap()).unwrap();
    let layers: Vec<_> = layers.iter().map(open).collect();
    let base = BaseMemory::merge_layers(pages as u64, &layers).unwrap();
    let file = File::from(base.as_fd().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; pages * PAGE];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn begin(
    socket: OwnedFd,
    device: impl AsFd,
    memory: &Memory,
    first: &[PageRange],
) -> Result<LazyMemory, PagerError> {
    let pagemap = Pagemap::open().unwrap();
    LazyMemory::begin((socket, device), &memory.parts, first, &pagemap)
}

fn lazy(
    pager: &Pager,
    memory: &Memory,
    layers: &[File],
    first: &[PageRange],
) -> Result<LazyMemory, PagerError> {
    let pages = memory.parts.iter().map(|p| p.len() / PAGE).sum();
    let socket = pager.machine(pages, layers, None);
    begin(socket, device().unwrap(), memory, first)
}

/// Does something that may hang, on a thread of its own; whether it came back.
fn returns(work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    wait.recv_timeout(Duration::from_millis(300)).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_order_of_accesses_finds_the_flattened_layers(
        chain in proptest::collection::vec(
            proptest::collection::vec(
                prop_oneof![4 => Just(0u8), 3 => 1u8..9, 1 => Just(9u8)],
                300,
            ),
            1..4,
        ),
        order in proptest::collection::vec((0usize..300, any::<bool>()), 1..200),
        first in proptest::collection::vec((0u64..299, 1u64..40), 0..4),
    ) {
        if device().is_none() {
            return Ok(());
        }
        let layers: Vec<_> = chain.iter().map(|marks| layer(marks)).collect();
        let mut wanted = merged(300, &layers);
        let pager = Pager::start();
        let memory = Memory::new(300);
        let range = |&(first, n): &(u64, u64)| PageRange { first, end: (first + n).min(300) };
        let first: Vec<_> = first.iter().map(range).collect();
        let lazy = lazy(&pager, &memory, &layers, &first).unwrap();
        let mut written = std::collections::BTreeSet::new();
        for (page, write) in order {
            let place = page * PAGE..(page + 1) * PAGE;
            prop_assert_eq!(&memory.read(page), &wanted[place.clone()], "page {}", page);
            if write {
                memory.write(page, 0xee);
                wanted[place].fill(0xee);
                written.insert(page as u64);
            }
        }
        prop_assert_eq!(lazy.wait(), PagingEnd::Done);
        for page in 0..300 {
            let wanted = &wanted[page * PAGE..(page + 1) * PAGE];
            prop_assert_eq!(&memory.read(page), wanted, "page {}", page);
        }
        let dirty: Vec<_> = memory.written().iter().map(|r| r.first).collect();
        prop_assert_eq!(dirty, written.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn what_was_never_fetched_is_not_written() {
    let Some(_) = device() else { return };
    let pager = Pager::start();
    let layers = [layer(&[5; 4096])];
    let (record, memory) = (tempfile::tempfile().unwrap(), Memory::new(4096));
    let socket = pager.machine(4096, &layers, Some(&record));
    let _lazy = begin(socket, device().unwrap(), &memory, &[]).unwrap();
    // Alone with its record, nothing is fetched that is not touched, in this order.
    assert_eq!(memory.read(700)[9], 5);
    memory.write(30, 1);
    assert_eq!(memory.read(4000)[9], 5);
    memory.write(700, 2);
    assert_eq!(
        memory.written(),
        [30, 700].map(|n| PageRange {
            first: n,
            end: n + 1
        })
    );
    let mut noted = vec![0; 24];
    record.read_exact_at(&mut noted, 0).unwrap();
    let (words, _) = noted.as_chunks::<8>();
    let words: Vec<_> = words.iter().map(|w| u64::from_le_bytes(*w)).collect();
    assert_eq!(words, [700, 30 | 1 << 63, 4000]);
    assert_eq!(record.metadata().unwrap().len(), 24);
}

#[test]
fn two_machines_on_one_pager_do_not_mix_and_leave_nothing_behind() {
    let Some(_) = device() else { return };
    let pager = Pager::start();
    let memory = Memory::new(9);
    let first = lazy(&pager, &memory, &[layer(&[1; 9])], &[]).unwrap();
    assert_eq!(first.wait(), PagingEnd::Done);
    // Standard input, output and error are all that it has then.
    let before = 3;
    for round in 0..5_u8 {
        let layers = [[layer(&[1 + round; 900])], [layer(&[101 + round; 900])]];
        let memories = [Memory::new(900), Memory::new(900)];
        let lazies = [0, 1].map(|n| lazy(&pager, &memories[n], &layers[n], &[]).unwrap());
        for page in (0..900).rev().step_by(7) {
            assert_eq!(memories[0].read(page)[100], 1 + round);
            assert_eq!(memories[1].read(page)[100], 101 + round);
        }
        if round % 2 == 0 {
            assert!(lazies.iter().all(|lazy| lazy.wait() == PagingEnd::Done));
        }
    }
    // Machines that went are noticed by their sockets.
    for _ in 0..100 {
        if pager.descriptors().len() == before {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{:?} left, {before} before", pager.descriptors());
}

#[test]
fn a_changed_or_cut_layer_ends_with_the_right_words_and_no_wrong_byte() {
    let Some(_) = device() else { return };
    let pager = Pager::start();
    let flipped = layer(&[7; 600]);
    let place = flipped.metadata().unwrap().len() - 20 - 600 * 4 - 100;
    let mut byte = [0];
    flipped.read_exact_at(&mut byte, place).unwrap();
    flipped.write_all_at(&[byte[0] ^ 1], place).unwrap();
    let memory = Memory::new(600);
    let over = lazy(&pager, &memory, &[flipped], &[]).unwrap();
    let PagingEnd::Failed(why) = over.wait() else {
        panic!("done")
    };
    assert!(
        why.contains("Layer 0 of 1") && why.contains("checksum"),
        "{why}"
    );
    let (address, parts) = (memory.at(599).addr(), memory.parts.clone());
    assert!(!returns(move || {
        let page = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: mapped for as long as the test runs; this hangs.
        assert_eq!(unsafe { page.read_volatile() }, 7);
    }));
    drop(parts);
    std::mem::forget((memory, over));

    let cut = layer(&[7; 600]);
    cut.set_len(place).unwrap();
    let memory = Memory::new(600);
    let error = lazy(&pager, &memory, &[layer(&[0; 600]), cut], &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Layer 1 of 2") && error.contains("Truncated"),
        "{error}"
    );
    let small = lazy(&pager, &Memory::new(601), &[layer(&[7; 600])], &[])
        .unwrap_err()
        .to_string();
    assert!(
        small.contains("600 pages") && small.contains("601"),
        "{small}"
    );
}

#[test]
fn the_end_of_the_pager_is_noticed_and_nobody_sees_zeros() {
    let Some(_) = device() else { return };
    let (layers, memory) = ([layer(&[7; 100_000])], Memory::new(100_000));
    let mut pager = Pager::start();
    // Before it was asked, while it is asked, and while it streams.
    let socket = pager.machine(100_000, &layers, None);
    pager.kill();
    let gone = begin(socket, device().unwrap(), &memory, &[]).unwrap_err();
    assert!(
        matches!(gone, PagerError::Gone | PagerError::GaveUp(_)),
        "{gone}"
    );

    let (mut pager, memory) = (Pager::start(), Memory::new(100_000));
    let record = tempfile::tempfile().unwrap();
    let socket = pager.machine(100_000, &layers, Some(&record));
    let lazy = begin(socket, device().unwrap(), &memory, &[]).unwrap();
    assert_eq!(memory.read(5)[100], 7);
    pager.kill();
    assert_eq!(lazy.wait(), PagingEnd::Failed("it is gone".into()));
    assert_eq!(memory.read(5)[100], 7);
    let address = memory.at(99_999).addr();
    assert!(!returns(move || {
        let page = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: mapped for as long as the test runs; this hangs.
        assert_ne!(unsafe { page.read_volatile() }, 0);
    }));
    std::mem::forget((memory, lazy));
}

#[test]
fn discarded_memory_is_zero_also_after_the_pager_has_gone() {
    let Some(_) = device() else { return };
    let pager = Pager::start();
    let (layers, memory) = ([layer(&[7; 20_000])], Memory::new(20_000));
    let mut over = lazy(&pager, &memory, &layers, &[]).unwrap();
    // While it streams: every discard waits until its event is read, and copies meanwhile fail.
    for page in (0..20_000).rev().step_by(97) {
        memory.discard(page);
        assert_eq!(memory.read(page), [0; PAGE], "page {page}");
    }
    assert_eq!(over.wait(), PagingEnd::Done);
    std::thread::spawn(move || over.serve_discards().unwrap());
    for page in (0..20_000).step_by(101) {
        memory.discard(page);
        assert_eq!(memory.read(page), [0; PAGE], "page {page}");
    }
    assert_eq!(memory.read(98)[100], 7);
}

#[test]
fn many_threads_that_wait_for_the_same_pages_all_go_on() {
    let Some(_) = device() else { return };
    let pager = Pager::start();
    let (layers, memory) = ([layer(&[7; 5000])], Memory::new(5000));
    let over = lazy(&pager, &memory, &layers, &[]).unwrap();
    std::thread::scope(|scope| {
        for start in 0..8 {
            let memory = &memory;
            scope.spawn(move || {
                for page in (0..5000).map(|n| (n * 37 + start / 2) % 5000) {
                    assert_eq!(memory.read(page)[100], 7);
                }
            });
        }
    });
    assert_eq!(over.wait(), PagingEnd::Done);
}

#[test]
fn what_is_no_userfaultfd_is_refused_and_so_is_used_memory() {
    let Some(_) = device() else { return };
    let pager = Pager::start();
    let memory = Memory::new(10);
    memory.write(3, 1);
    let used = lazy(&pager, &memory, &[layer(&[7; 10])], &[]).unwrap_err();
    assert!(used.to_string().contains("in use before"), "{used}");
    let null = File::open("/dev/null").unwrap();
    let memory = Memory::new(10);
    let socket = pager.machine(10, &[layer(&[7; 10])], None);
    begin(socket, null, &memory, &[]).unwrap_err();
    // One that says nothing and goes: the pager serves on.
    drop(pager.machine(10, &[layer(&[7; 10])], None));
    let memory = Memory::new(10);
    let over = lazy(&pager, &memory, &[layer(&[7; 10])], &[]).unwrap();
    assert_eq!(over.wait(), PagingEnd::Done);
}

#[test]
fn it_ends_with_its_service() {
    let mut pager = Pager::start();
    drop(pager.socket.take());
    assert!(pager.process.wait().unwrap().success());
    let mut pager = Pager::start();
    let socket = pager.socket.take().unwrap();
    rustix::net::send(&socket, b"nonsense", rustix::net::SendFlags::empty()).unwrap();
    let mut ready = [PollFd::new(&socket, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1);
    assert!(!pager.process.wait().unwrap().success());
}
