//! The machine's side: giving its memory to the pager, and noticing how that ends.

use super::message::{Attach, Word, wait};
use super::uffd::{Filler, Happened, PAGE, Placed, create};
use super::{PagerError, io};
use crate::dirty::{Pagemap, Range as Pages};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// How long the pager may take to be ready.
const READY_S: i64 = 10;

/// How serving a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// All of its memory is there.
    Done,
    /// The pager is gone or gave up. Pages are missing for ever; who touches one hangs.
    Failed(String),
}

/// Memory that comes through a pager. Keep it as long as the memory: without its descriptor missing
/// pages would be zeros.
#[derive(Debug)]
pub struct Lazy {
    filler: Filler,
    socket: OwnedFd,
    parts: Vec<Range<usize>>,
}

/// Whether memory can be brought to processes that are given `device`, which is `/dev/userfaultfd`, open.
///
/// # Errors
/// What the kernel refuses.
pub fn check(device: impl AsFd) -> Result<(), PagerError> {
    create(device.as_fd()).map(drop)
}

impl Lazy {
    /// Gives this process's memory in `parts`, private, anonymous and never touched, to the pager behind
    /// `socket`. `device` is `/dev/userfaultfd`, open; `first` is fetched before the rest.
    ///
    /// # Errors
    /// When memory was touched before, the kernel refuses, or the pager does or is gone: there is no such
    /// memory then.
    pub fn begin(
        socket: OwnedFd,
        device: impl AsFd,
        parts: &[Range<usize>],
        first: &[Pages],
    ) -> Result<Self, PagerError> {
        let pagemap =
            Pagemap::open().map_err(|e| io("Looking at memory", e.to_string())(Errno::IO))?;
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
        let attach = Attach {
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
        match Word::receive(&socket)? {
            Some(Word::Ready) => Ok(Self {
                filler: Filler::of_this_process(uffd),
                socket,
                parts: parts.to_vec(),
            }),
            Some(Word::Failed(why)) => Err(PagerError::GaveUp(why)),
            Some(Word::Done) => Err(PagerError::Message("done before it began".into())),
            None => Err(PagerError::GaveUp("it is gone".into())),
        }
    }

    /// Waits until all memory is there, or never will be. Touches none of it.
    #[must_use]
    pub fn wait(&self) -> Over {
        match Word::receive(&self.socket) {
            Ok(Some(Word::Done)) => Over::Done,
            Ok(Some(Word::Failed(why))) => Over::Failed(why),
            Ok(Some(Word::Ready)) => Over::Failed("it was ready twice".into()),
            Ok(None) => Over::Failed("it is gone".into()),
            Err(error) => Over::Failed(error.to_string()),
        }
    }

    /// After [`Over::Done`], for ever: pages that were discarded since are zero when they are touched.
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
                if let Happened::Fault { address, .. } = event {
                    waiting.push(address / PAGE * PAGE);
                }
                Ok(())
            })?;
            let mut later = Vec::new();
            for page in waiting.drain(..) {
                if filler.copy(page, &[0; PAGE], false)? != Placed::All {
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
