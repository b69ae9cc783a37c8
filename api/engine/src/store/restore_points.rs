//! Restore points that were used lately, kept ready in memory.

use crate::restore_point::RestorePoint;
use std::collections::VecDeque;
use std::sync::Arc;

/// So many of the last used are kept.
const KEPT: usize = 4;

/// The last used restore points, by whatever names them.
#[derive(Debug)]
pub struct RestorePointCache<K> {
    /// The last used first.
    recent: VecDeque<(K, Arc<RestorePoint>)>,
}

impl<K> Default for RestorePointCache<K> {
    fn default() -> Self {
        let recent = VecDeque::new();
        Self { recent }
    }
}

impl<K> RestorePointCache<K> {
    /// The one whose key `is` takes, if it was used lately.
    pub fn get(&mut self, is: impl Fn(&K) -> bool) -> Option<Arc<RestorePoint>> {
        let at = self.recent.iter().position(|(key, _)| is(key))?;
        let found = self.recent.remove(at)?;
        let restore_point = Arc::clone(&found.1);
        self.recent.push_front(found);
        Some(restore_point)
    }

    /// Keeps one; the one that was not used for the longest time goes.
    pub fn put(&mut self, key: K, restore_point: &Arc<RestorePoint>) {
        self.recent.push_front((key, Arc::clone(restore_point)));
        self.recent.truncate(KEPT);
    }

    /// Lets go of those whose key `is` takes.
    pub fn forget(&mut self, is: impl Fn(&K) -> bool) {
        self.recent.retain(|(key, _)| !is(key));
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        self.recent.clear();
    }
}
