//! Entry points for fuzzers: any bytes come back as an error or as a value that is written as it
//! was read.
//!
//! Checksums are made right in a copy first. Otherwise no fuzzer comes to what lies behind them.

use crate::layer::{LAYER_VERSION, LayerIndex, UNIT};
use crate::manifest::Manifest;
use crate::section::SectionFile;
use crate::sums::{LayerSums, unit_sum};

/// A section file.
pub fn fuzz_sections(bytes: &[u8]) {
    const HEADER: usize = 12;
    const ENTRY: usize = 40;
    let _ = SectionFile::parse(bytes);
    let mut bytes = bytes.to_vec();
    let count = bytes.get(10..12).map_or(0, |b| usize::from(b[0]).min(64));
    let mut payload = HEADER + count * ENTRY;
    for entry in (HEADER..).step_by(ENTRY).take(count) {
        let Some(&[a, b, c, d]) = bytes.get(entry + 28..entry + 32) else {
            return;
        };
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let Some(sum) = payload
            .checked_add(len)
            .and_then(|end| bytes.get(payload..end))
            .map(crc32fast::hash)
        else {
            break;
        };
        bytes[entry + 32..entry + 36].copy_from_slice(&sum.to_le_bytes());
        payload += len;
    }
    if let Ok(file) = SectionFile::parse(&bytes) {
        let written = SectionFile::encode(file.sections());
        assert!(written.is_ok_and(|written| written == bytes), "{file:?}");
        for section in file.sections() {
            let found = file.get(section.name.as_str(), section.version);
            assert_eq!(found, Ok(section.payload));
        }
    }
}

/// A layer file's header, and the extents behind it.
pub fn fuzz_layer_index(bytes: &[u8]) {
    let (header, table) = bytes.split_at(bytes.len().min(LayerIndex::HEADER));
    let _ = LayerIndex::parse(header, table);
    let Ok((_, len)) = LayerIndex::table(header) else {
        return;
    };
    let mut header = header.to_vec();
    let Some(table) = table.get(..len) else {
        return;
    };
    let sum = crc32fast::hash(&[&header[..28], table].concat());
    header[28..32].copy_from_slice(&sum.to_le_bytes());
    let Ok(index) = LayerIndex::parse(&header, table) else {
        return;
    };
    let (written, extents) = index.encode();
    assert!(
        written.starts_with(&header) && extents == table,
        "{index:?}"
    );
    assert_eq!(written.len() as u64, UNIT);
    for extent in index.extents() {
        let last = extent.end() - 1;
        assert_eq!(index.find(extent.first), Some(extent));
        assert_eq!(index.find(last), Some(extent));
        let slot = extent.slot_of(last);
        assert!(slot.is_none_or(|slot| slot < index.slots().into()));
    }
}

/// The checksums behind a layer, which has as many slots as the first byte says.
pub fn fuzz_layer_sums(bytes: &[u8]) {
    let Some((&slots, bytes)) = bytes.split_first() else {
        return;
    };
    let Ok(index) = LayerIndex::new(u64::MAX >> 32, [(0, u32::from(slots).max(1), true)]) else {
        return;
    };
    let _ = LayerSums::parse(bytes, &index);
    let mut bytes = bytes.to_vec();
    let len = usize::try_from(LayerSums::table_len(&index)).unwrap_or(usize::MAX);
    let Some(sum) = bytes.get(20..len).map(crc32fast::hash) else {
        return;
    };
    bytes[16..20].copy_from_slice(&sum.to_le_bytes());
    if let Ok(sums) = LayerSums::parse(&bytes, &index) {
        assert!(bytes.starts_with(&sums.encode()), "{sums:?}");
    }
}

/// A manifest.
pub fn fuzz_manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        // It may be longer on the way back: digits and names are escaped, and lines broken.
        if let Ok(written) = manifest.encode() {
            assert_eq!(Manifest::parse(&written), Ok(manifest));
        }
    }
}

/// A layer file for the fuzzers of those who read whole ones, and the units of the memory or disk
/// it is of. The header is right; the extents are the bytes, 4 each: first unit, units, slot (0:
/// zeros), and the kind. A file for which no extents come has no checksums of its slots.
#[must_use]
pub fn layer_file_of(bytes: &[u8]) -> (u64, Vec<u8>) {
    const SLOTS: u32 = 16;
    const UNITS: u64 = 256;
    let (extents, cut) = bytes.as_chunks::<4>();
    let mut header = b"HATCHLYR".to_vec();
    header.extend_from_slice(&LAYER_VERSION.to_le_bytes());
    header.extend_from_slice(&SLOTS.to_le_bytes());
    header.extend_from_slice(&UNITS.to_le_bytes());
    let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
    header.extend_from_slice(&count.to_le_bytes());
    let mut table = Vec::new();
    for [first, units, slot, high] in extents {
        let first = u64::from(*first) | u64::from(high >> 4) << 60;
        let units = u32::from(*units) | u32::from(high & 15) << 28;
        table.extend_from_slice(&first.to_le_bytes());
        table.extend_from_slice(&units.to_le_bytes());
        table.extend_from_slice(&u32::from(*slot).to_le_bytes());
    }
    let sum = crc32fast::hash(&[&header[..], &table].concat());
    header.extend_from_slice(&sum.to_le_bytes());
    let unit = usize::try_from(UNIT).unwrap_or(0);
    header.resize(unit, 0);
    let mut file = header;
    let mut sums = Vec::new();
    for slot in 0..SLOTS {
        let data = vec![slot.to_le_bytes()[0] + 1; unit];
        sums.push(unit_sum(&data));
        file.extend_from_slice(&data);
    }
    file.extend_from_slice(&table);
    if cut.is_empty() {
        file.extend_from_slice(&LayerSums::new(sums).encode());
    } else {
        file.extend_from_slice(cut);
    }
    (UNITS, file)
}
