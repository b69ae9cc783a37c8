//! The layer file's index: which units a layer holds, and where their bytes are.

use crate::LAYER_VERSION;
use crate::error::{FormatError, version_error};
use crate::limits::{MAX_EXTENTS, MAX_UNITS};
use crate::section::{field, limit, split};

/// Bytes of one unit: a page of memory, or a block of a disk.
pub const UNIT: u64 = 4096;
const MAGIC: &[u8; 8] = b"HATCHLYR";
const HEADER: usize = 32;
const EXTENT: usize = 16;
const WHAT: &str = "layer file";

/// A run of units with the same origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first unit.
    pub first: u64,
    /// How many, at least 1.
    pub units: u32,
    /// `Some(offset)` of its bytes in the layer file; `None`: all zeros.
    pub data: Option<u64>,
}

impl Extent {
    /// The first unit after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first + self.units as u64
    }
}

/// A checked index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndex {
    units: u64,
    extents: Vec<Extent>,
}

impl LayerIndex {
    /// An index over `runs` of (first unit, units, holds data), sorted; runs of a kind that touch
    /// are joined. Data lies in the order of the runs.
    ///
    /// # Errors
    /// [`FormatError::Limit`] or [`FormatError::Invalid`] for what no layer may hold.
    pub fn new(
        units: u64,
        runs: impl IntoIterator<Item = (u64, u32, bool)>,
    ) -> Result<Self, FormatError> {
        let mut joined: Vec<(u64, u32, bool)> = Vec::new();
        for (first, count, data) in runs {
            match joined.last_mut() {
                Some((start, n, kind))
                    if *kind == data
                        && *start + u64::from(*n) == first
                        && n.checked_add(count).is_some() =>
                {
                    *n += count;
                }
                _ => joined.push((first, count, data)),
            }
        }
        Self::place(units, joined)
    }

    /// Checks runs and gives each data run its offset.
    fn place(units: u64, runs: Vec<(u64, u32, bool)>) -> Result<Self, FormatError> {
        if units > MAX_UNITS {
            return Err(FormatError::Limit {
                what: "layer size",
                found: units,
                limit: MAX_UNITS,
            });
        }
        limit("number of extents", runs.len(), MAX_EXTENTS)?;
        let mut offset = data_start(runs.len());
        let mut extents: Vec<Extent> = Vec::with_capacity(runs.len());
        for (first, count, data) in runs {
            let before = extents.last().map_or(0, Extent::end);
            let touches = extents.last().is_some_and(|e| {
                e.end() == first && e.data.is_some() == data && e.units != u32::MAX
            });
            let end = first.checked_add(count.into());
            if count == 0 || first < before || touches || end.is_none_or(|e| e > units) {
                let value = format!("{count} units from {first}, after {before} of {units}");
                return Err(FormatError::Invalid {
                    what: "extent",
                    value,
                });
            }
            extents.push(Extent {
                first,
                units: count,
                data: data.then_some(offset),
            });
            if data {
                offset += u64::from(count) * UNIT;
            }
        }
        Ok(Self { units, extents })
    }

    /// Units of the whole that the layer is a part of.
    #[must_use]
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// The extents, sorted.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The extent that holds a unit, if the layer does.
    #[must_use]
    pub fn find(&self, unit: u64) -> Option<&Extent> {
        let after = self.extents.partition_point(|e| e.first <= unit);
        let extent = self.extents.get(after.checked_sub(1)?)?;
        (unit < extent.end()).then_some(extent)
    }

    /// Bytes of the whole file: index, padding and data.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        let data = self.extents.iter().filter(|e| e.data.is_some());
        let units: u64 = data.map(|e| u64::from(e.units)).sum();
        data_start(self.extents.len()) + units * UNIT
    }

    /// The bytes before the data, padding included.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(usize::try_from(data_start(self.extents.len())).unwrap_or(0));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&LAYER_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.units.to_le_bytes());
        let count = u32::try_from(self.extents.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        let mut table = Vec::with_capacity(self.extents.len() * EXTENT);
        for e in &self.extents {
            table.extend_from_slice(&e.first.to_le_bytes());
            table.extend_from_slice(&e.units.to_le_bytes());
            table.extend_from_slice(&u32::from(e.data.is_some()).to_le_bytes());
        }
        let sum = checksum(&out, &table);
        out.extend_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(&table);
        out.resize(
            usize::try_from(data_start(self.extents.len())).unwrap_or(out.len()),
            0,
        );
        out
    }

    /// How many bytes [`LayerIndex::parse`] needs, from the first 32 of a file.
    ///
    /// # Errors
    /// When they are not the header of a layer file.
    pub fn index_len(header: &[u8]) -> Result<usize, FormatError> {
        let (header, _) = split(header, HEADER, "header of the layer file")?;
        if !header.starts_with(MAGIC) {
            return Err(FormatError::Magic {
                what: WHAT,
                found: header[..8].to_vec(),
            });
        }
        let version = u32::from_le_bytes(field(header, 8));
        if version != LAYER_VERSION {
            return Err(version_error(WHAT, version, LAYER_VERSION));
        }
        let count = u32::from_le_bytes(field(header, 24));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        limit("number of extents", count, MAX_EXTENTS)?;
        Ok(HEADER + count * EXTENT)
    }

    /// Reads an index; bytes after it are not looked at.
    ///
    /// # Errors
    /// What is wrong first, in the order of the crate's introduction.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let (index, _) = split(bytes, Self::index_len(bytes)?, "index of the layer file")?;
        let (header, table) = split(index, HEADER, "header of the layer file")?;
        let stored = u32::from_le_bytes(field(header, 28));
        let found = checksum(&header[..28], table);
        if stored != found {
            let what = "the index of the layer file".to_owned();
            return Err(FormatError::Checksum {
                what,
                stored,
                found,
            });
        }
        let mut runs = Vec::with_capacity(table.len() / EXTENT);
        for e in table.chunks_exact(EXTENT) {
            let data = match u32::from_le_bytes(field(e, 12)) {
                0 => false,
                1 => true,
                kind => {
                    let value = kind.to_string();
                    return Err(FormatError::Invalid {
                        what: "kind of extent",
                        value,
                    });
                }
            };
            runs.push((
                u64::from_le_bytes(field(e, 0)),
                u32::from_le_bytes(field(e, 8)),
                data,
            ));
        }
        Self::place(u64::from_le_bytes(field(header, 16)), runs)
    }
}

fn data_start(extents: usize) -> u64 {
    let index = u64::try_from(HEADER + extents * EXTENT).unwrap_or(u64::MAX);
    index.next_multiple_of(UNIT)
}

fn checksum(header: &[u8], table: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(header);
    hash.update(table);
    hash.finalize()
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_are_joined_and_placed() {
        let index = LayerIndex::new(
            100,
            [(0, 1, true), (1, 2, true), (3, 4, false), (50, 1, true)],
        )
        .unwrap();
        let at = |first, units, data| Extent { first, units, data };
        assert_eq!(
            index.extents(),
            [
                at(0, 3, Some(4096)),
                at(3, 4, None),
                at(50, 1, Some(4096 * 4))
            ]
        );
        assert_eq!(index.find(6), Some(&at(3, 4, None)));
        assert_eq!(index.find(7), None);
        assert_eq!(index.file_len(), 4096 * 5);
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        for runs in [
            vec![(5, 1, true), (4, 1, true)],
            vec![(0, 0, true)],
            vec![(99, 2, true)],
            vec![(u64::MAX, 1, false)],
        ] {
            assert!(matches!(
                LayerIndex::new(100, runs),
                Err(FormatError::Invalid { .. })
            ));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let index = LayerIndex::new(100, [(0, 3, true), (9, 1, false)]).unwrap();
        let bytes = index.encode();
        for bit in 0..(HEADER + 2 * EXTENT) * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            LayerIndex::parse(&changed).expect_err("flipped");
        }
    }

    proptest! {
        #[test]
        fn an_index_agrees_with_a_map(marks in proptest::collection::vec(0u8..3, 0..200)) {
            let runs = marks.iter().enumerate().filter(|(_, m)| **m != 0);
            let runs = runs.map(|(i, m)| (i as u64, 1, *m == 1));
            let index = LayerIndex::new(marks.len() as u64, runs).unwrap();
            let read = LayerIndex::parse(&index.encode()).unwrap();
            prop_assert_eq!(&read, &index);
            for (i, mark) in marks.iter().enumerate() {
                let found = read.find(i as u64).map(|e| e.data.is_some());
                let wanted = match mark { 0 => None, m => Some(*m == 1) };
                prop_assert_eq!(found, wanted);
            }
        }
    }
}
