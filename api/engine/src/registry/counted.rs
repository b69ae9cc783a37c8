//! A table whose entries are counted, all together and for each owner, as they come and go: nobody
//! has to count them anew, and no count can be forgotten.

use crate::owner::OwnerId;
use std::collections::HashMap;

/// How many of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StateCounts {
    /// That have a machine, or will.
    pub(super) alive: usize,
    /// That are stored, or about to be: a sandbox that is being paused is both.
    pub(super) stored: usize,
}

/// What is counted.
pub(super) trait Counted {
    /// For whom; `None`: only among all.
    fn owner(&self) -> Option<&OwnerId>;
    /// As what: none or one of each.
    fn counts(&self) -> StateCounts;
}

/// Entries by id.
#[derive(Debug)]
pub(super) struct CountedTable<E> {
    entries: HashMap<String, E>,
    all: StateCounts,
    /// Owners that have none are not in it.
    owners: HashMap<OwnerId, StateCounts>,
}

impl<E> Default for CountedTable<E> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            all: StateCounts::default(),
            owners: HashMap::new(),
        }
    }
}

impl<E: Counted> CountedTable<E> {
    pub(super) fn get(&self, id: &str) -> Option<&E> {
        self.entries.get(id)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &E> {
        self.entries.values()
    }

    /// Puts an entry in the place of what is there under this id.
    pub(super) fn insert(&mut self, id: String, entry: E) {
        self.count(&entry, |count, by| *count += by);
        if let Some(old) = self.entries.insert(id, entry) {
            self.uncount(&old);
        }
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<E> {
        let old = self.entries.remove(id)?;
        self.uncount(&old);
        Some(old)
    }

    /// Of all together.
    pub(super) const fn all(&self) -> StateCounts {
        self.all
    }

    /// Of one owner.
    pub(super) fn of(&self, owner: &OwnerId) -> StateCounts {
        self.owners.get(owner).copied().unwrap_or_default()
    }

    fn uncount(&mut self, entry: &E) {
        // What is taken off was counted when it came.
        self.count(entry, |count, by| *count = count.saturating_sub(by));
        if let Some(owner) = entry.owner()
            && self.of(owner) == StateCounts::default()
        {
            self.owners.remove(owner);
        }
    }

    fn count(&mut self, entry: &E, change: impl Fn(&mut usize, usize)) {
        let by = entry.counts();
        if by == StateCounts::default() {
            return;
        }
        let change = |counts: &mut StateCounts| {
            change(&mut counts.alive, by.alive);
            change(&mut counts.stored, by.stored);
        };
        change(&mut self.all);
        if let Some(owner) = entry.owner() {
            // Looked up first: most often it is there, and its name need not be cloned.
            match self.owners.get_mut(owner) {
                Some(counts) => change(counts),
                None => change(self.owners.entry(owner.clone()).or_default()),
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Entry(Option<OwnerId>, StateCounts);

    impl Counted for Entry {
        fn owner(&self) -> Option<&OwnerId> {
            self.0.as_ref()
        }

        fn counts(&self) -> StateCounts {
            self.1
        }
    }

    fn sum<'a>(entries: impl Iterator<Item = &'a Entry>) -> StateCounts {
        entries.fold(StateCounts::default(), |sum, Entry(_, own)| StateCounts {
            alive: sum.alive + own.alive,
            stored: sum.stored + own.stored,
        })
    }

    fn owner(n: usize) -> Option<OwnerId> {
        OwnerId::named(["a", "b", "c"].get(n)?)
    }

    proptest! {
        /// Whatever comes, changes its state or goes, in whatever order, also what is not there:
        /// the counts are those of what is in the table.
        #[test]
        fn counts_are_of_what_is_there(
            steps in proptest::collection::vec((0_usize..6, 0_usize..4, 0_usize..5), 0..120),
        ) {
            let states = [(1, 0), (1, 1), (0, 1), (0, 0)];
            let mut table = CountedTable::default();
            for (id, whose, step) in steps {
                let id = id.to_string();
                match states.get(step) {
                    None => drop(table.remove(&id)),
                    Some(&(alive, stored)) => {
                        // A sandbox's owner is its for good; a restart finds it anew.
                        let known = table.get(&id).map(|entry: &Entry| entry.0.clone());
                        let whose = known.unwrap_or_else(|| owner(whose));
                        table.insert(id, Entry(whose, StateCounts { alive, stored }));
                    }
                }
                prop_assert_eq!(table.all(), sum(table.values()));
                for n in 0..3 {
                    let whose = owner(n);
                    let own = table.values().filter(|entry| entry.0 == whose);
                    prop_assert_eq!(table.of(whose.as_ref().unwrap()), sum(own));
                }
                let counted = table.owners.values();
                prop_assert!(counted.into_iter().all(|own| *own != StateCounts::default()));
            }
            let ids: Vec<_> = table.entries.keys().cloned().collect();
            for id in ids {
                table.remove(&id);
            }
            prop_assert_eq!(table.all(), StateCounts::default());
            prop_assert!(table.owners.is_empty());
        }
    }
}
