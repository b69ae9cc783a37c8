//! Snapshots on a disk.
//!
//! ```text
//! <root>/lock                 held by the one process that uses the store
//! <root>/blobs/<blake3>       bytes that never change, named by what they are
//! <root>/manifests/<id>       one snapshot each; naming a blob here keeps it
//! <root>/tmp/…                being written; emptied when the store is opened
//! ```
//!
//! **Publication is atomic.** Blobs are written to `tmp/`, made durable, and renamed to their
//! digest; the manifest, which names them, is made durable and renamed last. A crash leaves a whole
//! snapshot or none, and at worst blobs that nobody names, which the next collection removes.
//!
//! **A blob lives** while a manifest names it or somebody holds a [`BlobLease`] on it. Leases are
//! in memory: they end with the process, and the lock says that there is only one. Collection takes
//! the leases' own lock, so that a blob cannot gain its first lease while it is being removed.
//!
//! **A blob is trusted** when its bytes were hashed and had the digest that is its name: when it is
//! opened, or at most five minutes before (`known.rs`). Reading a manifest, listing and collecting
//! look at names and sizes only.
//!
//! Ids and digests are checked types: no name can lead out of the store.
//!
//! ```
//! use snapshot_store::SnapshotStore;
//! use std::io::{Read, Write};
//!
//! let folder = tempfile::tempdir()?;
//! let store = SnapshotStore::open(folder.path())?;
//! let mut blob = store.write_blob()?;
//! blob.write_all(b"what a machine was")?;
//! let (name, _lease) = blob.finish()?;
//! let mut text = String::new();
//! store.open_blob(&name)?.read_to_string(&mut text)?;
//! assert_eq!(text, "what a machine was");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod blob;
mod error;
mod flat;
mod folder;
mod id;
mod known;
mod lease;
mod store;

pub use blob::BlobWriter;
pub use error::StoreError;
pub use flat::{pack, unpack};
pub use id::SnapshotId;
pub use lease::BlobLease;
pub use store::{CollectedBlobs, SnapshotStore};
