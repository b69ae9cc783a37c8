//! A table of flows, found by their key or by their place.

use crate::poller::{FlowId, GENERATIONS};
use std::collections::HashMap;
use std::hash::Hash;

#[derive(Debug)]
struct FlowSlot<K, T> {
    generation: u32,
    flow: Option<(K, T)>,
}

/// Flows of type `T`. How many there may be is its user's to say.
#[derive(Debug)]
pub(crate) struct FlowTable<K, T> {
    slots: Vec<FlowSlot<K, T>>,
    free: Vec<u32>,
    by_key: HashMap<K, FlowId>,
}

impl<K: Copy + Eq + Hash, T> FlowTable<K, T> {
    /// An empty one, without memory.
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The place that the next one gets.
    pub(crate) fn next_id(&self) -> FlowId {
        let end = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let index = self.free.last().copied().unwrap_or(end);
        let generation = self
            .slots
            .get(index as usize)
            .map_or(0, |slot| slot.generation);
        FlowId { index, generation }
    }

    /// Puts one in, which gets [`next_id`](Self::next_id). One with the same key is removed.
    pub(crate) fn insert(&mut self, key: K, flow: T) -> FlowId {
        if let Some(old) = self.find(&key) {
            self.remove(old);
        }
        let id = self.next_id();
        let slot = FlowSlot {
            generation: id.generation,
            flow: Some((key, flow)),
        };
        match self.free.pop() {
            Some(index) => self.slots[index as usize] = slot,
            None => self.slots.push(slot),
        }
        self.by_key.insert(key, id);
        id
    }

    /// The one with this key.
    pub(crate) fn find(&self, key: &K) -> Option<FlowId> {
        self.by_key.get(key).copied()
    }

    /// The one at this place.
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        match &mut slot.flow {
            Some((_, flow)) if slot.generation == id.generation => Some(flow),
            _ => None,
        }
    }

    /// Takes out the one at this place.
    pub(crate) fn remove(&mut self, id: FlowId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let (key, flow) = slot.flow.take()?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        self.free.push(id.index);
        self.by_key.remove(&key);
        Some(flow)
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, &K, &T)> {
        self.slots.iter().zip(0..).filter_map(|(slot, index)| {
            let (key, flow) = slot.flow.as_ref()?;
            let generation = slot.generation;
            Some((FlowId { index, generation }, key, flow))
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_place_that_was_given_up_is_not_found_by_its_old_id() {
        let mut table = FlowTable::new();
        let next = table.next_id();
        let first = table.insert('a', 1);
        assert_eq!(next, first);
        table.insert('b', 2);
        assert_eq!(table.remove(first), Some(1));
        let next = table.next_id();
        let third = table.insert('c', 3);
        assert_eq!((next, third.index), (third, first.index));
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get_mut(third), Some(&mut 3));
        assert_eq!((table.find(&'a'), table.len()), (None, 2));
        let again = table.insert('c', 4);
        assert_ne!(again, third);
        assert_eq!((table.len(), table.iter().count()), (2, 2));
    }
}
