//! Which 4 KiB blocks of a disk are in its private layer. No I/O.
//!
//! A block lies at the same offset in the layer as on the disk. A block that is not in the layer
//! is the base image's, or zeros beyond the image's end.

/// Bytes of a block: the unit of the layer.
pub(crate) const BLOCK: u64 = 4096;

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Layer,
    Base,
    Zeros,
}

/// A stretch of the disk from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) source: Source,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// One bit per block.
#[derive(Debug)]
pub(crate) struct Map {
    words: Vec<u64>,
    base_len: u64,
    count: u64,
}

fn place(block: u64) -> (usize, u64) {
    (
        usize::try_from(block / 64).unwrap_or(usize::MAX),
        1 << (block % 64),
    )
}

impl Map {
    /// A disk of `size` bytes, a multiple of [`BLOCK`], over an image of `base_len` bytes, with an
    /// empty layer.
    pub(crate) fn new(size: u64, base_len: u64) -> Self {
        let words = usize::try_from((size / BLOCK).div_ceil(64)).unwrap_or(0);
        Self {
            words: vec![0; words],
            base_len,
            count: 0,
        }
    }

    pub(crate) fn contains(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Marks `blocks` as being in the layer.
    pub(crate) fn insert(&mut self, blocks: std::ops::Range<u64>) {
        for block in blocks {
            let (word, bit) = place(block);
            if let Some(word) = self.words.get_mut(word)
                && *word & bit == 0
            {
                *word |= bit;
                self.count += 1;
            }
        }
    }

    /// Blocks in the layer.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Where the byte at `offset` comes from, and how many bytes (at most `len`, not 0) from there
    /// on come from the same source.
    pub(crate) fn run(&self, offset: u64, len: u64) -> Run {
        let end = offset + len;
        let in_layer = self.contains(offset / BLOCK);
        let mut at = (offset / BLOCK + 1) * BLOCK;
        while at < end && self.contains(at / BLOCK) == in_layer {
            at += BLOCK;
        }
        let end = at.min(end);
        let (source, end) = match in_layer {
            true => (Source::Layer, end),
            false if offset >= self.base_len => (Source::Zeros, end),
            false => (Source::Base, end.min(self.base_len)),
        };
        Run {
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
            base_len in 0u64..200 * BLOCK,
            offset in 0u64..200 * BLOCK,
            len in 1u64..200 * BLOCK,
        ) {
            let len = len.min(200 * BLOCK - offset);
            let mut map = Map::new(200 * BLOCK, base_len);
            present.iter().for_each(|&b| map.insert(b..b + 1));
            prop_assert_eq!(map.count(), present.len() as u64);
            let source = |at: u64| match BTreeSet::contains(&present, &(at / BLOCK)) {
                true => Source::Layer,
                false if at < base_len => Source::Base,
                false => Source::Zeros,
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
        let mut map = Map::new(3 * BLOCK, 0);
        map.insert(0..u64::from(u16::MAX));
        assert!(map.contains(2) && !map.contains(u64::MAX));
    }
}
