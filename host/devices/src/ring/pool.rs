//! Receive buffers that the kernel picks from, and the ring of entries by which it is offered them.
#![expect(
    unsafe_code,
    reason = "the buffers and their ring are shared with the kernel"
)]

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

/// Receive buffers in the pool, a power of two.
pub(super) const POOL_BUFFERS: u16 = 8;
/// Bytes of one receive buffer.
pub(super) const POOL_BUFFER_SIZE: usize = 32 * 1024;
/// The group of buffers by which operations name the pool.
pub(super) const POOL_GROUP: u16 = 0;

/// The receive buffers and the ring of entries by which the kernel is offered them.
pub(super) struct Pool {
    /// [`POOL_BUFFERS`] entries, page-aligned, then the buffers.
    base: NonNull<u8>,
    tail: u16,
    /// Filled and not given back, by id.
    taken: [bool; POOL_BUFFERS as usize],
    leak: bool,
}

const POOL_RING_BYTES: usize = 4096;
const POOL_BYTES: usize = POOL_RING_BYTES + POOL_BUFFERS as usize * POOL_BUFFER_SIZE;
const _: () = assert!(POOL_BUFFERS.is_power_of_two());
const _: () = assert!(POOL_BUFFERS as usize * size_of::<BufRingEntry>() <= POOL_RING_BYTES);

impl Pool {
    /// Maps the buffers and offers them all.
    pub(super) fn new(uring: &IoUring) -> io::Result<Self> {
        // Mapped, not allocated: pages come when they are used, most of them never.
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping where the kernel likes, which is this value's alone.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), POOL_BYTES, access, flags) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let taken = [true; POOL_BUFFERS as usize];
        let mut pool = Self {
            base,
            tail: 0,
            taken,
            leak: false,
        };
        let address = u64::try_from(base.as_ptr().addr()).unwrap_or(0);
        let submitter = uring.submitter();
        // SAFETY: the ring of entries is freed by `Pool::drop`, which runs after the io_uring is
        // closed (field order in `IoRing`), and it is as large as the number of entries asks.
        unsafe {
            submitter.register_buf_ring_with_flags(address, POOL_BUFFERS, POOL_GROUP, 0)?;
        }
        (0..POOL_BUFFERS).for_each(|id| pool.give(id));
        Ok(pool)
    }

    /// Whether the kernel has a buffer that it has not filled.
    pub(super) fn has_room(&self) -> bool {
        self.taken.contains(&false)
    }

    /// The kernel may still write to the buffers: they are never given back.
    pub(super) fn leak(&mut self) {
        self.leak = true;
    }

    fn data(&self, id: u16) -> NonNull<u8> {
        let offset = POOL_RING_BYTES + usize::from(id % POOL_BUFFERS) * POOL_BUFFER_SIZE;
        // SAFETY: the offset is inside the allocation for every id below POOL_BUFFERS.
        unsafe { self.base.add(offset) }
    }

    /// The kernel has filled a buffer.
    pub(super) fn take(&mut self, id: u16) {
        if let Some(taken) = self.taken.get_mut(usize::from(id)) {
            *taken = true;
        }
    }

    /// The first `len` bytes of a buffer that is taken; nothing of one that is not.
    pub(super) fn bytes(&self, id: u16, len: usize) -> &[u8] {
        if !self.taken.get(usize::from(id)).copied().unwrap_or(false) {
            return &[];
        }
        // SAFETY: the buffer is initialised (zeroed at first), lies inside the allocation, and the
        // kernel does not write to it until `give`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.data(id).as_ptr(), len.min(POOL_BUFFER_SIZE)) }
    }

    /// Offers a buffer to the kernel. A buffer that is not taken is left alone.
    pub(super) fn give(&mut self, id: u16) {
        match self.taken.get_mut(usize::from(id)) {
            Some(taken @ true) => *taken = false,
            _ => return,
        }
        let address = u64::try_from(self.data(id).as_ptr().addr()).unwrap_or(0);
        let slot = usize::from(self.tail % POOL_BUFFERS);
        let entries = self.base.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the slot is inside the ring of entries.
        let slot = unsafe { entries.add(slot) };
        // SAFETY: the slot is not visible to the kernel before the tail moves (there are as many
        // slots as buffers, and this buffer is not in any).
        let entry = unsafe { &mut *slot };
        entry.set_addr(address);
        entry.set_len(u32::try_from(POOL_BUFFER_SIZE).unwrap_or(0));
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the first entry of the ring.
        let tail = unsafe { BufRingEntry::tail(entries) };
        // SAFETY: the tail is an aligned u16 inside the allocation, shared with the kernel and
        // otherwise only touched here; it overlaps no field that is set above.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if !self.leak {
            // SAFETY: mapped in `new` with the same size; the kernel does not use it any more.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), POOL_BYTES) };
        }
    }
}
