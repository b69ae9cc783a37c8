//! What a snapshot is on disk. Bytes in, valid types out; no files, no clocks, nothing of ours.
//!
//! ```text
//! manifest (JSON)                 names everything else by digest
//!   ├─ machine  ─> section file   vCPUs, clock, devices: named, versioned, checked sections
//!   ├─ memory[] ─> layer files    newest first: which pages, and their bytes
//!   └─ disk[]   ─> layer files    newest first: which blocks, and their bytes
//! ```
//!
//! `snapshot/FORMAT.md` draws every file, with limits and versions. All numbers are little-endian.
//!
//! A reader checks in this order: kind and version; limits, before it allocates; checksums; values.
//! It refuses what it does not know, by name.
//!
//! ```
//! use snapshot_format::{Section, SectionFile, SectionName};
//!
//! let name = SectionName::new("clock")?;
//! let section = Section { name, version: 1, payload: b"tick" };
//! let bytes = SectionFile::encode(&[section])?;
//! assert_eq!(SectionFile::parse(&bytes)?.get("clock", 1)?, b"tick");
//! assert!(SectionFile::parse(&bytes[..bytes.len() - 1]).is_err(), "a damaged file is refused");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod error;
pub mod fuzz;
mod layer;
mod limits;
mod manifest;
mod section;
mod sums;
mod tripwires;

pub use error::FormatError;
pub use layer::{Extent, LAYER_VERSION, LayerIndex, UNIT};
pub use limits::{MAX_EXTENTS, MAX_LAYERS, MAX_MANIFEST, MAX_SECTION, MAX_SECTIONS, MAX_UNITS};
pub use manifest::{BaseImage, BlobRef, Digest, GuestShape, MANIFEST_VERSION, Manifest};
pub use section::{SECTIONS_VERSION, Section, SectionFile, SectionName};
pub use sums::{LayerSums, unit_sum};
