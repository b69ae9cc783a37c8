//! The section file: a container of named, versioned, checked payloads.

use crate::error::{FormatError, version_error};
use crate::limits::{MAX_SECTION, MAX_SECTIONS};
use std::fmt;

/// Version of the container's encoding.
pub const SECTIONS_VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"HATCHSEC";
const HEADER: usize = 12;
const ENTRY: usize = 40;
const NAME: usize = 24;
const WHAT: &str = "section file";

/// A section's name: 1 to 24 characters of `[a-z0-9.-]`, for example `vcpu.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionName([u8; NAME]);

impl SectionName {
    /// The name, if it is one.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] for other lengths or characters.
    pub fn new(name: &str) -> Result<Self, FormatError> {
        let mut bytes = [0; NAME];
        let good = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(b);
        if name.is_empty() || name.len() > NAME || !name.as_bytes().iter().all(good) {
            return Err(FormatError::Invalid {
                what: "section name",
                value: format!("{name:?}"),
            });
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self(bytes))
    }

    fn from_bytes(bytes: [u8; NAME]) -> Result<Self, FormatError> {
        let len = bytes.iter().position(|b| *b == 0).unwrap_or(NAME);
        let text = String::from_utf8_lossy(&bytes[..len]);
        let name = Self::new(&text)?;
        if name.0 == bytes {
            return Ok(name);
        }
        Err(FormatError::Invalid {
            what: "padding of section name",
            value: format!("{text:?}"),
        })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(NAME);
        std::str::from_utf8(&self.0[..len]).unwrap_or("")
    }
}

impl fmt::Debug for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// One saved part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// Whose state it is.
    pub name: SectionName,
    /// The version of its `…V1` type.
    pub version: u16,
    /// Its encoding, at most [`MAX_SECTION`] bytes; the owner's business.
    pub payload: &'a [u8],
}

/// A checked section file. Sections are found by name; each name occurs once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionFile<'a> {
    sections: Vec<Section<'a>>,
}

impl<'a> SectionFile<'a> {
    /// Writes a section file.
    ///
    /// # Errors
    /// [`FormatError::Limit`] for too many or too large sections, [`FormatError::Invalid`] for a
    /// name that occurs twice.
    pub fn encode(sections: &[Section<'_>]) -> Result<Vec<u8>, FormatError> {
        limit("number of sections", sections.len(), MAX_SECTIONS)?;
        unique(sections)?;
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&SECTIONS_VERSION.to_le_bytes());
        out.extend_from_slice(&short("number of sections", sections.len())?.to_le_bytes());
        for section in sections {
            limit("length of a section", section.payload.len(), MAX_SECTION)?;
            out.extend_from_slice(&section.name.0);
            out.extend_from_slice(&section.version.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            let len = u32::try_from(section.payload.len()).unwrap_or(u32::MAX);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(&crc32fast::hash(section.payload).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        }
        for section in sections {
            out.extend_from_slice(section.payload);
        }
        Ok(out)
    }

    /// Reads a section file; every payload's checksum is verified.
    ///
    /// # Errors
    /// What is wrong first, in the order of the crate's introduction.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let (count, table) = header(bytes)?;
        let (entries, mut rest) = split(table, count * ENTRY, "table of sections")?;
        let mut sections = Vec::with_capacity(count);
        for entry in entries.chunks_exact(ENTRY) {
            let name = SectionName::from_bytes(field(entry, 0))?;
            let version = u16::from_le_bytes(field(entry, 24));
            let zeros: ([u8; 2], [u8; 4]) = (field(entry, 26), field(entry, 36));
            let len = u32::from_le_bytes(field(entry, 28));
            let stored = u32::from_le_bytes(field(entry, 32));
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            limit("length of a section", len, MAX_SECTION)?;
            let payload;
            (payload, rest) = split(rest, len, "section")?;
            let found = crc32fast::hash(payload);
            if found != stored {
                let what = format!("section {name:?}");
                return Err(FormatError::Checksum {
                    what,
                    stored,
                    found,
                });
            }
            if zeros != ([0; 2], [0; 4]) {
                let value = format!("{zeros:02x?} of {name:?}");
                return Err(FormatError::Invalid {
                    what: "reserved bytes",
                    value,
                });
            }
            sections.push(Section {
                name,
                version,
                payload,
            });
        }
        if !rest.is_empty() {
            let value = format!("{} bytes", rest.len());
            return Err(FormatError::Invalid {
                what: "end of the section file",
                value,
            });
        }
        unique(&sections)?;
        Ok(Self { sections })
    }

    /// The payload of the section `name`, which must have this version.
    ///
    /// # Errors
    /// [`FormatError::MissingSection`] or [`FormatError::Version`].
    pub fn get(&self, name: &str, version: u16) -> Result<&'a [u8], FormatError> {
        let found = self.find(name, version)?;
        found.ok_or_else(|| FormatError::MissingSection(name.to_owned()))
    }

    /// The same for a section that a file may lack.
    ///
    /// # Errors
    /// [`FormatError::Version`].
    pub fn find(&self, name: &str, version: u16) -> Result<Option<&'a [u8]>, FormatError> {
        let found = self.sections.iter().find(|s| s.name.as_str() == name);
        match found {
            Some(section) if section.version != version => {
                let what = format!("section {name:?}");
                Err(version_error(what, section.version.into(), version.into()))
            }
            found => Ok(found.map(|section| section.payload)),
        }
    }

    /// All sections, in the order of the file.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// Refuses a file with a section that `known` does not accept: state that would be dropped.
    ///
    /// # Errors
    /// [`FormatError::UnknownSection`].
    pub fn all_known(&self, known: impl Fn(&str) -> bool) -> Result<(), FormatError> {
        match self.sections.iter().find(|s| !known(s.name.as_str())) {
            Some(s) => Err(FormatError::UnknownSection(s.name.as_str().to_owned())),
            None => Ok(()),
        }
    }
}

/// The number of sections, and what follows the header.
fn header(bytes: &[u8]) -> Result<(usize, &[u8]), FormatError> {
    let (header, rest) = split(bytes, HEADER, "header of the section file")?;
    if !header.starts_with(MAGIC) {
        return Err(FormatError::Magic {
            what: WHAT,
            found: header[..8].to_vec(),
        });
    }
    let version = u16::from_le_bytes(field(header, 8));
    if version != SECTIONS_VERSION {
        return Err(version_error(WHAT, version.into(), SECTIONS_VERSION.into()));
    }
    let count = usize::from(u16::from_le_bytes(field(header, 10)));
    limit("number of sections", count, MAX_SECTIONS)?;
    Ok((count, rest))
}

fn unique(sections: &[Section<'_>]) -> Result<(), FormatError> {
    let mut names: Vec<_> = sections.iter().map(|s| s.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(FormatError::Invalid {
            what: "second section",
            value: format!("{:?}", pair[0]),
        }),
        None => Ok(()),
    }
}

/// `N` bytes at `at`, which the caller knows to be there; zeros otherwise.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

pub(crate) fn split<'a>(
    bytes: &'a [u8],
    at: usize,
    what: &'static str,
) -> Result<(&'a [u8], &'a [u8]), FormatError> {
    bytes.split_at_checked(at).ok_or(FormatError::Truncated {
        what,
        needed: u64::try_from(at).unwrap_or(u64::MAX),
        found: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
    })
}

pub(crate) fn limit(what: &'static str, found: usize, limit: usize) -> Result<(), FormatError> {
    if found <= limit {
        return Ok(());
    }
    let wide = |n| u64::try_from(n).unwrap_or(u64::MAX);
    Err(FormatError::Limit {
        what,
        found: wide(found),
        limit: wide(limit),
    })
}

fn short(what: &'static str, n: usize) -> Result<u16, FormatError> {
    u16::try_from(n).map_err(|_| FormatError::Limit {
        what,
        found: u64::try_from(n).unwrap_or(u64::MAX),
        limit: u16::MAX.into(),
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let section = |name, payload| Section {
            name: SectionName::new(name).unwrap(),
            version: 3,
            payload,
        };
        SectionFile::encode(&[section("vcpu.0", b"registers"), section("vsock", b"")]).unwrap()
    }

    #[test]
    fn sections_are_found_by_name_and_version() {
        let bytes = sample();
        let file = SectionFile::parse(&bytes).unwrap();
        assert_eq!(file.get("vcpu.0", 3), Ok(&b"registers"[..]));
        assert!(matches!(
            file.get("vcpu.0", 4),
            Err(FormatError::Version { found: 3, .. })
        ));
        assert_eq!(
            file.get("net", 1),
            Err(FormatError::MissingSection("net".into()))
        );
        assert_eq!(
            file.all_known(|n| n == "vcpu.0"),
            Err(FormatError::UnknownSection("vsock".into()))
        );
    }

    #[test]
    fn a_name_occurs_once() {
        let s = Section {
            name: SectionName::new("a").unwrap(),
            version: 1,
            payload: b"",
        };
        assert!(matches!(
            SectionFile::encode(&[s, s]),
            Err(FormatError::Invalid { .. })
        ));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = sample();
        for len in 0..bytes.len() {
            SectionFile::parse(&bytes[..len]).expect_err("cut");
        }
        let good = SectionFile::parse(&bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // A section's own name or version may change into another valid one: found by lookup.
            match SectionFile::parse(&changed) {
                Err(_) => {}
                Ok(file) => assert_ne!(file, good, "bit {bit}"),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            parts in proptest::collection::btree_map(
                "[a-z0-9.-]{1,24}",
                (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..200)),
                0..8,
            )
        ) {
            let sections: Vec<_> = parts
                .iter()
                .map(|(name, (version, payload))| Section {
                    name: SectionName::new(name).unwrap(),
                    version: *version,
                    payload,
                })
                .collect();
            let bytes = SectionFile::encode(&sections).unwrap();
            let read = SectionFile::parse(&bytes).unwrap();
            prop_assert_eq!(read.sections(), &sections[..]);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            crate::fuzz::fuzz_sections(&bytes);
            let mut headed = MAGIC.to_vec();
            headed.extend_from_slice(&[1, 0]);
            headed.extend_from_slice(&bytes);
            crate::fuzz::fuzz_sections(&headed);
        }
    }
}
