//! Names of snapshots.

use crate::error::StoreError;
use std::fmt;

const MAX: usize = 64;

/// A snapshot's name in the store: 1 to 64 characters of `[a-z0-9-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(String);

impl SnapshotId {
    /// The name, if it is one.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub fn new(name: &str) -> Result<Self, StoreError> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > MAX || !name.bytes().all(good) {
            return Err(StoreError::Name(name.chars().take(MAX).collect()));
        }
        Ok(Self(name.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
