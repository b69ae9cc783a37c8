//! A path with its terminator, in a fixed buffer.

use core::ffi::CStr;
use wire::MAX_PATH;

/// A path of at most [`MAX_PATH`] bytes without NUL.
pub(crate) struct PathBuffer {
    bytes: [u8; MAX_PATH + 1],
    len: usize,
}

impl PathBuffer {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; MAX_PATH + 1],
            len: 0,
        }
    }

    /// Becomes `path`; false (and empty) when it is too long.
    pub(crate) fn set(&mut self, path: &[u8]) -> bool {
        self.len = 0;
        self.append(path)
    }

    fn append(&mut self, bytes: &[u8]) -> bool {
        let end = self.len + bytes.len();
        if end > MAX_PATH || bytes.contains(&0) {
            self.bytes[self.len] = 0;
            return false;
        }
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.bytes[end] = 0;
        self.len = end;
        true
    }

    /// Goes down to `name`; false (and unchanged) when that is too long.
    pub(crate) fn push(&mut self, name: &[u8]) -> bool {
        let before = self.len;
        let slash: &[u8] = if self.bytes[..before].ends_with(b"/") {
            b""
        } else {
            b"/"
        };
        if self.append(slash) && self.append(name) {
            return true;
        }
        self.truncate(before);
        false
    }

    /// Goes back to a length it had.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = len.min(self.len);
        self.bytes[self.len] = 0;
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// For people, at most 200 bytes.
    pub(crate) fn text(&self) -> &str {
        let bytes = self.bytes();
        let cut = &bytes[..bytes.len().min(200)];
        core::str::from_utf8(cut).unwrap_or("(a name that is no text)")
    }

    pub(crate) fn c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}
