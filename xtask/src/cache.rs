//! The content-addressed cache for things that take minutes to build.
//!
//! An entry is a folder `<cache>/<kind>/<key>/`; the key is a hash over everything the result
//! depends on, so an entry is never changed and never stale. It is built in a temporary folder
//! beside it and renamed into place, so a killed build leaves nothing half-made.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The cache's root: `$HATCHERY_CACHE`, else `~/.cache/hatchery`.
pub(crate) fn root() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("HATCHERY_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let home = std::env::var_os("HOME").context("Neither HATCHERY_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/hatchery"))
}

/// A short key over the given inputs, each counted with its length.
pub(crate) fn key<'a>(inputs: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update(input.len().to_string());
        hash.update([0]);
        hash.update(input);
    }
    hex::encode(&hash.finalize()[..8])
}

/// The folder of `kind`/`key`, built by `build` (into the folder it is given) if it is not there.
pub(crate) fn entry(
    kind: &str,
    key: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let dir = root()?.join(kind);
    let done = dir.join(key);
    if done.is_dir() {
        return Ok(done);
    }
    let partial = dir.join(format!(".{key}.{}", std::process::id()));
    std::fs::create_dir_all(&partial).with_context(|| format!("Creating {}", partial.display()))?;
    let built = build(&partial).and_then(|()| match std::fs::rename(&partial, &done) {
        Err(_) if done.is_dir() => Ok(()), // somebody else was faster
        other => other.with_context(|| format!("Moving a build to {}", done.display())),
    });
    if built.is_err() || partial.exists() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    built.map(|()| done)
}
