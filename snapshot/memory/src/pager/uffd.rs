//! userfaultfd, as far as the crate of that name does not go: descriptors from an open
//! `/dev/userfaultfd` (the process that needs one may open no files), and pages that arrive
//! write-protected.
#![expect(unsafe_code, reason = "ioctls on addresses of another process")]

use super::error::{PagerError, io};
use crate::uffd::{PAGEFAULT_FLAG_WP, WP_ASYNC, prepare};
use rustix::io::Errno;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use userfaultfd::{Event, EventBuffer, RegisterMode, Uffd};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// `_IO(0xaa, 0)`: a new descriptor.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const EVENT_REMOVE: u64 = 1 << 3;
const COPY_MODE_WP: u64 = 1 << 1;
/// Events read by one call.
const EVENTS: usize = 32;

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

/// What a guest's memory is filled through.
pub(crate) struct PageFiller {
    uffd: Uffd,
    events: EventBuffer,
}

impl std::fmt::Debug for PageFiller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Filler").field(&self.uffd).finish()
    }
}

/// How far an attempt to put pages in place came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillProgress {
    /// All of them are there.
    All,
    /// The first so many are; memory is being discarded: read events and look again.
    Some(usize),
}

/// What befell the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryEvent {
    /// Somebody waits for the page at this address.
    Fault {
        /// Anywhere in it.
        address: usize,
        /// To write to it.
        write: bool,
    },
    /// The range is zero from now on.
    Discarded(usize, usize),
}

/// A new descriptor for this process's memory, from an open `/dev/userfaultfd`. It sees faults in
/// the kernel's own accesses too.
pub(crate) fn create(device: BorrowedFd<'_>) -> Result<OwnedFd, PagerError> {
    let flags = libc::c_ulong::from((libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned());
    // SAFETY: the request takes flags by value and gives a new descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        return Err(io("Creating a userfaultfd", "USERFAULTFD_IOC_NEW")(error));
    }
    // SAFETY: the kernel has just given it to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let features = PAGEFAULT_FLAG_WP | EVENT_REMOVE | WP_ASYNC;
    let with = format!("UFFDIO_API, features {features:#x}; needs Linux 6.7");
    prepare(&fd, features).map_err(io("Preparing a userfaultfd", with))?;
    Ok(fd)
}

impl PageFiller {
    /// Takes a descriptor, which must be a userfaultfd that does not block.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, PagerError> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let target = std::fs::read_link(&link).map_err(io("Looking at a descriptor", &*link))?;
        if target.to_str() != Some("anon_inode:[userfaultfd]") {
            let text = format!("a userfaultfd is expected, not {}", target.display());
            return Err(PagerError::Message(text));
        }
        let of_ours = Self::of_this_process(fd);
        let with = "non-blocking";
        rustix::io::ioctl_fionbio(of_ours.as_fd(), true)
            .map_err(io("Preparing a userfaultfd", with))?;
        Ok(of_ours)
    }

    /// The same for one that [`create`] has given.
    pub(crate) fn of_this_process(fd: OwnedFd) -> Self {
        // SAFETY: it owns the descriptor from here on, and closes it.
        let uffd = unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) };
        let events = EventBuffer::new(EVENTS);
        Self { uffd, events }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// From now on whoever touches a missing page of the range waits.
    pub(crate) fn register(&self, start: usize, len: usize) -> Result<(), PagerError> {
        let mode = RegisterMode::MISSING | RegisterMode::WRITE_PROTECT;
        let registered = self.uffd.register_with_mode(pointer(start), len, mode);
        registered.map_err(|e| fault("Registering memory", start, len, &e))?;
        Ok(())
    }

    /// Puts copies of `bytes`, whole pages, at `start`; `clean`: until somebody writes to them they
    /// do not count as written.
    pub(crate) fn copy(
        &self,
        start: usize,
        bytes: &[u8],
        clean: bool,
    ) -> Result<FillProgress, PagerError> {
        self.place(start, bytes.len(), |at, len| {
            let mut copy = UffdioCopy {
                dst: at as u64,
                src: bytes[at - start..].as_ptr().expose_provenance() as u64,
                len: len as u64,
                mode: if clean { COPY_MODE_WP } else { 0 },
                copy: 0,
            };
            // SAFETY: `copy` is the structure this request takes; the source is `len` bytes of
            // ours, the target is checked by the kernel to be registered memory of the other
            // process.
            let done = unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
            let failed = (done < 0).then(std::io::Error::last_os_error);
            let failed = failed.map(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
            (copy.copy, failed)
        })
    }

    /// Puts the kernel's page of zeros at every page of the range.
    pub(crate) fn zero(&self, start: usize, len: usize) -> Result<FillProgress, PagerError> {
        self.place(start, len, |at, len| {
            // SAFETY: the target is checked by the kernel to be registered memory of the other
            // process.
            let done = unsafe { self.uffd.zeropage(pointer(at), len, true) };
            match done {
                Ok(done) => (i64::try_from(done).unwrap_or(0), None),
                Err(userfaultfd::Error::ZeropageFailed(errno)) => {
                    (0, Some(Errno::from_raw_os_error(errno as i32)))
                }
                Err(_) => (0, Some(Errno::IO)),
            }
        })
    }

    /// Page after page until all are there. `attempt` gives the bytes that it placed and why no
    /// more.
    fn place(
        &self,
        start: usize,
        len: usize,
        attempt: impl Fn(usize, usize) -> (i64, Option<Errno>),
    ) -> Result<FillProgress, PagerError> {
        let mut done = 0;
        // Each turn places a page, skips one, or leaves.
        while done < len {
            let (placed, errno) = attempt(start + done, len - done);
            let placed = usize::try_from(placed).unwrap_or(0).min(len - done);
            done += placed / PAGE * PAGE;
            match errno {
                None if placed > 0 => {}
                // The rest of it says why by itself.
                Some(Errno::AGAIN) if placed > 0 => {}
                Some(Errno::AGAIN) => return Ok(FillProgress::Some(done / PAGE)),
                Some(Errno::EXIST) => {
                    self.wake(start + done, PAGE)?;
                    done += PAGE;
                }
                Some(Errno::SRCH) => return Err(PagerError::Gone),
                // Not mapped any more, so nobody can wait for it.
                Some(Errno::NOENT) => done += PAGE,
                None => return Err(io("Filling memory", "nothing was placed")(Errno::IO)),
                Some(errno) => {
                    let with = format!("{} bytes at {:#x}", len - done, start + done);
                    return Err(io("Filling memory", with)(errno));
                }
            }
        }
        Ok(FillProgress::All)
    }

    /// Wakes whoever waits for a page of the range; if it is not there, they fault again.
    pub(crate) fn wake(&self, start: usize, len: usize) -> Result<(), PagerError> {
        let woken = self.uffd.wake(pointer(start), len);
        woken.map_err(|e| fault("Waking a waiting thread", start, len, &e))
    }

    /// Hands over what has happened since the last call, as much as one call reads; how many that
    /// were.
    pub(crate) fn read(
        &mut self,
        mut each: impl FnMut(MemoryEvent) -> Result<(), PagerError>,
    ) -> Result<usize, PagerError> {
        let failed = |e| fault("Reading events", 0, 0, &e);
        let mut count = 0;
        for event in self.uffd.read_events(&mut self.events).map_err(failed)? {
            count += 1;
            match event.map_err(failed)? {
                Event::Pagefault { addr, rw, .. } => each(MemoryEvent::Fault {
                    address: addr.addr(),
                    write: rw == userfaultfd::ReadWrite::Write,
                })?,
                Event::Remove { start, end } => {
                    each(MemoryEvent::Discarded(start.addr(), end.addr()))?;
                }
                // Not asked for.
                other => return Err(PagerError::Message(format!("{other:?}"))),
            }
        }
        Ok(count)
    }
}

fn pointer(address: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(address)
}

fn fault(what: &'static str, start: usize, len: usize, error: &userfaultfd::Error) -> PagerError {
    use std::error::Error as _;
    let why = error.source().map_or(String::new(), |s| format!(": {s}"));
    let source = std::io::Error::other(format!("{error}{why}"));
    io(what, format!("{len} bytes at {start:#x}"))(source)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_numbers_are_the_kernels() {
        let iowr =
            |nr: libc::c_ulong, size: usize| 3 << 30 | (size as libc::c_ulong) << 16 | 0xaa00 | nr;
        assert_eq!(UFFDIO_COPY, iowr(0x03, size_of::<UffdioCopy>()));
    }
}
