//! Which pages clones of a machine use first, as sections of its state.
//!
//! A trial clone shows them: it does what all clones do first, and is saved. A clone that is
//! restored from the state maps them while it is built, off the path of a claim: a page that is
//! there costs the guest neither an exit nor a copy.

use crate::dirty::PageRange;
use snapshot_format::{FormatError, Section, SectionFile, SectionName};

/// Names the pages that are used. A state may lack it.
pub const TOUCHED: &str = "touched";
/// Names the pages that are written. A state may lack it.
pub const WRITTEN: &str = "written";
/// Of the sections' encoding: pairs of first page and end, 64-bit little-endian, rising.
pub const PAGES_VERSION: u16 = 1;
/// Most pages that a section names, 16 MiB: of a machine that used more, the first ones.
const MAX_PAGES: u64 = 4096;

/// The pages that are used first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// All of them, rising.
    pub touched: Vec<PageRange>,
    /// Those that are written, rising: each clone has its own.
    pub written: Vec<PageRange>,
}

impl WorkingSet {
    /// What a state says of a memory of `pages` pages; nothing if it does not say.
    ///
    /// # Errors
    /// For ranges that are empty, out of order, too many, or not of this memory.
    pub fn of(state: &SectionFile<'_>, pages: u64) -> Result<Self, FormatError> {
        Ok(Self {
            touched: read(state, TOUCHED, pages)?,
            written: read(state, WRITTEN, pages)?,
        })
    }

    /// A machine's state with the working set of `trial`, a clone's state.
    ///
    /// # Errors
    /// When one of them is not a state, or `trial` has no working set.
    pub fn learn(state: &[u8], trial: &[u8]) -> Result<Vec<u8>, FormatError> {
        let (state, trial) = (SectionFile::parse(state)?, SectionFile::parse(trial)?);
        let own = state.sections().iter().copied();
        let mut sections: Vec<_> = own
            .filter(|s| ![TOUCHED, WRITTEN].contains(&s.name.as_str()))
            .collect();
        for name in [TOUCHED, WRITTEN] {
            sections.push(Section {
                name: SectionName::new(name)?,
                version: PAGES_VERSION,
                payload: trial.get(name, PAGES_VERSION)?,
            });
        }
        SectionFile::encode(&sections)
    }
}

/// Encodes the payload of a section.
#[must_use]
pub fn encode_pages(ranges: &[PageRange]) -> Vec<u8> {
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

fn read(state: &SectionFile<'_>, name: &str, pages: u64) -> Result<Vec<PageRange>, FormatError> {
    let Some(bytes) = state.find(name, PAGES_VERSION)? else {
        return Ok(Vec::new());
    };
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
        if first < before || end <= first || end > pages || count + (end - first) > MAX_PAGES {
            return Err(invalid(format!(
                "{first} to {end} behind {before} of {pages} pages"
            )));
        }
        count += end - first;
        before = end;
        ranges.push(PageRange { first, end });
    }
    Ok(ranges)
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn state(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let sections = sections.iter().map(|&(name, payload)| Section {
            name: SectionName::new(name).unwrap(),
            version: PAGES_VERSION,
            payload,
        });
        SectionFile::encode(&sections.collect::<Vec<_>>()).unwrap()
    }

    fn touched(payload: &[u8], pages: u64) -> Result<Vec<PageRange>, FormatError> {
        let bytes = state(&[(TOUCHED, payload)]);
        Ok(WorkingSet::of(&SectionFile::parse(&bytes).unwrap(), pages)?.touched)
    }

    fn pages(first: u64, end: u64) -> Vec<u8> {
        encode_pages(&[PageRange { first, end }])
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let all = [PageRange { first: 1, end: 4 }];
        assert_eq!(touched(&pages(1, 4), 4).unwrap(), all);
        touched(&pages(1, 5), 4).unwrap_err();
        touched(&pages(1, 4)[1..], 4).unwrap_err();
        touched(&[pages(2, 3), pages(1, 2)].concat(), 4).unwrap_err();
        let much = [pages(0, MAX_PAGES), pages(MAX_PAGES, MAX_PAGES + 1)].concat();
        touched(&much, u64::MAX).unwrap_err();
        assert_eq!(pages(0, u64::MAX), pages(0, MAX_PAGES));
    }

    #[test]
    fn a_trial_tells_both() {
        let nothing = state(&[]);
        let (used, own) = (pages(1, 4), pages(2, 3));
        let trial = state(&[(TOUCHED, &used), (WRITTEN, &own), ("other", b"x")]);
        WorkingSet::learn(&nothing, b"none").unwrap_err();
        WorkingSet::learn(&nothing, &state(&[(TOUCHED, &used)])).unwrap_err();
        let learned = WorkingSet::learn(&nothing, &trial).unwrap();
        assert_eq!(learned, state(&[(TOUCHED, &used), (WRITTEN, &own)]));
        assert_eq!(WorkingSet::learn(&learned, &trial).unwrap(), learned);
        let set = WorkingSet::of(&SectionFile::parse(&learned).unwrap(), 4).unwrap();
        assert_eq!(set.touched, [PageRange { first: 1, end: 4 }]);
        assert_eq!(set.written, [PageRange { first: 2, end: 3 }]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = touched(&bytes, 1 << 20);
        }
    }
}
