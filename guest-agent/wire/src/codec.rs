//! Reading and writing the primitive fields. A byte string is a u32 length and its bytes.

use core::fmt;

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The message ends inside a field.
    Truncated,
    /// Bytes follow the message.
    Trailing(usize),
    /// A field is longer than its limit.
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A field holds a value without meaning.
    Invalid {
        /// Which field.
        field: &'static str,
        /// The value.
        value: u32,
    },
    /// A text field is not UTF-8.
    NotUtf8(&'static str),
    /// A string of a path or list holds a NUL byte or lacks its terminator.
    Nul(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "message ends inside a field"),
            Self::Trailing(n) => write!(f, "{n} bytes follow the message"),
            Self::TooLong { field, len, max } => {
                write!(f, "{field} of {len} is over its limit {max}")
            }
            Self::Invalid { field, value } => write!(f, "{field} has no value {value}"),
            Self::NotUtf8(field) => write!(f, "{field} is not UTF-8"),
            Self::Nul(field) => write!(f, "{field} has a misplaced NUL byte"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Why a message cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodeError {
    /// The buffer is too small.
    Full,
    /// A field is over its limit.
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A string that must not hold a NUL byte does.
    Nul(&'static str),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "the buffer is too small for the message"),
            Self::TooLong { field, len, max } => {
                write!(f, "{field} of {len} is over its limit {max}")
            }
            Self::Nul(field) => write!(f, "{field} holds a NUL byte"),
        }
    }
}

impl core::error::Error for EncodeError {}

type DecodeResult<T> = Result<T, DecodeError>;
type EncodeResult = Result<(), EncodeError>;

/// A code out of its number.
pub(crate) fn code<T>(
    v: u8,
    from: impl Fn(u8) -> Option<T>,
    field: &'static str,
) -> Result<T, DecodeError> {
    from(v).ok_or(DecodeError::Invalid {
        field,
        value: u32::from(v),
    })
}

/// Takes fields off the front of a slice.
#[derive(Debug, Clone)]
pub(crate) struct FieldReader<'a> {
    rest: &'a [u8],
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn raw(&mut self, n: usize) -> DecodeResult<&'a [u8]> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> DecodeResult<[u8; N]> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> DecodeResult<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> DecodeResult<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> DecodeResult<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn i32(&mut self) -> DecodeResult<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> DecodeResult<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> DecodeResult<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    pub(crate) fn bool(&mut self, field: &'static str) -> DecodeResult<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            v => Err(DecodeError::Invalid {
                field,
                value: u32::from(v),
            }),
        }
    }

    pub(crate) fn len(&mut self, field: &'static str, max: usize) -> DecodeResult<usize> {
        let value = self.u32()?;
        let len = usize::try_from(value).map_err(|_| DecodeError::Invalid { field, value })?;
        if len > max {
            Err(DecodeError::TooLong { field, len, max })
        } else {
            Ok(len)
        }
    }

    pub(crate) fn bytes(&mut self, field: &'static str, max: usize) -> DecodeResult<&'a [u8]> {
        let len = self.len(field, max)?;
        self.raw(len)
    }

    /// Bytes without NUL: what the kernel accepts as a path or a name.
    pub(crate) fn cbytes(&mut self, field: &'static str, max: usize) -> DecodeResult<&'a [u8]> {
        let bytes = self.bytes(field, max)?;
        if bytes.contains(&0) {
            Err(DecodeError::Nul(field))
        } else {
            Ok(bytes)
        }
    }

    pub(crate) fn text(&mut self, field: &'static str, max: usize) -> DecodeResult<&'a str> {
        core::str::from_utf8(self.bytes(field, max)?).map_err(|_| DecodeError::NotUtf8(field))
    }

    pub(crate) fn finish(&self) -> DecodeResult<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(self.rest.len()))
        }
    }
}

/// Puts fields into a slice.
#[derive(Debug)]
pub(crate) struct FieldWriter<'b> {
    out: &'b mut [u8],
    len: usize,
}

impl<'b> FieldWriter<'b> {
    pub(crate) fn new(out: &'b mut [u8]) -> Self {
        Self { out, len: 0 }
    }

    pub(crate) fn written(&self) -> usize {
        self.len
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> EncodeResult {
        let end = self.len.checked_add(bytes.len()).ok_or(EncodeError::Full)?;
        let room = self.out.get_mut(self.len..end).ok_or(EncodeError::Full)?;
        room.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    pub(crate) fn u8(&mut self, v: u8) -> EncodeResult {
        self.raw(&[v])
    }

    pub(crate) fn u16(&mut self, v: u16) -> EncodeResult {
        self.raw(&v.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, v: u32) -> EncodeResult {
        self.raw(&v.to_le_bytes())
    }

    pub(crate) fn i32(&mut self, v: i32) -> EncodeResult {
        self.raw(&v.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, v: u64) -> EncodeResult {
        self.raw(&v.to_le_bytes())
    }

    pub(crate) fn i64(&mut self, v: i64) -> EncodeResult {
        self.raw(&v.to_le_bytes())
    }

    pub(crate) fn bool(&mut self, v: bool) -> EncodeResult {
        self.u8(u8::from(v))
    }

    pub(crate) fn len(&mut self, field: &'static str, len: usize, max: usize) -> EncodeResult {
        match u32::try_from(len) {
            Ok(v) if len <= max => self.u32(v),
            _ => Err(EncodeError::TooLong { field, len, max }),
        }
    }

    pub(crate) fn bytes(&mut self, field: &'static str, v: &[u8], max: usize) -> EncodeResult {
        self.len(field, v.len(), max)?;
        self.raw(v)
    }

    pub(crate) fn cbytes(&mut self, field: &'static str, v: &[u8], max: usize) -> EncodeResult {
        if v.contains(&0) {
            return Err(EncodeError::Nul(field));
        }
        self.bytes(field, v, max)
    }

    /// A text, cut at a character boundary when it is over its limit: explanations never fail.
    pub(crate) fn text_cut(&mut self, field: &'static str, v: &str, max: usize) -> EncodeResult {
        let mut end = v.len().min(max);
        while !v.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(field, &v.as_bytes()[..end], max)
    }
}
