//! One machine's memory, from its first fault to the last page.

use super::error::{PagerError, io};
use super::layer_chain::LayerChain;
use super::message::{AttachRequest, PagerStatus, PagingJob, wait};
use super::uffd::{FillProgress, MemoryEvent, PAGE, PageFiller};
use crate::dirty::PageRange;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// How long a machine may take to say where its memory is.
const ATTACH_S: i64 = 30;
/// Pages around a fault that come with it: 64 KiB.
const AROUND: u64 = 16;
/// Pages of one batch of what is known to be used.
const BATCH: u64 = 256;
/// Pages of one batch of the rest, so that faults wait less.
const STREAM: u64 = 64;
/// Waiting faults that are read ahead; a machine has as many as threads.
const MAX_FAULTS: usize = 1024;
/// Set in a record for a page that was to be written.
const WRITTEN: u64 = 1 << 63;

/// Serves a machine until all of its memory is there or it is gone, and tells it how that ended.
pub(super) fn serve(job: PagingJob) -> Result<(), PagerError> {
    let socket = job.machine;
    let files = job.layers.into_iter().map(File::from).collect();
    let served = begin(&socket, job.pages, files, job.record)
        .and_then(|memory| memory.map_or(Ok(()), |mut memory| memory.run(&socket)));
    match &served {
        Err(PagerError::Gone) => return Ok(()),
        Err(error) => {
            let mut why = error.to_string();
            let mut next = std::error::Error::source(error);
            while let Some(error) = next {
                why = format!("{why}: {error}");
                next = error.source();
            }
            let _ = PagerStatus::Failed(why).send(&socket);
        }
        Ok(()) => {}
    }
    served
}

/// `None`: the machine went before it said anything.
fn begin(
    socket: &OwnedFd,
    pages: u64,
    files: Vec<File>,
    record: Option<OwnedFd>,
) -> Result<Option<ServedMemory>, PagerError> {
    let source = LayerChain::open(pages, files)?;
    if !wait(socket, ATTACH_S)? {
        let text = format!("nothing came within {ATTACH_S} s");
        return Err(PagerError::Message(text));
    }
    let Some((attach, uffd)) = AttachRequest::receive(socket, pages)? else {
        return Ok(None);
    };
    let regions = match record {
        Some(_) => std::iter::once(0..pages).collect(),
        None => source.regions(),
    };
    let mut memory = ServedMemory {
        missing: regions.iter().map(|r| r.end - r.start).sum(),
        source,
        filler: PageFiller::new(uffd)?,
        parts: attach.parts,
        regions,
        first: attach.first.into(),
        streamed: 0,
        present: PageBitmap::new(pages),
        discarded: PageBitmap::new(pages),
        faults: VecDeque::new(),
        record: record.map(File::from),
        buffer: vec![0; usize::try_from(BATCH).unwrap_or(0) * PAGE],
    };
    memory.register()?;
    PagerStatus::Ready.send(socket)?;
    Ok(Some(memory))
}

struct PageBitmap(Vec<u64>);

impl PageBitmap {
    fn new(pages: u64) -> Self {
        Self(vec![0; usize::try_from(pages.div_ceil(64)).unwrap_or(0)])
    }

    fn get(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64)
            .ok()
            .and_then(|at| self.0.get(at));
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Whether it was not set before.
    fn set(&mut self, page: u64) -> bool {
        let fresh = !self.get(page);
        let word = usize::try_from(page / 64).ok();
        if let Some(word) = word.and_then(|at| self.0.get_mut(at)) {
            *word |= 1 << (page % 64);
        }
        fresh
    }
}

struct ServedMemory {
    source: LayerChain,
    filler: PageFiller,
    /// Address and pages of each part, in the order of the whole.
    parts: Vec<(usize, u64)>,
    /// What is registered, rising.
    regions: Vec<Range<u64>>,
    /// What is fetched before the rest.
    first: VecDeque<PageRange>,
    /// Pages below have been streamed.
    streamed: u64,
    /// Pages that were put in place. They may have gone since: only the kernel knows.
    present: PageBitmap,
    /// Pages that the machine has given up: zero from then on.
    discarded: PageBitmap,
    /// Registered pages that were never put in place.
    missing: u64,
    faults: VecDeque<(u64, bool)>,
    record: Option<File>,
    buffer: Vec<u8>,
}

impl ServedMemory {
    fn register(&mut self) -> Result<(), PagerError> {
        for region in &self.regions {
            let mut page = region.start;
            while page < region.end {
                let (address, pages) = self.place(page, region.end)?;
                let bytes = usize::try_from(pages).unwrap_or(0) * PAGE;
                self.filler.register(address, bytes)?;
                page += pages;
            }
        }
        Ok(())
    }

    /// Where a page is, and how many up to `end` follow it there.
    fn place(&self, page: u64, end: u64) -> Result<(usize, u64), PagerError> {
        let mut before = 0;
        for &(address, pages) in &self.parts {
            if page < before + pages {
                let offset = usize::try_from(page - before).unwrap_or(0) * PAGE;
                return Ok((address + offset, end.min(before + pages) - page));
            }
            before += pages;
        }
        Err(PagerError::Message(format!("there is no page {page}")))
    }

    /// The page at an address.
    fn page_at(&self, address: usize) -> Option<u64> {
        let mut before = 0;
        for &(start, pages) in &self.parts {
            let page = address
                .checked_sub(start)
                .map(|offset| (offset / PAGE) as u64);
            if let Some(page) = page.filter(|page| *page < pages) {
                return Some(before + page);
            }
            before += pages;
        }
        None
    }

    fn run(&mut self, socket: &OwnedFd) -> Result<(), PagerError> {
        let nobody = Timespec::default();
        loop {
            let busy = self.record.is_none() && self.missing > 0;
            if !busy && self.record.is_none() && self.faults.is_empty() {
                return PagerStatus::Done.send(socket);
            }
            let limit = (busy || !self.faults.is_empty()).then_some(&nobody);
            let mut ready = [
                PollFd::from_borrowed_fd(self.filler.as_fd(), PollFlags::IN),
                PollFd::new(socket, PollFlags::IN),
            ];
            match poll(&mut ready, limit) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(io("Waiting for faults", "")(errno)),
            }
            let (happened, spoken) = (ready[0].revents(), ready[1].revents());
            if !spoken.is_empty() {
                // A machine has nothing more to say: it is gone.
                return Err(PagerError::Gone);
            }
            if !happened.is_empty() {
                self.read_events()?;
            }
            if let Some((page, write)) = self.faults.pop_front() {
                self.answer(page, write)?;
            } else if busy {
                self.fetch_ahead()?;
            }
        }
    }

    /// Takes all events there are. Discards count at once: whatever faults after one finds zeros.
    fn read_events(&mut self) -> Result<(), PagerError> {
        while self.faults.len() < MAX_FAULTS {
            let mut seen = Vec::new();
            let count = self.filler.read(|event| {
                seen.push(event);
                Ok(())
            })?;
            for event in seen {
                match event {
                    MemoryEvent::Fault { address, write } => {
                        let foreign = || PagerError::Message(format!("a fault at {address:#x}"));
                        let page = self.page_at(address).ok_or_else(foreign)?;
                        self.faults.push_back((page, write));
                    }
                    MemoryEvent::Discarded(start, end) => self.discard(start, end),
                }
            }
            if count == 0 {
                break;
            }
        }
        Ok(())
    }

    fn discard(&mut self, start: usize, end: usize) {
        let mut at = start;
        while at < end {
            if let Some(page) = self.page_at(at) {
                self.discarded.set(page);
            }
            at += PAGE;
        }
    }

    /// Puts a page in place that somebody waits for, with its neighbours.
    fn answer(&mut self, page: u64, write: bool) -> Result<(), PagerError> {
        if let Some(record) = &mut self.record {
            if !self.present.get(page) {
                let word = page | if write { WRITTEN } else { 0 };
                let noted = record.write_all(&word.to_le_bytes());
                noted.map_err(io("Noting a page", format!("page {page}")))?;
            }
            return self.fetch(page..page + 1);
        }
        let start = page / AROUND * AROUND;
        let known = |region: &&Range<u64>| region.contains(&page);
        let region = self.regions.iter().find(known).cloned();
        let region = region.unwrap_or(page..page + 1);
        let (start, end) = (start.max(region.start), (start + AROUND).min(region.end));
        // Who waits comes first, also if the page should be there.
        self.fetch(page..page + 1)?;
        self.fetch_missing(start..end)
    }

    /// One batch of what nobody waits for.
    fn fetch_ahead(&mut self) -> Result<(), PagerError> {
        if let Some(pages) = self.first.pop_front() {
            let end = pages.end.min(pages.first + BATCH);
            if end < pages.end {
                self.first.push_front(PageRange {
                    first: end,
                    end: pages.end,
                });
            }
            for part in self.registered(pages.first..end) {
                self.fetch_missing(part)?;
            }
            return Ok(());
        }
        let at = self.streamed;
        let Some(region) = self.regions.iter().find(|r| r.end > at) else {
            // All regions were seen; what is missing now was put off by a discard.
            self.streamed = 0;
            return Ok(());
        };
        let start = at.max(region.start);
        let end = region.end.min(start + STREAM);
        self.streamed = end;
        self.fetch_missing(start..end)
    }

    /// The parts of a range that are registered.
    fn registered(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let parts = self.regions.iter().map(|r| {
            let (start, end) = (r.start.max(range.start), r.end.min(range.end));
            start..end
        });
        parts.filter(|r| r.start < r.end).collect()
    }

    /// Fetches the pages of a range that were never put in place.
    fn fetch_missing(&mut self, range: Range<u64>) -> Result<(), PagerError> {
        let mut page = range.start;
        while page < range.end {
            if self.present.get(page) {
                page += 1;
                continue;
            }
            let mut end = page + 1;
            while end < range.end && !self.present.get(end) {
                end += 1;
            }
            self.fetch(page..end)?;
            page = end;
        }
        Ok(())
    }

    /// Puts pages in place, whatever is there. Returns early, without an error, when memory is
    /// being discarded: the events that this is about are read, and who still waits is asked again.
    fn fetch(&mut self, range: Range<u64>) -> Result<(), PagerError> {
        let mut page = range.start;
        while page < range.end {
            let (address, same) = self.place(page, range.end)?;
            let (end, layer) = self.source.run(page, page + same);
            let mut end = end.min(page + BATCH);
            let zero = self.discarded.get(page);
            if let Some(other) = (page..end).find(|p| self.discarded.get(*p) != zero) {
                end = other;
            }
            let bytes = usize::try_from(end - page).unwrap_or(0) * PAGE;
            let placed = match layer {
                // Not the kernel's zero page: that the machine gave it up is to be saved with it.
                _ if zero => {
                    self.buffer[..bytes].fill(0);
                    self.filler.copy(address, &self.buffer[..bytes], false)?
                }
                Some(layer) => {
                    let buffer = &mut self.buffer[..bytes];
                    self.source.read(layer, page, buffer)?;
                    self.filler.copy(address, &self.buffer[..bytes], true)?
                }
                None => self.filler.zero(address, bytes)?,
            };
            let done = match placed {
                FillProgress::All => end - page,
                FillProgress::Some(pages) => pages as u64,
            };
            for placed in page..page + done {
                self.missing -= u64::from(self.present.set(placed));
            }
            page += done;
            if placed != FillProgress::All {
                self.read_events()?;
                if range.end - range.start == 1 {
                    // Somebody may wait for it.
                    self.faults.push_back((page, false));
                }
                return Ok(());
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for ServedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pages = self.source.pages();
        f.debug_struct("Memory")
            .field("pages", &pages)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}
