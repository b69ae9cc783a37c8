//! What loading a stored machine takes.

use snapshot_format::BlobRef;

/// Memory that is loaded with a stored machine, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadWeight {
    /// Its delta layer.
    delta: u64,
    /// The layers under it.
    base: u64,
    /// What of these is not in memory yet.
    missing: u64,
}

impl LoadWeight {
    /// Of layers, newest first; the base memory may be in use already, or the machine may leave all
    /// of them where they are.
    pub(super) fn of(layers: &[BlobRef], in_use: bool, cold: bool) -> Self {
        let size = |layers: &[BlobRef]| layers.iter().map(|layer| layer.size).sum();
        let (delta, base) = match layers {
            [delta, base @ ..] if !base.is_empty() && !cold => (delta.size, size(base)),
            all => (0, size(all)),
        };
        let missing = if in_use { 0 } else { base };
        Self {
            delta,
            base,
            missing,
        }
    }

    /// For the machine to go on: it has the delta layer as its own.
    #[must_use]
    pub const fn machine(self) -> u64 {
        self.delta + self.missing
    }

    /// For the base memory to be there, whoever begins over it.
    #[must_use]
    pub const fn base_memory(self) -> u64 {
        self.missing
    }

    /// For all of its memory to be merged to one of its own.
    #[must_use]
    pub const fn merged(self) -> u64 {
        let whole = if self.delta == 0 {
            0
        } else {
            self.delta + self.base
        };
        whole + self.missing
    }
}
