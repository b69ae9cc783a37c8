//! What the store does with folders.

use crate::error::{StoreError, io as failed};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The paths of what is in a folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    read().map_err(failed("Listing", folder))
}

/// A path in `tmp` that nobody else has.
pub(crate) fn fresh(tmp: &Path) -> Result<PathBuf, StoreError> {
    let random = getrandom::u64().map_err(|e| {
        let source = io::Error::other(e.to_string());
        StoreError::Io {
            action: "Choosing a name in",
            path: tmp.to_owned(),
            source,
        }
    })?;
    Ok(tmp.join(format!("{random:016x}")))
}

/// Makes renames in `folder` durable.
pub(crate) fn sync(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(failed("Making durable", folder))
}
