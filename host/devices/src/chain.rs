//! A descriptor chain as two lists of guest ranges, and bounded access to them.
//!
//! Nothing here trusts the guest: a chain is at most as long as its table, a loop in it ends there,
//! ranges are checked when they are used.

use crate::Memory;
use crate::ring::IoPiece;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

/// Most descriptors of one chain, indirect ones included.
const MAX_DESCRIPTORS: usize = 256;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestRange {
    pub(crate) addr: GuestAddress,
    pub(crate) len: usize,
}

/// A chain taken from a queue, to be given back by [`BufferChain::head`]. Reused from chain to
/// chain.
#[derive(Debug, Default)]
pub(crate) struct BufferChain {
    pub(crate) head: u16,
    /// Buffers the device may read, in order.
    pub(crate) readable: Vec<GuestRange>,
    /// Buffers the device may write, in order.
    pub(crate) writable: Vec<GuestRange>,
}

/// The chain breaks a rule of virtio 1.2 §2.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadChain;

impl BufferChain {
    /// Reads the descriptors of `chain`. Also on error `head` can be given back.
    pub(crate) fn load(&mut self, chain: DescriptorChain<&Memory>) -> Result<(), BadChain> {
        self.head = chain.head_index();
        self.readable.clear();
        self.writable.clear();
        for descriptor in chain {
            let Ok(len) = usize::try_from(descriptor.len()) else {
                return Err(BadChain);
            };
            let range = GuestRange {
                addr: descriptor.addr(),
                len,
            };
            if self.readable.len() + self.writable.len() == MAX_DESCRIPTORS {
                return Err(BadChain);
            }
            if descriptor.is_write_only() {
                self.writable.push(range);
            } else if self.writable.is_empty() {
                self.readable.push(range);
            } else {
                // §2.7.4.2: readable ones come first.
                return Err(BadChain);
            }
        }
        Ok(())
    }
}

/// Total bytes; the queue's code has checked that it fits 32 bits.
pub(crate) fn len(ranges: &[GuestRange]) -> usize {
    ranges.iter().map(|r| r.len).sum()
}

/// The parts of `ranges` between `from` and `from + count`; fewer if the ranges end before.
pub(crate) fn slice(
    ranges: &[GuestRange],
    from: usize,
    count: usize,
) -> impl Iterator<Item = GuestRange> + '_ {
    let (mut skip, mut left) = (from, count);
    ranges.iter().filter_map(move |range| {
        let skipped = skip.min(range.len);
        skip -= skipped;
        let len = (range.len - skipped).min(left);
        left -= len;
        let offset = u64::try_from(skipped).ok()?;
        let addr = GuestAddress(range.addr.0.checked_add(offset)?);
        (len > 0).then_some(GuestRange { addr, len })
    })
}

/// The same parts as pieces of a ring operation.
pub(crate) fn pieces(
    ranges: &[GuestRange],
    from: usize,
    count: usize,
) -> impl Iterator<Item = IoPiece> + '_ {
    slice(ranges, from, count).map(|GuestRange { addr, len }| IoPiece::Guest { addr, len })
}

/// Copies `out.len()` bytes at `from` out of the guest.
pub(crate) fn read(
    memory: &Memory,
    ranges: &[GuestRange],
    from: usize,
    out: &mut [u8],
) -> Result<(), BadChain> {
    let mut rest = out;
    for range in slice(ranges, from, rest.len()) {
        let (part, after) = rest.split_at_mut(range.len);
        memory.read_slice(part, range.addr).map_err(|_| BadChain)?;
        rest = after;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(BadChain)
    }
}

/// Copies `data` into the guest at `from`.
pub(crate) fn write(
    memory: &Memory,
    ranges: &[GuestRange],
    from: usize,
    data: &[u8],
) -> Result<(), BadChain> {
    let mut rest = data;
    for range in slice(ranges, from, rest.len()) {
        let (part, after) = rest.split_at(range.len);
        memory.write_slice(part, range.addr).map_err(|_| BadChain)?;
        rest = after;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(BadChain)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slicing_agrees_with_a_flat_view(
            lens in proptest::collection::vec(0usize..20, 0..8),
            from in 0usize..100,
            count in 0usize..100,
        ) {
            // Ranges lie one after another, so a slice of them is one stretch of addresses.
            let mut at = 100;
            let ranges: Vec<_> = lens.iter().map(|&len| {
                let range = GuestRange { addr: GuestAddress(at), len };
                at += len as u64;
                range
            }).collect();
            let total = len(&ranges);
            let flat: Vec<u64> = slice(&ranges, from, count)
                .flat_map(|r| r.addr.0..r.addr.0 + r.len as u64).collect();
            let expected: Vec<u64> =
                (from.min(total)..(from + count).min(total)).map(|i| 100 + i as u64).collect();
            prop_assert_eq!(flat, expected);
        }
    }

    #[test]
    fn copies_refuse_what_does_not_fit() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let ranges = [
            GuestRange {
                addr: GuestAddress(0xffe),
                len: 2,
            },
            GuestRange {
                addr: GuestAddress(0x10),
                len: 2,
            },
        ];
        write(&memory, &ranges, 0, b"abcd").unwrap();
        let mut out = [0; 3];
        read(&memory, &ranges, 1, &mut out).unwrap();
        assert_eq!(&out, b"bcd");
        assert_eq!(read(&memory, &ranges, 2, &mut out), Err(BadChain));
        assert_eq!(write(&memory, &ranges, 1, b"abcd"), Err(BadChain));
        let outside = [GuestRange {
            addr: GuestAddress(0xfff),
            len: 2,
        }];
        assert_eq!(write(&memory, &outside, 0, b"ab"), Err(BadChain));
        let wrapping = [GuestRange {
            addr: GuestAddress(u64::MAX),
            len: 2,
        }];
        assert_eq!(read(&memory, &wrapping, 1, &mut out[..1]), Err(BadChain));
    }
}
