//! The bytes of one stream between the reader task and a consumer, bounded by the stream's window.
//!
//! What is kept is a small multiple of that, whatever a guest sends: small payloads are copied into
//! the segment before them.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use wire::DataChannel;

/// Longest piece handed to a consumer (api/PROTOCOL.md §7.8).
const PIECE: usize = 32 * 1024;
/// Payloads below this are copied: a slice keeps the whole read buffer that it is in, so that what
/// is kept is at most four times what was sent.
const SMALL: usize = 16 * 1024;
/// From so many segments on, a frame joins the last segment of its channel even when one of another
/// channel lies between: a guest that writes single bytes to stdout and stderr in turn must not
/// cost an allocation each. Only the order *between* channels can suffer, and only in a backlog.
const SEGMENTS: usize = 128;

/// Segments in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct ReceiveQueue {
    segments: VecDeque<(DataChannel, BytesMut)>,
}

impl ReceiveQueue {
    /// Adds a frame's payload. The caller has accounted for its bytes.
    pub(crate) fn push(&mut self, channel: DataChannel, payload: BytesMut) {
        let crowded = self.segments.len() >= SEGMENTS;
        let last = if crowded {
            self.segments
                .iter_mut()
                .rev()
                .find(|(of, _)| *of == channel)
        } else {
            self.segments.back_mut().filter(|(of, _)| *of == channel)
        };
        match last {
            Some((_, bytes)) if crowded || bytes.len() + payload.len() <= PIECE => {
                bytes.extend_from_slice(&payload);
            }
            _ if payload.len() < SMALL => {
                self.segments
                    .push_back((channel, BytesMut::from(&payload[..])));
            }
            _ => self.segments.push_back((channel, payload)),
        }
    }

    /// Takes the oldest piece.
    pub(crate) fn pop(&mut self) -> Option<(DataChannel, Bytes)> {
        let (channel, bytes) = self.segments.front_mut()?;
        let channel = *channel;
        // Records never span frames, so they must not be cut.
        if bytes.len() > PIECE && channel != DataChannel::Records {
            return Some((channel, bytes.split_to(PIECE).freeze()));
        }
        self.segments
            .pop_front()
            .map(|(channel, bytes)| (channel, bytes.freeze()))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn single_bytes_of_records_cost_little_and_are_not_cut() {
        let mut queue = ReceiveQueue::default();
        let sent = 200_000;
        for _ in 0..sent {
            // As the reader has it: a slice of a larger buffer.
            let mut buffer = BytesMut::zeroed(64);
            queue.push(DataChannel::Records, buffer.split_to(1));
        }
        assert!(queue.segments.len() <= SEGMENTS + 1);
        let kept: usize = queue.segments.iter().map(|(_, b)| b.capacity()).sum();
        assert!(kept <= 4 * sent, "{kept} bytes for {sent}");
        let mut whole = ReceiveQueue::default();
        whole.push(DataChannel::Records, BytesMut::zeroed(PIECE));
        whole.push(DataChannel::Records, BytesMut::zeroed(7));
        let pieces: Vec<_> = std::iter::from_fn(|| whole.pop()).collect();
        assert_eq!(
            pieces.iter().map(|(_, b)| b.len()).collect::<Vec<_>>(),
            [PIECE, 7]
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_channel_keeps_its_order(
            frames in prop::collection::vec((0u8..3, 1usize..9000), 0..400),
            pops in prop::collection::vec(any::<bool>(), 400),
        ) {
            let mut queue = ReceiveQueue::default();
            let mut sent = [vec![], vec![], vec![]];
            let mut got = [vec![], vec![], vec![]];
            let slot = |channel: DataChannel| usize::from(channel.to_u8()) - 1;
            let mut take = |queue: &mut ReceiveQueue| {
                queue.pop().map(|(channel, bytes)| {
                    assert!(!bytes.is_empty() && bytes.len() <= PIECE);
                    got[slot(channel)].extend_from_slice(&bytes);
                })
            };
            for (n, ((which, length), pop)) in frames.into_iter().zip(pops).enumerate() {
                let channel = DataChannel::from_u8(which + 1).unwrap();
                let payload = vec![u8::try_from(n % 251).unwrap(); length];
                sent[slot(channel)].extend_from_slice(&payload);
                queue.push(channel, BytesMut::from(&payload[..]));
                prop_assert!(queue.segments.len() <= SEGMENTS + 3);
                if pop {
                    take(&mut queue);
                }
            }
            while take(&mut queue).is_some() {}
            prop_assert_eq!(sent, got);
        }
    }
}
