//! A short text on the stack, for explanations.

use core::fmt;

/// A text of at most `N` bytes; what does not fit is cut.
#[derive(Clone, Copy)]
pub struct FixedText<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> FixedText<N> {
    /// An empty text.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// The formatted arguments.
    #[must_use]
    pub fn of(args: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        let _ = fmt::write(&mut text, args);
        text
    }

    /// What was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl<const N: usize> Default for FixedText<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for FixedText<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<const N: usize> fmt::Write for FixedText<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut n = s.len().min(N - self.len);
        while !s.is_char_boundary(n) {
            n -= 1;
        }
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::FixedText;

    #[test]
    fn cuts_at_a_character() {
        assert_eq!(FixedText::<4>::of(format_args!("abcé")).as_str(), "abc");
        assert_eq!(
            FixedText::<8>::of(format_args!("{}-{}", 12, "x")).as_str(),
            "12-x"
        );
    }
}
