//! The content-addressed cache for things that take minutes to build.
//!
//! An entry is a folder `<cache>/<kind>/<key>/`; the key is a hash over everything the result
//! depends on, so an entry is never changed and never stale. It is built in a temporary folder
//! beside it and renamed into place, so a killed build leaves nothing half-made.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
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
/// Another thread or process that wants the same waits for it.
pub(crate) fn entry(
    kind: &str,
    key: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    entry_in(&root()?.join(kind), key, build)
}

fn entry_in(dir: &Path, key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = dir.join(key);
    if done.is_dir() {
        return Ok(done);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("Creating {}", dir.display()))?;
    let turn = dir.join(format!(".{key}.lock"));
    let lock = || File::create(&turn).and_then(|file| file.lock().map(|()| file));
    let _turn = lock().with_context(|| format!("Locking {}", turn.display()))?;
    if done.is_dir() {
        return Ok(done);
    }
    let partial = dir.join(format!(".{key}.partial"));
    if partial.exists() {
        // A build that was killed.
        std::fs::remove_dir_all(&partial)
            .with_context(|| format!("Removing {}", partial.display()))?;
    }
    std::fs::create_dir(&partial).with_context(|| format!("Creating {}", partial.display()))?;
    let built = build(&partial).and_then(|()| {
        let moved = std::fs::rename(&partial, &done);
        moved.with_context(|| format!("Moving a build to {}", done.display()))
    });
    if built.is_err() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    built.map(|()| done)
}

#[cfg(test)]
mod test {
    use super::*;
    use anyhow::bail;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn an_entry_is_built_once_whoever_asks_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let (builds, together) = (AtomicU32::new(0), Barrier::new(4));
        let ask = || {
            together.wait();
            entry_in(dir.path(), "key", |partial| {
                builds.fetch_add(1, Ordering::SeqCst);
                Ok(std::fs::write(partial.join("made"), "")?)
            })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            for thread in threads {
                assert!(thread.join().unwrap().unwrap().join("made").exists());
            }
        });
        assert_eq!(builds.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_build_that_fails_or_is_killed_leaves_nothing_half_made() {
        let dir = tempfile::tempdir().unwrap();
        entry_in(dir.path(), "key", |_| bail!("no")).unwrap_err();
        let left = dir.path().join(".key.partial");
        assert!(!left.exists() && !dir.path().join("key").exists());
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("half"), "").unwrap();
        let made = entry_in(dir.path(), "key", |_| Ok(())).unwrap();
        assert!(made.is_dir() && !made.join("half").exists());
    }
}
