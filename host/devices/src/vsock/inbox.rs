//! Bytes from the link on their way to the guest: pool buffers in the order they were filled.
//!
//! When the guest gives no credit the buffers stay here, the pool runs dry, receiving ends, and the
//! link's own socket buffer fills: its writer blocks.

use crate::ring::IoRing;
use std::collections::VecDeque;

#[derive(Debug)]
struct FilledBuffer {
    id: u16,
    start: usize,
    end: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LinkInbox {
    filled: VecDeque<FilledBuffer>,
}

impl LinkInbox {
    /// A pool buffer was filled with `len` bytes.
    pub(crate) fn push(&mut self, id: u16, len: usize) {
        self.filled.push_back(FilledBuffer {
            id,
            start: 0,
            end: len,
        });
    }

    /// Bytes that can be taken in one go.
    pub(crate) fn available(&self) -> usize {
        self.filled.front().map_or(0, |f| f.end - f.start)
    }

    /// The next `len` bytes, at most [`LinkInbox::available`].
    pub(crate) fn peek<'a>(&self, len: usize, ring: &'a IoRing) -> &'a [u8] {
        let Some(filled) = self.filled.front() else {
            return &[];
        };
        let bytes = ring.buffer(filled.id, filled.end);
        bytes
            .get(filled.start..(filled.start + len).min(filled.end))
            .unwrap_or(&[])
    }

    /// `len` bytes are delivered.
    pub(crate) fn consume(&mut self, len: usize, ring: &mut IoRing) {
        if let Some(filled) = self.filled.front_mut() {
            filled.start += len;
            if filled.start >= filled.end {
                ring.recycle(filled.id);
                self.filled.pop_front();
            }
        }
    }

    /// Nobody wants these bytes.
    pub(crate) fn clear(&mut self, ring: &mut IoRing) {
        self.filled
            .drain(..)
            .for_each(|filled| ring.recycle(filled.id));
    }
}
