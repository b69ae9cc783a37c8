//! Bytes of the host that a process or a connection has not taken yet: a window of them at most.

use crate::sys::memory::PrivatePages;
use wire::INPUT_WINDOW;

const BUFFER: usize = INPUT_WINDOW as usize;

/// See the module. Its memory is there as long as something waits.
pub(crate) struct WaitingBytes {
    pages: Option<PrivatePages>,
    start: usize,
    end: usize,
}

impl WaitingBytes {
    pub(crate) const NONE: Self = Self {
        pages: None,
        start: 0,
        end: 0,
    };

    pub(crate) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// All that waits, the oldest first.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        match &mut self.pages {
            Some(pages) => &pages.bytes()[self.start..self.end],
            None => &[],
        }
    }

    /// Keeps bytes until they are taken. The window bounds them; false without memory.
    pub(crate) fn keep(&mut self, bytes: &[u8]) -> bool {
        if self.pages.is_none() {
            self.pages = PrivatePages::new(BUFFER).ok();
        }
        let Some(pages) = self.pages.as_mut() else {
            return false;
        };
        let all = pages.bytes();
        if BUFFER - self.end < bytes.len() {
            all.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let Some(room) = all.get_mut(self.end..self.end + bytes.len()) else {
            return false;
        };
        room.copy_from_slice(bytes);
        self.end += bytes.len();
        true
    }

    /// The first `count` bytes wait no more.
    pub(crate) fn taken(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            *self = Self::NONE;
        }
    }
}
