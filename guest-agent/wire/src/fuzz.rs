//! Entry points for fuzzers: any bytes come back as an error or as a value that is written as it
//! was read.

use crate::frame::{Frame, FrameBuffer};
use crate::limits::{MAX_FRAME, MAX_REQUEST};
use crate::message::Message;
use crate::reply::{EntryInfo, ProcessInfo, Record, Records};
use crate::request::Request;

/// A connection's bytes in pieces, of as many bytes as the first one says, and one more.
pub fn fuzz_frames(bytes: &[u8]) {
    let mut buffer = FrameBuffer::<MAX_FRAME>::new();
    let Some((&step, mut rest)) = bytes.split_first() else {
        return;
    };
    while !rest.is_empty() {
        let space = buffer.space();
        let n = space.len().min(rest.len()).min(usize::from(step) + 1);
        space[..n].copy_from_slice(&rest[..n]);
        buffer.commit(n);
        rest = &rest[n..];
        loop {
            match buffer.next_frame() {
                Ok(Some(frame)) => check_message(&frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn check_message(frame: &Frame<'_>) {
    let Ok(message) = Message::decode(frame) else {
        return;
    };
    let mut written = [0; MAX_FRAME];
    let length = message.encode(frame.header.stream, &mut written);
    let written = length.ok().and_then(|length| written.get(..length));
    let (head, payload) = written.unwrap_or(&[]).split_at(frame.header.encode().len());
    assert!(
        head == frame.header.encode() && payload == frame.payload,
        "{message:?} is written differently"
    );
}

/// A request, joined from its parts.
pub fn fuzz_request(bytes: &[u8]) {
    let Ok(request) = Request::decode(bytes) else {
        return;
    };
    let mut written = [0; MAX_REQUEST];
    let length = request.encode(&mut written);
    let written = length.ok().and_then(|length| written.get(..length));
    assert!(written == Some(bytes), "{request:?} is written differently");
}

/// The bytes of a frame of records, of both kinds.
pub fn fuzz_records(bytes: &[u8]) {
    check_records::<EntryInfo<'_>>(bytes);
    check_records::<ProcessInfo<'_>>(bytes);
}

fn check_records<'a, T: Record<'a>>(bytes: &'a [u8]) {
    let mut rest = bytes;
    for record in Records::<T>::new(bytes) {
        let Ok(record) = record else {
            return;
        };
        let mut written = [0; MAX_FRAME];
        let length = record.write(&mut written);
        let written = length.ok().and_then(|length| written.get(..length));
        let after = written.and_then(|written| rest.strip_prefix(written));
        assert!(after.is_some(), "a record is written differently");
        rest = after.unwrap_or(&[]);
    }
    assert!(rest.is_empty(), "records end early");
}
