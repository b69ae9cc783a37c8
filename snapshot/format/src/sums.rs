//! Checksums of a layer's units, at its end: who reads single units can check them.
//!
//! ```text
//! | header, n slots of data, extents (see `layer`) | "HATCHSUM" | n: u64 | crc32 of the table: u32 | n × crc32 |
//! ```
//!
//! A layer file may lack them. Whoever reads it whole checks its digest instead.

use crate::error::FormatError;
use crate::layer::LayerIndex;
use crate::section::{field, split};

const MAGIC: &[u8; 8] = b"HATCHSUM";
const HEADER: usize = 20;
const WHAT: &str = "table of checksums of the layer file";

/// The checksum of one unit's bytes.
#[must_use]
pub fn unit_sum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The checksums of all units with data of one layer, in the order of their slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerSums(Vec<u32>);

impl LayerSums {
    /// With these sums, one for each slot.
    #[must_use]
    pub const fn new(sums: Vec<u32>) -> Self {
        Self(sums)
    }

    /// Bytes of the table behind a layer with this index.
    #[must_use]
    pub fn table_len(index: &LayerIndex) -> u64 {
        HEADER as u64 + u64::from(index.slots()) * 4
    }

    /// The bytes to put behind the extents.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let table: Vec<u8> = self.0.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let mut out = Vec::with_capacity(HEADER + table.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(self.0.len() as u64).to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&table).to_le_bytes());
        out.extend_from_slice(&table);
        out
    }

    /// Reads the [`LayerSums::table_len`] bytes at the end of a layer.
    ///
    /// # Errors
    /// For bytes that are not such a table, of another layer, cut off or damaged.
    pub fn parse(bytes: &[u8], index: &LayerIndex) -> Result<Self, FormatError> {
        let (header, rest) = split(bytes, HEADER, WHAT)?;
        if !header.starts_with(MAGIC) {
            return Err(FormatError::Magic {
                what: WHAT,
                found: header[..8].to_vec(),
            });
        }
        let (count, wanted) = (
            u64::from_le_bytes(field(header, 8)),
            u64::from(index.slots()),
        );
        if count != wanted {
            return Err(FormatError::Invalid {
                what: "number of checksums",
                value: format!("{count} for {wanted} slots"),
            });
        }
        let len = usize::try_from(count * 4).unwrap_or(usize::MAX);
        let (table, _) = split(rest, len, WHAT)?;
        let (stored, found) = (
            u32::from_le_bytes(field(header, 16)),
            crc32fast::hash(table),
        );
        if stored != found {
            return Err(FormatError::Checksum {
                what: format!("the {WHAT}"),
                stored,
                found,
            });
        }
        let (sums, _) = table.as_chunks::<4>();
        Ok(Self(sums.iter().map(|b| u32::from_le_bytes(*b)).collect()))
    }

    /// Checks the bytes of a slot.
    ///
    /// # Errors
    /// [`FormatError::Checksum`] when they have changed.
    pub fn check(&self, slot: usize, bytes: &[u8]) -> Result<(), FormatError> {
        let found = unit_sum(bytes);
        match self.0.get(slot) {
            Some(stored) if *stored == found => Ok(()),
            stored => Err(FormatError::Checksum {
                what: format!("slot {slot} of the layer file"),
                stored: stored.copied().unwrap_or(0),
                found,
            }),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let index = LayerIndex::new(100, [(0, 2, true), (5, 3, false), (9, 1, true)]).unwrap();
        let units: Vec<_> = (0..3_u8).map(|n| [n; 64]).collect();
        let sums = LayerSums::new(units.iter().map(|u| unit_sum(u)).collect());
        let bytes = sums.encode();
        assert_eq!(bytes.len() as u64, LayerSums::table_len(&index));
        assert_eq!(LayerSums::parse(&bytes, &index).unwrap(), sums);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            LayerSums::parse(&changed, &index).expect_err("flipped");
        }
        for end in 0..bytes.len() {
            LayerSums::parse(&bytes[..end], &index).expect_err("cut off");
        }
        sums.check(1, &units[1]).unwrap();
        assert!(matches!(
            sums.check(1, &units[2]),
            Err(FormatError::Checksum { .. })
        ));
        sums.check(3, &units[0]).unwrap_err();
    }
}
