//! The largest of everything, checked before anything is allocated.

/// Most bytes of a manifest.
pub const MAX_MANIFEST: usize = 64 * 1024;
/// Most sections of a section file.
pub const MAX_SECTIONS: usize = 64;
/// Most bytes of one section.
pub const MAX_SECTION: usize = 4 * 1024 * 1024;
/// Most layers of one chain.
pub const MAX_LAYERS: usize = 64;
/// Most units of a layer: 16 TiB.
pub const MAX_UNITS: u64 = 1 << 32;
/// Most extents of a layer.
pub const MAX_EXTENTS: usize = 1 << 22;
