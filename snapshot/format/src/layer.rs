//! The layer file's index: which units a layer holds, and where their bytes are.
//!
//! ```text
//! | header, one unit | data: slots of one unit each | extents | sums (see `sums`) |
//! ```
//!
//! The extents lie behind the data, so that data can be written before it is known what else there
//! will be.

use crate::error::{FormatError, version_error};
use crate::limits::{MAX_EXTENTS, MAX_UNITS};
use crate::section::{field, limit, split};

/// Version of the layer file's encoding.
pub const LAYER_VERSION: u32 = 2;
/// Bytes of one unit: a page of memory, or a block of a disk.
pub const UNIT: u64 = 4096;
const MAGIC: &[u8; 8] = b"HATCHLYR";
const EXTENT: usize = 16;
const WHAT: &str = "layer file";

/// A run of units with the same origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first unit.
    pub first: u64,
    /// How many, at least 1.
    pub units: u32,
    /// The slot in which the data of the first unit is; the others' follow. `None`: all zeros.
    pub slot: Option<u32>,
}

impl Extent {
    /// The first unit after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first + self.units as u64
    }

    /// The slot of one of its units; `None` for zeros.
    #[must_use]
    pub fn slot_of(&self, unit: u64) -> Option<u64> {
        Some(u64::from(self.slot?) + unit.checked_sub(self.first)?)
    }

    /// The offset in the layer file of the bytes of one of its units; `None` for zeros.
    #[must_use]
    pub fn data_of(&self, unit: u64) -> Option<u64> {
        Some(LayerIndex::data_at(self.slot_of(unit)?))
    }

    /// Whether `next` says nothing that a longer one of this would not.
    fn is_continued_by(&self, next: &Self) -> bool {
        let slot = self.slot.map(|slot| slot.checked_add(self.units));
        let same = match (slot, next.slot) {
            (None, None) => true,
            (Some(expected), Some(slot)) => expected == Some(slot),
            _ => false,
        };
        self.end() == next.first && same && self.units.checked_add(next.units).is_some()
    }
}

/// A checked index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndex {
    units: u64,
    slots: u32,
    extents: Vec<Extent>,
}

impl LayerIndex {
    /// Bytes of the header; data begins one unit into the file.
    pub const HEADER: usize = 32;

    /// The offset of a slot in the file.
    #[must_use]
    pub const fn data_at(slot: u64) -> u64 {
        UNIT + slot * UNIT
    }

    /// An index over `runs` of (first unit, units, holds data), sorted; runs of a kind that touch
    /// are joined. Data lies in the order of the runs.
    ///
    /// # Errors
    /// [`FormatError::Limit`] or [`FormatError::Invalid`] for what no layer may hold.
    pub fn new(
        units: u64,
        runs: impl IntoIterator<Item = (u64, u32, bool)>,
    ) -> Result<Self, FormatError> {
        let mut slots = 0_u64;
        let placed = runs.into_iter().map(|(first, units, data)| {
            let slot = u32::try_from(slots).unwrap_or(u32::MAX);
            slots += if data { units.into() } else { 0 };
            Extent {
                first,
                units,
                slot: data.then_some(slot),
            }
        });
        let extents = joined(placed);
        Self::checked(units, slots, extents)
    }

    /// An index over units whose data is in the given slots of `slots`, sorted; what can be joined
    /// is.
    ///
    /// # Errors
    /// As [`LayerIndex::new`].
    pub fn placed(
        units: u64,
        slots: u64,
        extents: impl IntoIterator<Item = Extent>,
    ) -> Result<Self, FormatError> {
        Self::checked(units, slots, joined(extents))
    }

    fn checked(units: u64, slots: u64, extents: Vec<Extent>) -> Result<Self, FormatError> {
        let bound = |what, found, most| match found > most {
            true => Err(FormatError::Limit {
                what,
                found,
                limit: most,
            }),
            false => Ok(()),
        };
        bound("layer size", units, MAX_UNITS)?;
        // The largest number is not that of a slot: extents count from 1.
        bound("slots of a layer", slots, (u32::MAX - 1).into())?;
        limit("number of extents", extents.len(), MAX_EXTENTS)?;
        let mut before: Option<&Extent> = None;
        for extent in &extents {
            let after = before.map_or(0, Extent::end);
            let end = extent.first.checked_add(extent.units.into());
            let last = extent
                .slot
                .map(|slot| u64::from(slot) + u64::from(extent.units));
            if extent.units == 0
                || extent.first < after
                || end.is_none_or(|end| end > units)
                || last.is_some_and(|last| last > slots)
                || before.is_some_and(|before| before.is_continued_by(extent))
            {
                let Extent {
                    first,
                    units: count,
                    slot,
                } = extent;
                let value = format!(
                    "{count} units from {first}, after {after} of {units}, at {slot:?} of {slots} slots"
                );
                return Err(FormatError::Invalid {
                    what: "extent",
                    value,
                });
            }
            before = Some(extent);
        }
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        Ok(Self {
            units,
            slots,
            extents,
        })
    }

    /// Units of the whole that the layer is a part of.
    #[must_use]
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// Units of data in the file.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
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

    /// Bytes of the file up to the end of the extents.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        Self::data_at(self.slots.into()) + (self.extents.len() * EXTENT) as u64
    }

    /// The bytes before the data, padding included, and those behind it.
    #[must_use]
    pub fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let mut header = Vec::with_capacity(usize::try_from(UNIT).unwrap_or(0));
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&LAYER_VERSION.to_le_bytes());
        header.extend_from_slice(&self.slots.to_le_bytes());
        header.extend_from_slice(&self.units.to_le_bytes());
        let count = u32::try_from(self.extents.len()).unwrap_or(u32::MAX);
        header.extend_from_slice(&count.to_le_bytes());
        let mut table = Vec::with_capacity(self.extents.len() * EXTENT);
        for e in &self.extents {
            table.extend_from_slice(&e.first.to_le_bytes());
            table.extend_from_slice(&e.units.to_le_bytes());
            table.extend_from_slice(&e.slot.map_or(0, |slot| slot + 1).to_le_bytes());
        }
        let sum = checksum(&header, &table);
        header.extend_from_slice(&sum.to_le_bytes());
        header.resize(usize::try_from(UNIT).unwrap_or(0), 0);
        (header, table)
    }

    /// Where the extents are, from the first [`LayerIndex::HEADER`] bytes of a file: their offset,
    /// and how many bytes.
    ///
    /// # Errors
    /// When they are not the header of a layer file.
    pub fn table(header: &[u8]) -> Result<(u64, usize), FormatError> {
        let (header, _) = split(header, Self::HEADER, "header of the layer file")?;
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
        let slots = u32::from_le_bytes(field(header, 12));
        Ok((Self::data_at(slots.into()), count * EXTENT))
    }

    /// Reads the index of a file of `len` bytes; `read` fills a buffer from an offset of it.
    ///
    /// # Errors
    /// From `read`; and, by way of `refused`, for a file that is cut off or no layer file.
    pub fn read<E>(
        len: u64,
        read: impl Fn(&mut [u8], u64) -> Result<(), E>,
        refused: impl Fn(FormatError) -> E,
    ) -> Result<Self, E> {
        let mut header = [0; Self::HEADER];
        read(&mut header, 0)?;
        let (place, bytes) = Self::table(&header).map_err(&refused)?;
        let needed = place + bytes as u64;
        if len < needed {
            return Err(refused(FormatError::Truncated {
                what: WHAT,
                needed,
                found: len,
            }));
        }
        let mut table = vec![0; bytes];
        read(&mut table, place)?;
        Self::parse(&header, &table).map_err(refused)
    }

    /// Reads an index from the header and what [`LayerIndex::table`] says; bytes after either are
    /// not looked at.
    ///
    /// # Errors
    /// What is wrong first, in the order of the crate's introduction.
    pub fn parse(header: &[u8], table: &[u8]) -> Result<Self, FormatError> {
        let (_, len) = Self::table(header)?;
        let (table, _) = split(table, len, "index of the layer file")?;
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
        let (entries, _) = table.as_chunks::<EXTENT>();
        let extent = |e: &[u8; EXTENT]| Extent {
            first: u64::from_le_bytes(field(e, 0)),
            units: u32::from_le_bytes(field(e, 8)),
            slot: u32::from_le_bytes(field(e, 12)).checked_sub(1),
        };
        let slots = u32::from_le_bytes(field(header, 12));
        let units = u64::from_le_bytes(field(header, 16));
        Self::checked(units, slots.into(), entries.iter().map(extent).collect())
    }
}

fn joined(extents: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::new();
    for extent in extents {
        match joined.last_mut() {
            Some(last) if last.is_continued_by(&extent) => last.units += extent.units,
            _ => joined.push(extent),
        }
    }
    joined
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

    const fn at(first: u64, units: u32, slot: Option<u32>) -> Extent {
        Extent { first, units, slot }
    }

    #[test]
    fn runs_are_joined_and_placed() {
        let index = LayerIndex::new(
            100,
            [(0, 1, true), (1, 2, true), (3, 4, false), (50, 1, true)],
        )
        .unwrap();
        let wanted = [at(0, 3, Some(0)), at(3, 4, None), at(50, 1, Some(3))];
        assert_eq!(index.extents(), wanted);
        assert_eq!(index.find(6), Some(&at(3, 4, None)));
        assert_eq!(index.find(7), None);
        assert_eq!(index.find(2).unwrap().data_of(2), Some(3 * UNIT));
        assert_eq!(index.file_len(), 5 * UNIT + 3 * 16);
    }

    #[test]
    fn data_may_lie_in_any_order() {
        let extents = [at(0, 1, Some(2)), at(1, 1, Some(0)), at(2, 1, Some(1))];
        let index = LayerIndex::placed(3, 3, extents).unwrap();
        assert_eq!(index.extents(), [at(0, 1, Some(2)), at(1, 2, Some(0))]);
        let (header, table) = index.encode();
        assert_eq!(LayerIndex::parse(&header, &table).unwrap(), index);
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        for extents in [
            vec![at(5, 1, None), at(4, 1, None)],
            vec![at(0, 0, Some(0))],
            vec![at(99, 2, None)],
            vec![at(u64::MAX, 1, None)],
            vec![at(0, 2, Some(9))],
            vec![at(0, 1, Some(u32::MAX - 1))],
        ] {
            assert!(matches!(
                LayerIndex::placed(100, 10, extents),
                Err(FormatError::Invalid { .. })
            ));
        }
        let apart = vec![at(0, 1, Some(0)), at(1, 1, Some(1))];
        LayerIndex::checked(100, 10, apart).unwrap_err();
        LayerIndex::placed(100, u64::from(u32::MAX), []).unwrap_err();
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let index = LayerIndex::new(100, [(0, 3, true), (9, 1, false)]).unwrap();
        let (header, table) = index.encode();
        for bit in 0..LayerIndex::HEADER * 8 {
            let mut changed = header.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            LayerIndex::parse(&changed, &table).expect_err("flipped");
        }
        for bit in 0..2 * EXTENT * 8 {
            let mut changed = table.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            LayerIndex::parse(&header, &changed).expect_err("flipped");
        }
    }

    proptest! {
        #[test]
        fn an_index_agrees_with_a_map(marks in proptest::collection::vec(0u8..3, 0..200)) {
            let runs = marks.iter().enumerate().filter(|(_, m)| **m != 0);
            let runs = runs.map(|(i, m)| (i as u64, 1, *m == 1));
            let index = LayerIndex::new(marks.len() as u64, runs).unwrap();
            let (header, table) = index.encode();
            let read = LayerIndex::parse(&header, &table).unwrap();
            prop_assert_eq!(&read, &index);
            for (i, mark) in marks.iter().enumerate() {
                let found = read.find(i as u64).map(|e| e.slot.is_some());
                let wanted = match mark { 0 => None, m => Some(*m == 1) };
                prop_assert_eq!(found, wanted);
            }
        }
    }
}
