//! Which 4 KiB blocks of a disk are in its private layer and its parent. No I/O.
//!
//! A block lies at the same offset in every file. Of a block, the layer's bytes count; if it is not
//! there the parent's; and if it is not there either the base image's, or zeros beyond its end.

use std::ops::Range;

/// Bytes of a block: the unit of the layer.
pub(crate) const BLOCK: u64 = 4096;

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockSource {
    Layer,
    Parent,
    Base,
    Zeros,
}

/// A stretch of the disk from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRun {
    pub(crate) source: BlockSource,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Which file of changes a block is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockHolder {
    Layer,
    Parent,
    Neither,
}

/// Two bits per block, those of the parent only if it has any.
#[derive(Clone, Debug)]
pub(crate) struct BlockMap {
    words: Vec<u64>,
    parent: Vec<u64>,
    blocks: u64,
    base_len: u64,
    count: u64,
}

fn place(block: u64) -> (usize, u64) {
    (
        usize::try_from(block / 64).unwrap_or(usize::MAX),
        1 << (block % 64),
    )
}

fn words(blocks: u64) -> Vec<u64> {
    vec![0; usize::try_from(blocks.div_ceil(64)).unwrap_or(0)]
}

/// Sets the bits of `blocks`, as far as there are words for them; how many were not set before.
fn fill(words: &mut [u64], blocks: Range<u64>) -> u64 {
    let (mut at, mut new) = (blocks.start, 0);
    while at < blocks.end {
        let bits = (64 - at % 64).min(blocks.end - at);
        let mask = (u64::MAX >> (64 - bits)) << (at % 64);
        let Some(word) = words.get_mut(place(at).0) else {
            break;
        };
        new += u64::from((mask & !*word).count_ones());
        *word |= mask;
        at += bits;
    }
    new
}

impl BlockMap {
    /// A disk of `size` bytes, a multiple of [`BLOCK`], over an image of `base_len` bytes, with an
    /// empty layer and no parent.
    pub(crate) fn new(size: u64, base_len: u64) -> Self {
        let blocks = size / BLOCK;
        Self {
            words: words(blocks),
            parent: Vec::new(),
            blocks,
            base_len,
            count: 0,
        }
    }

    /// The parent holds these blocks.
    pub(crate) fn set_parent(&mut self, runs: &[Range<u64>]) {
        if !runs.is_empty() {
            self.parent = words(self.blocks);
        }
        for run in runs {
            fill(&mut self.parent, run.clone());
        }
    }

    /// Marks `blocks` as being in the layer.
    pub(crate) fn insert(&mut self, blocks: Range<u64>) {
        self.count += fill(&mut self.words, blocks);
    }

    /// Blocks in the layer.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The blocks that layer and parent hold together, in order, as runs with gaps in between.
    pub(crate) fn held(&self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let mut start = None;
            while at < self.blocks {
                let (holder, len) = self.stretch(at, self.blocks - at);
                match (holder, start) {
                    (BlockHolder::Neither, None) => {}
                    (BlockHolder::Neither, Some(_)) => break,
                    (_, first) => start = first.or(Some(at)),
                }
                at += len;
            }
            start.map(|start| start..at)
        })
    }

    /// Who holds `block`, and how many blocks (at most `max`, not 0) from there on it holds.
    fn stretch(&self, block: u64, max: u64) -> (BlockHolder, u64) {
        let both = |block| {
            let word = place(block).0;
            let of = |words: &[u64]| words.get(word).copied().unwrap_or(0);
            (of(&self.words), of(&self.parent))
        };
        let (layer, parent) = both(block);
        let bit = place(block).1;
        let holder = if layer & bit != 0 {
            BlockHolder::Layer
        } else if parent & bit != 0 {
            BlockHolder::Parent
        } else {
            BlockHolder::Neither
        };
        let mut len = 0;
        while len < max {
            let at = block + len;
            let (layer, parent) = both(at);
            let alike = match holder {
                BlockHolder::Layer => layer,
                BlockHolder::Parent => parent & !layer,
                BlockHolder::Neither => !(layer | parent),
            };
            let run = u64::from((!(alike >> (at % 64))).trailing_zeros());
            len += run;
            if run < 64 - at % 64 {
                break;
            }
        }
        (holder, len.min(max))
    }

    /// Where the byte at `offset` comes from, and how many bytes (at most `len`, not 0) from there
    /// on come from the same source.
    pub(crate) fn run(&self, offset: u64, len: u64) -> BlockRun {
        let first = offset / BLOCK;
        let end = offset + len;
        let (holder, blocks) = self.stretch(first, end.div_ceil(BLOCK) - first);
        let end = end.min((first + blocks) * BLOCK);
        let (source, end) = match holder {
            BlockHolder::Layer => (BlockSource::Layer, end),
            BlockHolder::Parent => (BlockSource::Parent, end),
            BlockHolder::Neither if offset >= self.base_len => (BlockSource::Zeros, end),
            BlockHolder::Neither => (BlockSource::Base, end.min(self.base_len)),
        };
        BlockRun {
            source,
            offset,
            len: end - offset,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn runs_are_exact_and_as_long_as_possible(
            present in proptest::collection::btree_set(0u64..200, 0..100),
            below in proptest::collection::btree_set(0u64..200, 0..100),
            base_len in 0u64..200 * BLOCK,
            offset in 0u64..200 * BLOCK,
            len in 1u64..200 * BLOCK,
        ) {
            let len = len.min(200 * BLOCK - offset);
            let mut map = BlockMap::new(200 * BLOCK, base_len);
            present.iter().for_each(|&b| map.insert(b..b + 1));
            let runs: Vec<_> = below.iter().map(|&b| b..b + 1).collect();
            map.set_parent(&runs);
            prop_assert_eq!(map.count(), present.len() as u64);
            let held: Vec<u64> = map.held().flatten().collect();
            let runs: Vec<_> = map.held().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            let union: Vec<u64> = present.union(&below).copied().collect();
            prop_assert_eq!(held, union);
            let source = |at: u64| match BTreeSet::contains(&present, &(at / BLOCK)) {
                true => BlockSource::Layer,
                false if below.contains(&(at / BLOCK)) => BlockSource::Parent,
                false if at < base_len => BlockSource::Base,
                false => BlockSource::Zeros,
            };
            let run = map.run(offset, len);
            prop_assert!(run.len > 0 && run.len <= len);
            // The source changes only at block borders and at the image's end.
            for at in (offset..offset + run.len).step_by(512).chain([offset + run.len - 1]) {
                prop_assert_eq!(source(at), run.source);
            }
            prop_assert!(run.len == len || source(offset + run.len) != run.source);
        }
    }

    #[test]
    fn the_end_of_the_disk_is_the_end() {
        let mut map = BlockMap::new(3 * BLOCK, 0);
        map.insert(0..u64::from(u16::MAX));
        assert!(map.held().flatten().eq(0..3));
        assert_eq!(map.run(0, u64::MAX).source, BlockSource::Layer);
    }
}
