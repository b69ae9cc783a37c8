//! The checkpoints of one sandbox: a tree of its moments, in memory and as records in the store.
//!
//! ```text
//! beginning ─┬─ c1 ─┬─ c2 ─── c4
//!            │      └─ c3 <── the sandbox descends from it
//!            └─ c5
//! ```
//!
//! Each stored record names all its ancestors. Who takes a checkpoint out of the tree changes no other
//! record: its children are then the children of their next ancestor that is there.

mod record;

pub use record::{Coming, RecordError, first, owner, readable, trees};

use crate::envd::KeptProcess;
use crate::error::ApiError;
use crate::ids;
use crate::registry::Start;
use crate::sandbox::Kept;
use jiff::Timestamp;
use snapshot_format::BlobRef;
use snapshot_store::SnapshotId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names of checkpoints in the store begin with it, followed by the sandbox's id.
pub const PREFIX: &str = "checkpoint-";
/// So many that the sandbox was last put back to stay ready.
const READY: usize = 4;
/// Most characters of a name.
const MAX_NAME: usize = 64;
/// One stored moment of a sandbox.
#[derive(Debug)]
pub struct Node {
    /// `c` and 11 characters of `[a-z0-9]`.
    pub id: String,
    /// Its name in the store.
    pub stored: SnapshotId,
    /// The processes that clients had started.
    pub processes: Vec<KeptProcess>,
    /// What is kept of it.
    pub kept: Kept,
    name: Option<String>,
    created_at: Timestamp,
    pages: u64,
    blocks: u64,
    /// What is stored for it and not for its template.
    blobs: Vec<BlobRef>,
}

/// A checkpoint that is about to be taken; no other gets its name. Dropped, its place is free again.
#[derive(Debug)]
pub struct Room {
    tree: Arc<Tree>,
    id: String,
    name: Option<String>,
}

/// What has been saved at a checkpoint.
#[derive(Debug)]
pub struct Taken {
    /// What is kept of it.
    pub kept: Kept,
    /// The processes that clients had started.
    pub processes: Vec<KeptProcess>,
    /// Pages of memory that differ from what the sandbox began with, 4 KiB each.
    pub pages: u64,
    /// Blocks of the disk that differ from the template's, 4 KiB each.
    pub blocks: u64,
}

/// A checkpoint as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// What its creator called it.
    pub name: Option<String>,
    /// The checkpoint it descends from; `None`: the sandbox's beginning.
    pub parent: Option<String>,
    /// When it was taken.
    pub created_at: Timestamp,
    /// Pages of memory.
    pub pages: u64,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Bytes in the store; those that it shares with other checkpoints are counted for each.
    pub bytes: u64,
}

/// All checkpoints of a sandbox as clients see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The oldest first: parents before their children.
    pub checkpoints: Vec<Seen>,
    /// The one that the sandbox descends from; `None`: its beginning.
    pub current: Option<String>,
    /// Bytes in the store, each counted once.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Inner {
    /// In the order in which they were taken, with the parents' ids.
    nodes: Vec<(Arc<Node>, Option<String>)>,
    current: Option<String>,
    /// About to be taken: their ids and names.
    coming: Vec<(String, Option<String>)>,
    ready: VecDeque<(String, Arc<Start>)>,
    first: Option<Arc<Node>>,
    closed: bool,
}

/// A sandbox's checkpoints. It has one tree as long as it lives, whatever machine it has.
#[derive(Debug, Default)]
pub struct Tree(Mutex<Inner>);

impl Tree {
    /// A place for a checkpoint that is about to be taken, of at most `max`.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for a bad name, [`ApiError::Conflict`] for one that is taken,
    /// [`ApiError::TooManyCheckpoints`].
    pub fn reserve(self: &Arc<Self>, name: Option<&str>, max: usize) -> Result<Room, ApiError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if let Some(name) = name
            && !((1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good))
        {
            let name: String = name.chars().take(MAX_NAME).collect();
            return Err(ApiError::Invalid(format!(
                "The name {name:?} is not 1 to {MAX_NAME} characters of [A-Za-z0-9_.-]"
            )));
        }
        let id = ids::random_name(11)
            .map_err(|error| ApiError::PauseFailed(format!("No random bytes: {error}")))?;
        let id = format!("c{id}");
        let mut inner = self.lock();
        if inner.nodes.len() + inner.coming.len() >= max {
            return Err(ApiError::TooManyCheckpoints { max });
        }
        let taken = |name: &str| {
            let coming = inner.coming.iter();
            let mut coming = coming.map(|(id, name)| (id.as_str(), name.as_deref()));
            coming.any(|(id, other)| id == name || other == Some(name))
                || inner.find(name).is_some()
        };
        if let Some(name) = name.filter(|name| taken(name)) {
            return Err(ApiError::Conflict(format!(
                "The sandbox has a checkpoint {name:?} already: delete it or take another name"
            )));
        }
        let name = name.map(str::to_owned);
        inner.coming.push((id.clone(), name.clone()));
        Ok(Room {
            tree: Arc::clone(self),
            id,
            name,
        })
    }

    /// A checkpoint by its id, or else by its name.
    #[must_use]
    pub fn find(&self, word: &str) -> Option<Arc<Node>> {
        self.lock().find(word)
    }

    /// Takes a checkpoint out; its children become its parent's. `None` if it is not there.
    pub fn remove(&self, id: &str) -> Option<Arc<Node>> {
        let mut inner = self.lock();
        let at = inner.nodes.iter().position(|(node, _)| node.id == id)?;
        let (node, parent) = inner.nodes.remove(at);
        let parents = inner.nodes.iter_mut().map(|(_, parent)| parent);
        for own in parents.filter(|own| own.as_deref() == Some(id)) {
            own.clone_from(&parent);
        }
        if inner.current.as_deref() == Some(id) {
            inner.current = parent;
        }
        inner.ready.retain(|(own, _)| own != id);
        Some(node)
    }

    /// A checkpoint and its ancestors, for [`Tree::stand`]; none for `None`.
    #[must_use]
    pub fn line(&self, id: Option<&str>) -> Vec<String> {
        self.lock().line(id)
    }

    /// The checkpoint that the sandbox descends from, and its ancestors.
    #[must_use]
    pub fn current(&self) -> Vec<String> {
        let inner = self.lock();
        inner.line(inner.current.as_deref())
    }

    /// The sandbox descends from the first of these that is there from now on, or else from its
    /// beginning.
    pub fn stand(&self, line: &[String]) {
        let mut inner = self.lock();
        inner.current = inner.living(line);
    }

    /// All of it.
    #[must_use]
    pub fn listing(&self) -> Listing {
        let inner = self.lock();
        let seen = |(node, parent): &(Arc<Node>, Option<String>)| Seen {
            id: node.id.clone(),
            name: node.name.clone(),
            parent: parent.clone(),
            created_at: node.created_at,
            pages: node.pages,
            blocks: node.blocks,
            bytes: node.blobs.iter().map(|blob| blob.size).sum(),
        };
        let blobs = inner.nodes.iter().flat_map(|(node, _)| &node.blobs);
        let once: BTreeMap<_, _> = blobs.map(|blob| (blob.digest, blob.size)).collect();
        Listing {
            checkpoints: inner.nodes.iter().map(seen).collect(),
            current: inner.current.clone(),
            bytes: once.values().sum(),
        }
    }

    /// What sandboxes that begin at a checkpoint begin with, if one did lately.
    #[must_use]
    pub fn ready(&self, id: &str) -> Option<Arc<Start>> {
        let mut inner = self.lock();
        let at = inner.ready.iter().position(|(own, _)| own == id)?;
        let found = inner.ready.remove(at)?;
        let start = Arc::clone(&found.1);
        inner.ready.push_front(found);
        Some(start)
    }

    /// Keeps what sandboxes that begin at a checkpoint begin with, while it is in the tree.
    pub fn keep_ready(&self, node: &Node, start: &Arc<Start>) {
        let mut inner = self.lock();
        if inner.find(&node.id).is_some() {
            inner.ready.push_front((node.id.clone(), Arc::clone(start)));
            inner.ready.truncate(READY);
        }
    }

    /// Lets go of what is ready: the sandbox sleeps.
    pub fn rest(&self) {
        self.lock().ready.clear();
    }

    /// The moment at which the sandbox began, if that is stored.
    #[must_use]
    pub fn first(&self) -> Option<Arc<Node>> {
        self.lock().first.clone()
    }

    /// Notes the moment at which the sandbox began. False if the sandbox has ended.
    pub fn note_first(&self, node: Node) -> bool {
        let mut inner = self.lock();
        if !inner.closed {
            inner.first = Some(Arc::new(node));
        }
        !inner.closed
    }

    /// The sandbox has ended: nothing is added from now on. What is stored of it.
    pub fn close(&self) -> Vec<SnapshotId> {
        let closed = Inner {
            closed: true,
            ..Inner::default()
        };
        let mut inner = std::mem::replace(&mut *self.lock(), closed);
        let nodes = inner.nodes.drain(..).map(|(node, _)| node);
        let all = nodes.chain(inner.first.take());
        all.map(|node| node.stored.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn find(&self, word: &str) -> Option<Arc<Node>> {
        let nodes = || self.nodes.iter().map(|(node, _)| node);
        let by_id = nodes().find(|node| node.id == word);
        let found = by_id.or_else(|| nodes().find(|node| node.name.as_deref() == Some(word)));
        found.cloned()
    }

    fn line(&self, id: Option<&str>) -> Vec<String> {
        let mut line: Vec<String> = Vec::new();
        let mut next = id;
        // No longer than the tree is large, whatever was read from the disk.
        for _ in &self.nodes {
            let found = self.nodes.iter().find(|(node, _)| Some(&*node.id) == next);
            let Some((node, parent)) = found else { break };
            line.push(node.id.clone());
            next = parent.as_deref();
        }
        line
    }

    fn living(&self, line: &[String]) -> Option<String> {
        line.iter()
            .find(|id| self.nodes.iter().any(|(node, _)| node.id == **id))
            .cloned()
    }
}

impl Room {
    /// The name in the store, and the record, of the checkpoint that takes this place.
    ///
    /// # Errors
    /// When they do not encode.
    pub fn record(&self, sandbox_id: &str, taken: Taken) -> Result<Coming, RecordError> {
        let ancestors = self.tree.current();
        record::coming(sandbox_id, (&self.id, self.name.clone()), ancestors, taken)
    }

    /// The checkpoint is stored: it takes its place, and the sandbox descends from it. False if the
    /// sandbox has ended; then what is stored is the caller's to remove.
    pub fn fill(self, node: Node) -> Option<Seen> {
        let id = node.id.clone();
        {
            let mut inner = self.tree.lock();
            if inner.closed {
                return None;
            }
            let parent = inner.current.replace(id.clone());
            inner.nodes.push((Arc::new(node), parent));
        }
        let listing = self.tree.listing();
        listing.checkpoints.into_iter().find(|seen| seen.id == id)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.tree.lock().coming.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
#[path = "checkpoints_test.rs"]
mod test;
