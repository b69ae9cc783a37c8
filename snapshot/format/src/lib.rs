//! What a snapshot is on disk. Bytes in, valid types out; no files, no clocks, nothing of ours.
//!
//! ```text
//! manifest (JSON)                 names everything else by digest
//!   ├─ machine  ─> section file   vCPUs, clock, devices: named, versioned, checked sections
//!   ├─ memory[] ─> layer files    newest first: which pages, and their bytes
//!   └─ disk[]   ─> layer files    newest first: which blocks, and their bytes
//! ```
//!
//! A **section file** holds the saved state of parts that know nothing of each other:
//!
//! ```text
//!  0          8         10        12                      12 + 40 n
//!  +----------+---------+---------+-----------------------+------------------+
//!  | HATCHSEC | version | count n | n entries of 40 bytes | payloads, packed |
//!  +----------+---------+---------+-----------------------+------------------+
//!  entry: | name, 24 bytes, zero padded | version u16 | zero u16 | len u32 | crc32 u32 | zero u32 |
//! ```
//!
//! A **layer file** holds pages (of memory) or blocks (of a disk), 4096 bytes each, so placed that
//! runs of them can be mapped or read in one go:
//!
//! ```text
//!  0          8         12        16         24       28     32              4096-aligned
//!  +----------+---------+---------+----------+--------+------+----------------+-------------+
//!  | HATCHLYR | version | zero    | units in | extent | crc  | extents, 16    | data of the |
//!  |          | u32     | u32     | the whole| count n| 32   | bytes each     | data extents|
//!  +----------+---------+---------+----------+--------+------+----------------+-------------+
//!  extent: | first unit u64 | units u32 | 1 = data follows, 0 = all zeros, u32 |
//! ```
//!
//! Extents are sorted, do not touch unless their kinds differ, and lie within the whole. What no
//! extent names comes from the next older layer; in the oldest, it is zero. The checksum covers the
//! header before it and all extents. Checksums of the units may follow the data (see `sums`), for readers
//! of single units. All numbers are little-endian.
//!
//! A reader checks in this order, and allocates only after the first: limits, checksum, name,
//! version, value. It refuses what it does not know, by name.

#![forbid(unsafe_code)]

mod error;
mod layer;
mod limits;
mod manifest;
mod section;
mod sums;
mod tripwires;

pub use error::FormatError;
pub use layer::{Extent, LayerIndex, UNIT};
pub use limits::{MAX_EXTENTS, MAX_LAYERS, MAX_MANIFEST, MAX_SECTION, MAX_SECTIONS, MAX_UNITS};
pub use manifest::{BaseImage, BlobRef, Digest, GuestShape, MANIFEST_VERSION, Manifest};
pub use section::{SECTIONS_VERSION, Section, SectionFile, SectionName};
pub use sums::{LayerSums, unit_sum};

/// Version of the layer file's encoding.
pub const LAYER_VERSION: u32 = 1;

/// Feeds arbitrary bytes to every decoder. For fuzzers: must return, never panic.
pub fn fuzz_decode(bytes: &[u8]) {
    let _ = SectionFile::parse(bytes);
    let _ = LayerIndex::parse(bytes);
    let _ = Manifest::parse(bytes);
    if let Ok(index) = LayerIndex::new(8, [(0, 2, true)]) {
        let _ = LayerSums::parse(bytes, &index);
    }
}
