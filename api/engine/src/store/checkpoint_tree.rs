//! The checkpoints of one sandbox: a tree, in memory and as records in the store.
//!
//! ```text
//! beginning ─┬─ c1 ─┬─ c2 ─── c4
//!            │      └─ c3 <── the sandbox descends from it
//!            └─ c5
//! ```
//!
//! Each stored record names all its ancestors. Who takes a checkpoint out of the tree changes no
//! other record: its children are then the children of their next ancestor that is there.

use crate::error::{EngineError, chain};
use crate::ids;
use crate::restore_point::RestorePoint;
use crate::store::checkpoint_node::{CheckpointFacts, CheckpointNode, MAX_NAME};
use crate::store::checkpoint_record::{
    self, CheckpointRecordError, FIRST, PendingCheckpoint, decode,
};
use crate::store::restore_points::RestorePointCache;
use crate::store::vault::StoredHeader;
use jiff::Timestamp;
use snapshot_store::SnapshotId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A checkpoint that is about to be taken; no other gets its name. Dropped, its place is free
/// again.
#[derive(Debug)]
pub struct CheckpointReservation {
    tree: Arc<CheckpointTree>,
    id: String,
    name: Option<String>,
}

/// A checkpoint as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointView {
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
pub struct CheckpointListing {
    /// The oldest first: parents before their children.
    pub checkpoints: Vec<CheckpointView>,
    /// The one that the sandbox descends from; `None`: its beginning.
    pub current: Option<String>,
    /// Bytes in the store, each counted once.
    pub bytes: u64,
}

/// What a tree holds.
#[derive(Debug, Default)]
struct TreeState {
    /// In the order in which they were taken, with the parents' ids.
    nodes: Vec<(Arc<CheckpointNode>, Option<String>)>,
    current: Option<String>,
    /// About to be taken: their ids and names.
    coming: Vec<(String, Option<String>)>,
    ready: RestorePointCache<String>,
    first: Option<Arc<CheckpointNode>>,
    closed: bool,
}

/// A sandbox's checkpoints. It has one tree as long as it lives, whatever machine it has.
#[derive(Debug, Default)]
pub struct CheckpointTree(Mutex<TreeState>);

impl CheckpointTree {
    /// A place for a checkpoint that is about to be taken, of at most `max`.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for a bad name, [`EngineError::Conflict`] for one that is taken,
    /// [`EngineError::TooManyCheckpoints`].
    pub fn reserve(
        self: &Arc<Self>,
        name: Option<&str>,
        max: usize,
    ) -> Result<CheckpointReservation, EngineError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if let Some(name) = name
            && !((1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good))
        {
            let name: String = name.chars().take(MAX_NAME).collect();
            return Err(EngineError::Invalid(format!(
                "The name {name:?} is not 1 to {MAX_NAME} characters of [A-Za-z0-9_.-]"
            )));
        }
        let id = ids::random_name(11)
            .map_err(|error| EngineError::PauseFailed(format!("No random bytes: {error}")))?;
        let id = format!("c{id}");
        let mut inner = self.lock();
        if inner.nodes.len() + inner.coming.len() >= max {
            return Err(EngineError::TooManyCheckpoints { max });
        }
        let taken = |name: &str| {
            let coming = inner.coming.iter();
            let mut coming = coming.map(|(id, name)| (id.as_str(), name.as_deref()));
            coming.any(|(id, other)| id == name || other == Some(name))
                || inner.find(name).is_some()
        };
        if let Some(name) = name.filter(|name| taken(name)) {
            return Err(EngineError::Conflict(format!(
                "The sandbox has a checkpoint {name:?} already: delete it or take another name"
            )));
        }
        let name = name.map(str::to_owned);
        inner.coming.push((id.clone(), name.clone()));
        Ok(CheckpointReservation {
            tree: Arc::clone(self),
            id,
            name,
        })
    }

    /// A checkpoint by its id, or else by its name.
    #[must_use]
    pub fn find(&self, word: &str) -> Option<Arc<CheckpointNode>> {
        self.lock().find(word)
    }

    /// Takes a checkpoint out; its children become its parent's. `None` if it is not there.
    pub fn remove(&self, id: &str) -> Option<Arc<CheckpointNode>> {
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
        inner.ready.forget(|own| own == id);
        Some(node)
    }

    /// A checkpoint and its ancestors, for [`CheckpointTree::set_current`]; none for `None`.
    #[must_use]
    pub fn ancestry(&self, id: Option<&str>) -> Vec<String> {
        self.lock().ancestry(id)
    }

    /// The checkpoint that the sandbox descends from, and its ancestors.
    #[must_use]
    pub fn current(&self) -> Vec<String> {
        let inner = self.lock();
        inner.ancestry(inner.current.as_deref())
    }

    /// The sandbox descends from the first of these that is there from now on, or else from its
    /// beginning.
    pub fn set_current(&self, ancestors: &[String]) {
        let mut inner = self.lock();
        inner.current = inner.living(ancestors);
    }

    /// All of it.
    #[must_use]
    pub fn listing(&self) -> CheckpointListing {
        let inner = self.lock();
        let seen = |(node, parent): &(Arc<CheckpointNode>, Option<String>)| CheckpointView {
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
        CheckpointListing {
            checkpoints: inner.nodes.iter().map(seen).collect(),
            current: inner.current.clone(),
            bytes: once.values().sum(),
        }
    }

    /// What sandboxes that begin at a checkpoint begin with, if one did lately.
    #[must_use]
    pub fn ready(&self, id: &str) -> Option<Arc<RestorePoint>> {
        self.lock().ready.get(|own| own == id)
    }

    /// Keeps what sandboxes that begin at a checkpoint begin with, while it is in the tree.
    pub fn keep_ready(&self, node: &CheckpointNode, restore_point: &Arc<RestorePoint>) {
        let mut inner = self.lock();
        if inner.find(&node.id).is_some() {
            inner.ready.put(node.id.clone(), restore_point);
        }
    }

    /// Lets go of what is ready: the sandbox sleeps.
    pub fn rest(&self) {
        self.lock().ready.clear();
    }

    /// The restore point at which the sandbox began, if that is stored.
    #[must_use]
    pub fn first(&self) -> Option<Arc<CheckpointNode>> {
        self.lock().first.clone()
    }

    /// Notes the restore point at which the sandbox began. False if the sandbox has ended.
    pub fn note_first(&self, node: CheckpointNode) -> bool {
        let mut inner = self.lock();
        if !inner.closed {
            inner.first = Some(Arc::new(node));
        }
        !inner.closed
    }

    /// The sandbox has ended: nothing is added from now on. What is stored of it.
    pub fn close(&self) -> Vec<SnapshotId> {
        let closed = TreeState {
            closed: true,
            ..TreeState::default()
        };
        let mut inner = std::mem::replace(&mut *self.lock(), closed);
        let nodes = inner.nodes.drain(..).map(|(node, _)| node);
        let all = nodes.chain(inner.first.take());
        all.map(|node| node.stored.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, TreeState> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TreeState {
    fn find(&self, word: &str) -> Option<Arc<CheckpointNode>> {
        let nodes = || self.nodes.iter().map(|(node, _)| node);
        let by_id = nodes().find(|node| node.id == word);
        let found = by_id.or_else(|| nodes().find(|node| node.name.as_deref() == Some(word)));
        found.cloned()
    }

    fn ancestry(&self, id: Option<&str>) -> Vec<String> {
        let mut ancestors: Vec<String> = Vec::new();
        let mut next = id;
        // No longer than the tree is large, whatever was read from the disk.
        for _ in &self.nodes {
            let found = self.nodes.iter().find(|(node, _)| Some(&*node.id) == next);
            let Some((node, parent)) = found else { break };
            ancestors.push(node.id.clone());
            next = parent.as_deref();
        }
        ancestors
    }

    fn living(&self, ancestors: &[String]) -> Option<String> {
        ancestors
            .iter()
            .find(|id| self.nodes.iter().any(|(node, _)| node.id == **id))
            .cloned()
    }
}

impl CheckpointReservation {
    /// The name in the store, and the record, of the checkpoint that takes this place.
    ///
    /// # Errors
    /// When they do not encode.
    pub fn record(
        &self,
        sandbox_id: &str,
        taken: CheckpointFacts,
    ) -> Result<PendingCheckpoint, CheckpointRecordError> {
        let ancestors = self.tree.current();
        checkpoint_record::pending(sandbox_id, (&self.id, self.name.clone()), ancestors, taken)
    }

    /// The checkpoint is stored: it takes its place, and the sandbox descends from it. None if the
    /// sandbox has ended: then what is stored is the caller's to remove.
    pub fn fill(self, node: CheckpointNode) -> Option<CheckpointView> {
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

impl Drop for CheckpointReservation {
    fn drop(&mut self) {
        self.tree.lock().coming.retain(|(id, _)| *id != self.id);
    }
}

/// The trees that these stored records make, by the sandboxes' ids. What cannot be read is logged
/// and left alone.
#[must_use]
pub fn trees(headers: Vec<StoredHeader>) -> BTreeMap<String, CheckpointTree> {
    let mut found: BTreeMap<String, Vec<(CheckpointNode, Vec<String>)>> = BTreeMap::new();
    for header in headers {
        match decode(&header) {
            Ok((sandbox_id, node, ancestors)) => {
                found.entry(sandbox_id).or_default().push((node, ancestors));
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(snapshot = %header.id, error, "a checkpoint is not there");
            }
        }
    }
    let tree = |(id, nodes)| (id, grow(nodes));
    found.into_iter().map(tree).collect()
}

fn grow(mut nodes: Vec<(CheckpointNode, Vec<String>)>) -> CheckpointTree {
    nodes.sort_by_key(|(node, _)| node.created_at);
    let ids: BTreeSet<String> = nodes.iter().map(|(node, _)| node.id.clone()).collect();
    let mut inner = TreeState::default();
    for (node, ancestors) in nodes {
        let node = Arc::new(node);
        match &*node.id {
            FIRST => inner.first = Some(node),
            _ => {
                let parent = ancestors.into_iter().find(|id| ids.contains(id));
                inner.nodes.push((node, parent));
            }
        }
    }
    CheckpointTree(Mutex::new(inner))
}

#[cfg(test)]
mod test;
