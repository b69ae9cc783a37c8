//! The machine's side: giving its memory to the pager, and noticing how that ends.

use super::error::{PagerError, io};
use super::message::{AttachRequest, PagerStatus, wait};
use super::uffd::{FillProgress, MemoryEvent, PAGE, PageFiller, create};
use crate::dirty::{PageRange, Pagemap};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// How long the pager may take to be ready.
const READY_S: i64 = 10;

/// How serving a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PagingEnd {
    /// All of its memory is there.
    Done,
    /// The pager is gone or gave up. Pages are missing for ever; who touches one hangs.
    Failed(String),
}

/// Memory that comes through a pager. Keep it as long as the memory: without its descriptor missing
/// pages would be zeros.
#[derive(Debug)]
pub struct LazyMemory {
    filler: PageFiller,
    socket: OwnedFd,
    parts: Vec<Range<usize>>,
}

/// Whether memory can be loaded on demand by processes that are given `device`, which is
/// `/dev/userfaultfd`, open.
///
/// # Errors
/// What the kernel refuses.
pub fn check(device: impl AsFd) -> Result<(), PagerError> {
    create(device.as_fd()).map(drop)
}

impl LazyMemory {
    /// Gives this process's memory in `parts`, private, anonymous and never touched, to the pager
    /// behind `socket`. `device` is `/dev/userfaultfd`, open; `first` is fetched before the rest;
    /// `pagemap` tells whether the memory was touched.
    ///
    /// # Errors
    /// When memory was touched before, the kernel refuses, or the pager does or is gone: there is
    /// no such memory then.
    pub fn begin(
        (socket, device): (OwnedFd, impl AsFd),
        parts: &[Range<usize>],
        first: &[PageRange],
        pagemap: &Pagemap,
    ) -> Result<Self, PagerError> {
        for part in parts {
            let present = pagemap.present_ranges(part);
            match present.as_deref() {
                Ok([]) => {}
                found => {
                    let text = format!("memory is in use before the pager has it: {found:?}");
                    return Err(PagerError::Message(text));
                }
            }
        }
        let uffd = create(device.as_fd())?;
        let attach = AttachRequest {
            parts: parts
                .iter()
                .map(|p| (p.start, (p.len() / PAGE) as u64))
                .collect(),
            first: first.to_vec(),
        };
        match attach.send(&socket, uffd.as_fd()) {
            // It may have said why before it went.
            Ok(()) | Err(PagerError::Gone) => {}
            Err(error) => return Err(error),
        }
        if !wait(&socket, READY_S)? {
            let text = format!("it was not ready within {READY_S} s");
            return Err(PagerError::GaveUp(text));
        }
        match PagerStatus::receive(&socket)? {
            Some(PagerStatus::Ready) => Ok(Self {
                filler: PageFiller::of_this_process(uffd),
                socket,
                parts: parts.to_vec(),
            }),
            Some(PagerStatus::Failed(why)) => Err(PagerError::GaveUp(why)),
            Some(PagerStatus::Done) => Err(PagerError::Message("done before it began".into())),
            None => Err(PagerError::GaveUp("it is gone".into())),
        }
    }

    /// Waits until all memory is there, or never will be. Touches none of it.
    #[must_use]
    pub fn wait(&self) -> PagingEnd {
        match PagerStatus::receive(&self.socket) {
            Ok(Some(PagerStatus::Done)) => PagingEnd::Done,
            Ok(Some(PagerStatus::Failed(why))) => PagingEnd::Failed(why),
            Ok(Some(PagerStatus::Ready)) => PagingEnd::Failed("it was ready twice".into()),
            Ok(None) => PagingEnd::Failed("it is gone".into()),
            Err(error) => PagingEnd::Failed(error.to_string()),
        }
    }

    /// After [`PagingEnd::Done`], for ever: pages that were discarded since are zero when they are
    /// touched.
    ///
    /// # Errors
    /// When that fails: then somebody waits for ever.
    pub fn serve_discards(&mut self) -> Result<(), PagerError> {
        let filler = &mut self.filler;
        let mut waiting: Vec<usize> = Vec::new();
        loop {
            if waiting.is_empty() {
                let mut ready = [PollFd::from_borrowed_fd(filler.as_fd(), PollFlags::IN)];
                match poll(&mut ready, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(io("Waiting for faults", "")(errno)),
                }
            }
            filler.read(|event| {
                if let MemoryEvent::Fault { address, .. } = event {
                    waiting.push(address / PAGE * PAGE);
                }
                Ok(())
            })?;
            let mut later = Vec::new();
            for page in waiting.drain(..) {
                if filler.copy(page, &[0; PAGE], false)? != FillProgress::All {
                    later.push(page);
                }
            }
            waiting = later;
        }
    }

    /// Where the memory lies.
    #[must_use]
    pub fn parts(&self) -> &[Range<usize>] {
        &self.parts
    }
}
