//! One io_uring behind an interface that is safe to use: the ring owns, until the kernel is done,
//! everything an operation points to.
//!
//! - Guest memory is held by reference count for the ring's whole life.
//! - Buffers and vectors move into the operation ([`IoPiece`]) and come back with its
//!   [`OpCompletion`].
//! - Receive buffers belong to a pool that the kernel picks from; one is readable only between the
//!   completion that names it and [`IoRing::recycle`].
//! - A ring dropped with operations in flight cancels them and waits; if the kernel does not answer
//!   within a second, what they point to is leaked rather than freed.
//!
//! The kernel takes only the operations that are here: see [`restriction`].
//!
//! The ring has a single issuer and runs its completions only inside [`IoRing::enter`], so one
//! system call per turn submits, waits and collects.
#![expect(unsafe_code, reason = "submission entries and in-flight memory")]

mod pool;
mod restriction;

use crate::Memory;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use pool::{POOL_GROUP, Pool};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io, mem};
use vm_memory::{GuestAddress, GuestMemory, Permissions};
use vmm_sys_util::eventfd::EventFd;

/// Submission entries. A turn that needs more submits in between.
pub(crate) const ENTRIES: u32 = 256;
/// Vectors of one operation; the kernel's own limit is 1024.
const MAX_VECTORS: usize = 512;
/// User data of operations whose success is silent.
const SILENT: u64 = u64::MAX;
/// User data of cancellations, whose own outcome does not matter.
const UNHEARD: u64 = u64::MAX - 1;
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// Threads the kernel may use for file operations that would block.
const IO_WORKERS: u32 = 4;

static ONE: u64 = 1;

/// Who an operation's completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpToken {
    /// The event loop's index of the device or watch.
    pub(crate) target: OpTarget,
    /// The device's own key.
    pub(crate) key: u32,
}

/// The first level of dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpTarget {
    /// The loop's own eventfd.
    Attention,
    /// A descriptor of the host's.
    Watch(usize),
    /// Queue `key` of a device was notified.
    Kick(usize),
    /// An operation of a device.
    Device(usize),
}

/// A part of the memory of one operation, in order.
#[derive(Debug)]
pub(crate) enum IoPiece {
    /// A range of guest memory.
    Guest {
        /// Where it begins.
        addr: GuestAddress,
        /// Bytes.
        len: usize,
    },
    /// Bytes of ours from `start` on.
    Owned {
        /// The buffer.
        bytes: Vec<u8>,
        /// Where the part begins.
        start: usize,
    },
}

impl IoPiece {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Guest { len, .. } => *len,
            Self::Owned { bytes, start } => bytes.len() - start,
        }
    }
}

/// A range that is not guest memory, or too many vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadPieces;

/// The end, or for repeating operations one event, of an operation.
#[derive(Debug)]
pub struct OpCompletion {
    pub(crate) token: OpToken,
    /// Bytes or poll bits.
    pub(crate) result: Result<u32, Errno>,
    /// The operation continues.
    pub(crate) more: bool,
    /// The pool buffer that was filled with `result` bytes.
    pub(crate) buffer: Option<u16>,
    /// What the operation was given, unchanged.
    pub(crate) pieces: Vec<IoPiece>,
}

struct Op {
    token: OpToken,
    pieces: Vec<IoPiece>,
    vectors: Vec<libc::iovec>,
    /// Boxed: its address is in the submission entry.
    message: Box<libc::msghdr>,
}

/// `vmm-sys-util`'s eventfd, which KVM's interface wants, as a borrowed descriptor.
pub(crate) fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd owns the descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

/// The ring.
pub(crate) struct IoRing {
    uring: IoUring,
    memory: Arc<Memory>,
    ops: Vec<Option<Op>>,
    free: Vec<usize>,
    pool: Pool,
    /// Emptied vectors, kept for their capacity.
    spare_ops: Vec<Op>,
}

impl fmt::Debug for IoRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// A ring that takes nothing before [`restriction::enable`].
fn build() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        // Says when completions wait to be worked on: an enter that does not wait would otherwise
        // never do it, and a device that always has more to do would be all that the loop ever
        // hears of.
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(ENTRIES * 4)
        .build(ENTRIES)
}

impl IoRing {
    pub(crate) fn new(memory: Arc<Memory>) -> io::Result<Self> {
        let uring = build()?;
        uring
            .submitter()
            .register_iowq_max_workers(&mut [IO_WORKERS, 1])?;
        let pool = Pool::new(&uring)?;
        restriction::enable(&uring)?;
        let (ops, free, spare_ops) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self {
            uring,
            memory,
            ops,
            free,
            pool,
            spare_ops,
        })
    }

    /// The kernel has taken everything that was pushed, interrupts included.
    pub(crate) fn all_submitted(&mut self) -> bool {
        self.uring.submission().is_empty()
    }

    /// Operations the kernel has not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.ops.len() - self.free.len()
    }

    /// Completes each time `fd` becomes readable or is hung up (edges, not levels).
    pub(crate) fn poll(&mut self, fd: BorrowedFd<'_>, token: OpToken) -> io::Result<()> {
        let events = u32::from(libc::POLLIN.unsigned_abs());
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events)
            .multi(true)
            .build();
        self.push_op(entry, token)
    }

    /// Receives again and again into pool buffers, until the end, an error, or an empty pool.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, token: OpToken) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), POOL_GROUP).build();
        self.push_op(entry, token)
    }

    /// Adds one to an eventfd; only a failure has a (logged) completion.
    pub(crate) fn signal(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let entry = opcode::Write::new(Fd(fd.as_raw_fd()), (&raw const ONE).cast(), 8)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(SILENT);
        // SAFETY: the entry points to a static that is only read.
        unsafe { self.push(&entry) }
    }

    /// Sends all of `pieces` on a stream socket (fewer bytes only if the socket fails).
    ///
    /// `Ok(Err(_))` gives bad pieces back.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        pieces: Vec<IoPiece>,
        token: OpToken,
    ) -> io::Result<Result<(), (BadPieces, Vec<IoPiece>)>> {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let flags = u32::try_from(flags).unwrap_or(0);
        self.push_pieces(pieces, token, |op| {
            opcode::SendMsg::new(Fd(fd.as_raw_fd()), &raw const *op.message)
                .flags(flags)
                .build()
        })
    }

    /// Reads from a file at `offset` into `pieces`; may read less.
    pub(crate) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        pieces: Vec<IoPiece>,
        offset: u64,
        token: OpToken,
    ) -> io::Result<Result<(), (BadPieces, Vec<IoPiece>)>> {
        self.push_pieces(pieces, token, |op| {
            let count = u32::try_from(op.vectors.len()).unwrap_or(0);
            opcode::Readv::new(Fd(fd.as_raw_fd()), op.vectors.as_ptr(), count)
                .offset(offset)
                .build()
        })
    }

    /// Writes `pieces` to a file at `offset`; may write less.
    pub(crate) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        pieces: Vec<IoPiece>,
        offset: u64,
        token: OpToken,
    ) -> io::Result<Result<(), (BadPieces, Vec<IoPiece>)>> {
        self.push_pieces(pieces, token, |op| {
            let count = u32::try_from(op.vectors.len()).unwrap_or(0);
            opcode::Writev::new(Fd(fd.as_raw_fd()), op.vectors.as_ptr(), count)
                .offset(offset)
                .build()
        })
    }

    /// Frees a range of a file; it reads as zeros afterwards.
    pub(crate) fn punch_hole(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        token: OpToken,
    ) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let entry = opcode::Fallocate::new(Fd(fd.as_raw_fd()), len)
            .offset(offset)
            .mode(mode);
        self.push_op(entry.build(), token)
    }

    /// Asks for the end of the operations with this token; each still completes.
    pub(crate) fn cancel(&mut self, token: OpToken) -> io::Result<()> {
        let is_it = |(index, op): (usize, &Option<Op>)| {
            op.as_ref()
                .filter(|op| op.token == token)
                .and(u64::try_from(index).ok())
        };
        let found: Vec<u64> = self.ops.iter().enumerate().filter_map(is_it).collect();
        for user_data in found {
            let entry = opcode::AsyncCancel::new(user_data)
                .build()
                .user_data(UNHEARD);
            // SAFETY: such an entry points to no memory.
            unsafe { self.push(&entry) }?;
        }
        Ok(())
    }

    /// Submits everything and collects what is complete; waits for at least one completion if
    /// `wait`, at most until `deadline`.
    pub(crate) fn enter(&mut self, wait: bool, deadline: Option<Instant>) -> io::Result<()> {
        let entered = match deadline.filter(|_| wait) {
            None => self.uring.submitter().submit_and_wait(usize::from(wait)),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let timespec = Timespec::from(left);
                let args = SubmitArgs::new().timespec(&timespec);
                self.uring.submitter().submit_with_args(1, &args)
            }
        };
        match entered {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                // Time is over, a signal came, or completions must be collected first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Moves the completions that [`IoRing::enter`] collected to `out`.
    pub(crate) fn collect(&mut self, out: &mut Vec<OpCompletion>) {
        let mut queue = self.uring.completion();
        queue.sync();
        for entry in queue {
            if entry.user_data() == SILENT {
                tracing::warn!(errno = -entry.result(), "Could not raise an interrupt");
                continue;
            }
            if entry.user_data() == UNHEARD {
                continue;
            }
            let Ok(index) = usize::try_from(entry.user_data()) else {
                continue;
            };
            let Some(Some(op)) = self.ops.get_mut(index) else {
                continue;
            };
            let token = op.token;
            let more = cqueue::more(entry.flags());
            let pieces = if more {
                Vec::new()
            } else {
                mem::take(&mut op.pieces)
            };
            if !more && let Some(op) = self.ops[index].take() {
                self.free.push(index);
                self.spare_ops.push(op);
            }
            let buffer = cqueue::buffer_select(entry.flags());
            if let Some(id) = buffer {
                self.pool.take(id);
            }
            let result = u32::try_from(entry.result())
                .map_err(|_| Errno::from_raw_os_error(-entry.result()));
            out.push(OpCompletion {
                token,
                result,
                more,
                buffer,
                pieces,
            });
        }
    }

    /// The first `len` bytes of a pool buffer that a completion named; nothing once recycled.
    pub(crate) fn buffer(&self, id: u16, len: usize) -> &[u8] {
        self.pool.bytes(id, len)
    }

    /// Gives a pool buffer back to the kernel.
    pub(crate) fn recycle(&mut self, id: u16) {
        self.pool.give(id);
    }

    /// Pool buffers that the kernel has not filled.
    pub(crate) fn pool_has_room(&self) -> bool {
        self.pool.has_room()
    }

    fn op(&mut self, token: OpToken) -> Op {
        let mut op = self.spare_ops.pop().unwrap_or_else(|| {
            // SAFETY: all-zero bytes are a valid `msghdr`: null pointers and zero lengths.
            let message = Box::new(unsafe { mem::zeroed() });
            Op {
                token,
                pieces: Vec::new(),
                vectors: Vec::new(),
                message,
            }
        });
        op.token = token;
        op.vectors.clear();
        op
    }

    fn insert(&mut self, op: Op) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.ops.push(None);
            self.ops.len() - 1
        });
        self.ops[index] = Some(op);
        u64::try_from(index).unwrap_or(SILENT)
    }

    /// For operations that point to no memory outside the pool.
    fn push_op(&mut self, entry: squeue::Entry, token: OpToken) -> io::Result<()> {
        let op = self.op(token);
        let entry = entry.user_data(self.insert(op));
        // SAFETY: such an entry points to no memory.
        unsafe { self.push(&entry) }
    }

    fn push_pieces(
        &mut self,
        pieces: Vec<IoPiece>,
        token: OpToken,
        entry: impl FnOnce(&Op) -> squeue::Entry,
    ) -> io::Result<Result<(), (BadPieces, Vec<IoPiece>)>> {
        let mut op = self.op(token);
        op.pieces = pieces;
        let Op {
            pieces, vectors, ..
        } = &mut op;
        if pieces
            .iter_mut()
            .try_for_each(|p| add_vectors(&self.memory, p, vectors))
            .is_err()
        {
            let pieces = mem::take(&mut op.pieces);
            self.spare_ops.push(op);
            return Ok(Err((BadPieces, pieces)));
        }
        op.message.msg_iov = op.vectors.as_mut_ptr();
        op.message.msg_iovlen = op.vectors.len();
        let entry = entry(&op);
        let entry = entry.user_data(self.insert(op));
        // SAFETY: the entry points to vectors and a header on the heap, owned by the `Op`, which
        // stays in `self.ops` until its last completion; the vectors point to buffers owned by that
        // `Op` and to guest memory, which `self.memory` keeps mapped.
        unsafe { self.push(&entry) }.map(Ok)
    }

    /// # Safety
    /// What `entry` points to must stay valid until its last completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: promised by the caller.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.enter(false, None)?;
        }
    }
}

fn add_vectors(
    memory: &Memory,
    piece: &mut IoPiece,
    vectors: &mut Vec<libc::iovec>,
) -> Result<(), BadPieces> {
    match piece {
        IoPiece::Owned { bytes, start } => {
            let part = bytes.get_mut(*start..).ok_or(BadPieces)?;
            vectors.push(libc::iovec {
                iov_base: part.as_mut_ptr().cast(),
                iov_len: part.len(),
            });
        }
        IoPiece::Guest { addr, len } => {
            let slices = GuestMemory::get_slices(memory, *addr, *len, Permissions::ReadWrite);
            for slice in slices.map_err(|_| BadPieces)? {
                let slice = slice.map_err(|_| BadPieces)?;
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                vectors.push(libc::iovec {
                    iov_base,
                    iov_len: slice.len(),
                });
            }
        }
    }
    if vectors.len() > MAX_VECTORS {
        Err(BadPieces)
    } else {
        Ok(())
    }
}

impl Drop for IoRing {
    fn drop(&mut self) {
        let _ = self
            .uring
            .submitter()
            .register_sync_cancel(Some(Timespec::from(DROP_TIMEOUT)), CancelBuilder::any());
        let deadline = Instant::now() + DROP_TIMEOUT;
        let mut completions = Vec::new();
        while self.in_flight() > 0 && Instant::now() < deadline {
            if self.enter(true, Some(deadline)).is_err() {
                break;
            }
            self.collect(&mut completions);
        }
        if self.in_flight() > 0 {
            mem::forget(mem::take(&mut self.ops));
            mem::forget(self.memory.clone());
            self.pool.leak();
        }
    }
}

#[cfg(test)]
mod test {
    use super::pool::POOL_BUFFERS;
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use vm_memory::Bytes;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    const TOKEN: OpToken = OpToken {
        target: OpTarget::Device(0),
        key: 7,
    };

    fn ring() -> (IoRing, Arc<Memory>) {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        (IoRing::new(memory.clone()).unwrap(), memory)
    }

    fn next(ring: &mut IoRing) -> OpCompletion {
        let mut out = Vec::new();
        while out.is_empty() {
            ring.enter(true, Some(Instant::now() + Duration::from_secs(5)))
                .unwrap();
            ring.collect(&mut out);
        }
        assert_eq!(out.len(), 1);
        out.remove(0)
    }

    #[test]
    fn an_eventfd_that_is_never_read_tells_of_each_signal() {
        let (mut ring, _) = ring();
        let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
        ring.poll(borrow(&eventfd), TOKEN).unwrap();
        for _ in 0..3 {
            eventfd.write(1).unwrap();
            let done = next(&mut ring);
            assert!(done.more && done.result.is_ok());
        }
        // And nothing more comes by itself.
        let mut out = Vec::new();
        ring.enter(true, Some(Instant::now() + Duration::from_millis(20)))
            .unwrap();
        ring.collect(&mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_signal_costs_no_completion() {
        let (mut ring, _) = ring();
        let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
        ring.signal(borrow(&eventfd)).unwrap();
        ring.enter(false, None).unwrap();
        assert_eq!(eventfd.read().unwrap(), 1);
        let mut out = Vec::new();
        ring.collect(&mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn guest_memory_and_owned_bytes_are_sent_and_received() {
        let (mut ring, memory) = ring();
        let (a, b) = UnixStream::pair().unwrap();
        memory.write_slice(b"guest", GuestAddress(0x1000)).unwrap();
        let pieces = vec![
            IoPiece::Owned {
                bytes: b"xxours ".to_vec(),
                start: 2,
            },
            IoPiece::Guest {
                addr: GuestAddress(0x1000),
                len: 5,
            },
        ];
        ring.send(a.as_fd(), pieces, TOKEN).unwrap().unwrap();
        let sent = next(&mut ring);
        assert_eq!((sent.result, sent.pieces.len()), (Ok(10), 2));

        ring.receive(b.as_fd(), TOKEN).unwrap();
        let received = next(&mut ring);
        let id = received.buffer.unwrap();
        assert_eq!(ring.buffer(id, 10), b"ours guest");
        ring.recycle(id);
        assert!(ring.buffer(id, 10).is_empty());
        drop(a);
        let end = next(&mut ring);
        assert_eq!((end.result, end.more), (Ok(0), false));
    }

    #[test]
    fn an_empty_pool_ends_receiving() {
        let (mut ring, _) = ring();
        let (a, b) = UnixStream::pair().unwrap();
        ring.receive(b.as_fd(), TOKEN).unwrap();
        let mut ids = Vec::new();
        loop {
            rustix::net::send(&a, &[1], rustix::net::SendFlags::empty()).unwrap();
            let done = next(&mut ring);
            match done.result {
                Ok(1) => ids.extend(done.buffer),
                other => {
                    assert_eq!(other, Err(Errno::NOBUFS));
                    break;
                }
            }
        }
        assert_eq!(ids.len(), usize::from(POOL_BUFFERS));
        assert!(!ring.pool_has_room());
        ring.recycle(ids[3]);
        ring.receive(b.as_fd(), TOKEN).unwrap();
        assert_eq!(next(&mut ring).buffer, Some(ids[3]));
    }

    #[test]
    fn memory_outside_the_guest_is_refused() {
        let (mut ring, _) = ring();
        let (a, _b) = UnixStream::pair().unwrap();
        for (addr, len) in [
            (1 << 20, 1),
            ((1 << 20) - 1, 2),
            (u64::MAX, 1),
            (0, usize::MAX),
        ] {
            let pieces = vec![IoPiece::Guest {
                addr: GuestAddress(addr),
                len,
            }];
            assert!(ring.send(a.as_fd(), pieces, TOKEN).unwrap().is_err());
        }
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn files_are_read_written_and_punched() {
        let (mut ring, memory) = ring();
        let file = tempfile::tempfile().unwrap();
        memory.write_slice(&[7; 8192], GuestAddress(0)).unwrap();
        let all = || {
            vec![IoPiece::Guest {
                addr: GuestAddress(0),
                len: 8192,
            }]
        };
        ring.write(file.as_fd(), all(), 4096, TOKEN)
            .unwrap()
            .unwrap();
        assert_eq!(next(&mut ring).result, Ok(8192));
        ring.punch_hole(file.as_fd(), 4096, 4096, TOKEN).unwrap();
        assert_eq!(next(&mut ring).result, Ok(0));
        ring.read(file.as_fd(), all(), 4096, TOKEN)
            .unwrap()
            .unwrap();
        assert_eq!(next(&mut ring).result, Ok(8192));
        let mut bytes = vec![1; 8192];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert_eq!(bytes, [vec![0; 4096], vec![7; 4096]].concat());
    }

    #[test]
    fn a_ring_dropped_in_flight_ends_its_operations() {
        let (mut ring, memory) = ring();
        let (_a, b) = UnixStream::pair().unwrap();
        ring.receive(b.as_fd(), TOKEN).unwrap();
        ring.enter(false, None).unwrap();
        drop(ring);
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}
