//! Counters: plain structs of atomics, written by the device that owns them, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// For the rare value that also falls.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// What the event loop did.
#[derive(Debug, Default)]
pub struct LoopMetrics {
    /// `io_uring_enter` calls.
    pub enters: Counter,
    /// Other system calls that the loop and its devices made themselves (clock reads go through
    /// the vDSO and are none).
    pub syscalls: Counter,
    /// Completions handled.
    pub completions: Counter,
    /// Edges raised on interrupt lines.
    pub interrupts: Counter,
    /// Queue notifications from the guest.
    pub notifications: Counter,
}

/// What the vsock device moved.
#[derive(Debug, Default)]
pub struct VsockMetrics {
    /// Payload bytes from the guest to the link.
    pub from_guest_bytes: Counter,
    /// Payload bytes from the link to the guest.
    pub to_guest_bytes: Counter,
    /// Packets from the guest.
    pub from_guest_packets: Counter,
    /// Packets to the guest.
    pub to_guest_packets: Counter,
    /// Connections the guest opened to the link.
    pub connections: Counter,
    /// Connection attempts and packets answered by a reset.
    pub refused: Counter,
    /// Malformed packets and broken descriptor chains, dropped.
    pub malformed: Counter,
    /// Payload bytes that passed through a buffer of ours on the way to the link; the others went
    /// straight out of guest memory.
    pub copied_bytes: Counter,
}

/// What one block device did.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Requests by kind.
    pub reads: Counter,
    /// Write requests.
    pub writes: Counter,
    /// Flush requests.
    pub flushes: Counter,
    /// Discard and write-zeroes requests.
    pub discards: Counter,
    /// Bytes read by the guest.
    pub read_bytes: Counter,
    /// Bytes written by the guest.
    pub written_bytes: Counter,
    /// Blocks of 4 KiB in the private layer.
    pub layer_blocks: Counter,
    /// Changes that wait, because the host has no room for them.
    pub held: Counter,
    /// Requests that ended with an I/O error.
    pub errors: Counter,
    /// Malformed requests.
    pub malformed: Counter,
}

/// What the network device moved.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// Frames from the guest, those that were dropped among them.
    pub from_guest_frames: Counter,
    /// Bytes of frames from the guest.
    pub from_guest_bytes: Counter,
    /// Frames to the guest.
    pub to_guest_frames: Counter,
    /// Bytes of frames to the guest.
    pub to_guest_bytes: Counter,
    /// Frames from the guest that went nowhere.
    pub dropped: Counter,
    /// Chains that hold no frame.
    pub malformed: Counter,
}
