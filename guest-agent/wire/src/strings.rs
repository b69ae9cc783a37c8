//! A list of NUL-terminated strings: the form in which the kernel wants arguments and environment,
//! so that the agent passes them to `execve` without copying.

use crate::codec::{DecodeError, EncodeError, FieldReader, FieldWriter};
use crate::limits::MAX_REQUEST;

/// A borrowed list of byte strings without NUL.
#[derive(Clone, Copy)]
pub enum StringList<'a> {
    /// As the sender has them.
    Slices(&'a [&'a [u8]]),
    /// As they travel: each string followed by one NUL.
    Packed(&'a [u8]),
}

impl<'a> StringList<'a> {
    /// No strings.
    pub const EMPTY: Self = Self::Packed(&[]);

    /// The strings in order, without terminators.
    #[must_use]
    pub fn iter(&self) -> StringListIter<'a> {
        match *self {
            Self::Slices(s) => StringListIter(ListInner::Slices(s.iter())),
            Self::Packed(rest) => StringListIter(ListInner::Packed(rest)),
        }
    }

    /// The packed bytes, if the list was decoded.
    #[must_use]
    pub fn packed(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Slices(_) => None,
            Self::Packed(bytes) => Some(bytes),
        }
    }

    /// How many strings there are. Walks the list.
    #[must_use]
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    pub(crate) fn encode(
        &self,
        w: &mut FieldWriter<'_>,
        field: &'static str,
        max: usize,
    ) -> Result<(), EncodeError> {
        let (mut count, mut bytes) = (0, 0);
        for s in *self {
            if s.contains(&0) {
                return Err(EncodeError::Nul(field));
            }
            count += 1;
            bytes += s.len() + 1;
        }
        w.len(field, count, max)?;
        w.len(field, bytes, MAX_REQUEST)?;
        for s in *self {
            w.raw(s)?;
            w.u8(0)?;
        }
        Ok(())
    }

    pub(crate) fn decode(
        r: &mut FieldReader<'a>,
        field: &'static str,
        max: usize,
    ) -> Result<Self, DecodeError> {
        let count = r.len(field, max)?;
        let bytes = r.bytes(field, MAX_REQUEST)?;
        if bytes.last().is_some_and(|&b| b != 0)
            || bytes.iter().filter(|&&b| b == 0).count() != count
        {
            return Err(DecodeError::Nul(field));
        }
        Ok(Self::Packed(bytes))
    }
}

impl PartialEq for StringList<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for StringList<'_> {}

impl core::fmt::Debug for StringList<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for StringList<'a> {
    type Item = &'a [u8];
    type IntoIter = StringListIter<'a>;
    fn into_iter(self) -> StringListIter<'a> {
        self.iter()
    }
}

/// The strings of a [`StringList`].
#[derive(Debug, Clone)]
pub struct StringListIter<'a>(ListInner<'a>);

#[derive(Debug, Clone)]
enum ListInner<'a> {
    Slices(core::slice::Iter<'a, &'a [u8]>),
    Packed(&'a [u8]),
}

impl<'a> Iterator for StringListIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match &mut self.0 {
            ListInner::Slices(s) => s.next().copied(),
            ListInner::Packed(rest) => {
                let end = rest.iter().position(|&b| b == 0)?;
                let (head, tail) = rest.split_at(end);
                *rest = &tail[1..];
                Some(head)
            }
        }
    }
}
