//! Frames come out the same however the bytes are cut.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use wire::{
    DataChannel, FrameBuffer, FrameError, FrameHeader, FrameKind, HEADER_LEN, MAX_FRAME,
    MAX_PAYLOAD, Message,
};

fn stream(frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = vec![0; MAX_FRAME];
    for (id, body) in frames {
        let data = Message::Data {
            channel: DataChannel::File,
            bytes: body,
        };
        let n = data.encode(*id, &mut out).unwrap();
        bytes.extend(&out[..n]);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_cut_gives_the_same_frames(
        frames in vec((1u32.., vec(any::<u8>(), 1..5000)), 1..20),
        cuts in vec(1usize..3000, 1..50),
    ) {
        let bytes = stream(&frames);
        let mut buffer = Box::new(FrameBuffer::<{ MAX_FRAME + 100 }>::new());
        let (mut at, mut turn, mut got) = (0, 0, Vec::new());
        while at < bytes.len() {
            let space = buffer.space();
            prop_assert!(!space.is_empty());
            let n = space.len().min(cuts[turn % cuts.len()]).min(bytes.len() - at);
            space[..n].copy_from_slice(&bytes[at..at + n]);
            buffer.commit(n);
            at += n;
            turn += 1;
            while let Some(frame) = buffer.next_frame().unwrap() {
                got.push((frame.header.stream, frame.payload.to_vec()));
            }
        }
        prop_assert_eq!(got, frames);
    }
}

#[test]
fn the_largest_frame_fits() {
    let bytes = stream(&[(1, vec![7; MAX_PAYLOAD]), (2, vec![8; MAX_PAYLOAD])]);
    let mut buffer = Box::new(FrameBuffer::<MAX_FRAME>::new());
    let mut rest = &bytes[..];
    let mut seen = 0;
    while !rest.is_empty() {
        let space = buffer.space();
        let n = space.len().min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        buffer.commit(n);
        rest = &rest[n..];
        while let Some(frame) = buffer.next_frame().unwrap() {
            assert_eq!(frame.payload.len(), MAX_PAYLOAD);
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
}

#[test]
fn what_is_not_a_header_is_refused() {
    let good = FrameHeader {
        len: 0,
        stream: 1,
        kind: FrameKind::End,
        flags: 0,
    };
    assert_eq!(FrameHeader::decode(&good.encode()), Ok(good));
    let bad = |at: usize, value: u8| {
        let mut bytes: [u8; HEADER_LEN] = good.encode();
        bytes[at] = value;
        FrameHeader::decode(&bytes)
    };
    assert_eq!(bad(2, 1), Err(FrameError::TooLong(65536)));
    assert_eq!(bad(8, 99), Err(FrameError::UnknownKind(99)));
    assert_eq!(bad(10, 1), Err(FrameError::Reserved(1)));
    assert_eq!(
        bad(4, 0),
        Err(FrameError::WrongStream {
            kind: FrameKind::End,
            stream: 0
        })
    );
    assert_eq!(
        bad(8, 1),
        Err(FrameError::WrongStream {
            kind: FrameKind::Hello,
            stream: 1
        })
    );
}
