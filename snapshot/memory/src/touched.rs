//! Which pages a machine had used when it was saved, as a section of its state.
//!
//! Whoever begins at that state maps them while it is built, off the path of whoever waits for it.

use crate::dirty::Range;
use snapshot_format::{FormatError, Section, SectionFile, SectionName};

/// The section's name. A state may lack it.
pub const TOUCHED: &str = "touched";
/// Of the section's encoding: pairs of first page and end, 64-bit little-endian, rising.
pub const TOUCHED_VERSION: u16 = 1;
/// Most pages that are noted, 16 MiB: of a machine that used more, the first ones.
const MAX_PAGES: u64 = 4096;

/// Encodes what a machine has used.
#[must_use]
pub fn encode_touched(ranges: &[Range]) -> Vec<u8> {
    let mut left = MAX_PAGES;
    let mut bytes = Vec::new();
    for range in ranges {
        let end = range.end.min(range.first.saturating_add(left));
        if left == 0 || end <= range.first {
            break;
        }
        left -= end - range.first;
        bytes.extend_from_slice(&range.first.to_le_bytes());
        bytes.extend_from_slice(&end.to_le_bytes());
    }
    bytes
}

/// What a state says was used of a memory of `pages` pages; nothing if it does not say.
///
/// # Errors
/// For ranges that are empty, out of order, too many, or not of this memory.
pub fn touched(state: &SectionFile<'_>, pages: u64) -> Result<Vec<Range>, FormatError> {
    let named = |s: &&Section<'_>| s.name.as_str() == TOUCHED;
    if !state.sections().iter().any(|s| named(&s)) {
        return Ok(Vec::new());
    }
    let bytes = state.get(TOUCHED, TOUCHED_VERSION)?;
    let invalid = |value: String| FormatError::Invalid {
        what: "range of used pages",
        value,
    };
    let (pairs, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(invalid(format!("{} bytes", rest.len())));
    }
    let (mut before, mut count) = (0, 0);
    let mut ranges = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let (words, _) = pair.as_chunks::<8>();
        let [first, end] = [words[0], words[1]].map(u64::from_le_bytes);
        if first < before || end <= first || end > pages || count + end - first > MAX_PAGES {
            return Err(invalid(format!(
                "{first} to {end} behind {before} of {pages} pages"
            )));
        }
        count += end - first;
        before = end;
        ranges.push(Range { first, end });
    }
    Ok(ranges)
}

/// A machine's state with what another one like it has used, by its own state.
///
/// # Errors
/// When one of them is not a state, or `other` does not say.
pub fn with_touched(state: &[u8], other: &[u8]) -> Result<Vec<u8>, FormatError> {
    let (state, other) = (SectionFile::parse(state)?, SectionFile::parse(other)?);
    let section = Section {
        name: SectionName::new(TOUCHED)?,
        version: TOUCHED_VERSION,
        payload: other.get(TOUCHED, TOUCHED_VERSION)?,
    };
    let own = state.sections().iter().copied();
    let kept = own.filter(|s| s.name.as_str() != TOUCHED);
    SectionFile::encode(&kept.chain([section]).collect::<Vec<_>>())
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn state(payload: &[u8]) -> Vec<u8> {
        let name = SectionName::new(TOUCHED).unwrap();
        let version = TOUCHED_VERSION;
        SectionFile::encode(&[Section {
            name,
            version,
            payload,
        }])
        .unwrap()
    }

    fn read(payload: &[u8], pages: u64) -> Result<Vec<Range>, FormatError> {
        let bytes = state(payload);
        touched(&SectionFile::parse(&bytes).unwrap(), pages)
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let range = |first, end| encode_touched(&[Range { first, end }]);
        assert_eq!(read(&range(1, 4), 4).unwrap(), [Range { first: 1, end: 4 }]);
        read(&range(1, 5), 4).unwrap_err();
        read(&range(1, 4)[1..], 4).unwrap_err();
        read(&[range(2, 3), range(1, 2)].concat(), 4).unwrap_err();
        let much = [range(0, MAX_PAGES), range(MAX_PAGES, MAX_PAGES + 1)].concat();
        read(&much, u64::MAX).unwrap_err();
        assert_eq!(range(0, u64::MAX), range(0, MAX_PAGES));
        with_touched(&state(&[]), b"none").unwrap_err();
        let nothing = SectionFile::encode(&[]).unwrap();
        with_touched(&state(&[]), &nothing).unwrap_err();
        let taken = with_touched(&nothing, &state(&range(1, 2))).unwrap();
        assert_eq!(taken, state(&range(1, 2)));
        assert_eq!(with_touched(&state(&[]), &taken).unwrap(), taken);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&bytes, 1 << 20);
        }
    }
}
