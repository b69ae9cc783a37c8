//! Envelopes: one flag byte, a big-endian length, a payload (api/PROTOCOL.md §7.2).

use crate::connect::{ConnectCode, ConnectError, MAX_MESSAGE};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::json;

const HEADER: usize = 5;
const COMPRESSED: u8 = 0b01;
const END_STREAM: u8 = 0b10;

/// One envelope of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Whether this is the last frame, which carries the status rather than a message.
    pub end_stream: bool,
    /// The JSON text.
    pub payload: Bytes,
}

/// Cuts a byte stream into envelopes. Holds at most one message plus what one `push` adds.
#[derive(Debug, Default)]
pub struct EnvelopeDecoder {
    buffer: BytesMut,
}

impl EnvelopeDecoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole envelope, if it has arrived.
    ///
    /// # Errors
    /// A message longer than [`MAX_MESSAGE`], a compressed one, or unknown flags. The stream is
    /// unusable afterwards.
    pub fn decode(&mut self) -> Result<Option<Envelope>, ConnectError> {
        let Some((&[flags, a, b, c, d], rest)) = self.buffer.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes([a, b, c, d]);
        let length = usize::try_from(announced).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(too_large(u64::from(announced)));
        }
        if flags & COMPRESSED != 0 {
            return Err(ConnectError::internal(
                "A compressed message came on a stream that announced no compression; send \
                 identity",
            ));
        }
        if flags & !(COMPRESSED | END_STREAM) != 0 {
            return Err(ConnectError::invalid(format!(
                "Unknown envelope flags {flags:#04x}"
            )));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let payload = self.buffer.split_to(length).freeze();
        Ok(Some(Envelope {
            end_stream: flags & END_STREAM != 0,
            payload,
        }))
    }

    /// How long the envelope will be that has begun, once that is known; `None` for one that is
    /// over the limit and will be refused.
    #[must_use]
    pub fn announced(&self) -> Option<usize> {
        let (&[_, a, b, c, d], _) = self.buffer.split_first_chunk::<HEADER>()?;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        (length <= MAX_MESSAGE).then_some(length + HEADER)
    }

    /// Bytes that have arrived and are not taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether no byte of an unfinished envelope is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// The error for a message over the limit.
#[must_use]
pub fn too_large(got: u64) -> ConnectError {
    ConnectError::new(
        ConnectCode::ResourceExhausted,
        format!("A message of {got} bytes is over the limit of {MAX_MESSAGE}; send it in parts"),
    )
}

fn seal(flags: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER + payload.len());
    frame.put_u8(flags);
    // Payloads are our own messages, far below 4 GiB.
    frame.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(payload);
    frame.freeze()
}

/// The envelope of one message.
#[must_use]
pub fn message<M: Serialize>(message: &M) -> Bytes {
    // Our own messages are structs with string keys: serialising cannot fail.
    seal(0, &serde_json::to_vec(message).unwrap_or_default())
}

/// The envelope of a message that already is JSON text.
#[must_use]
pub fn message_text(json: &[u8]) -> Bytes {
    seal(0, json)
}

/// The end-stream frame: success, or an error.
#[must_use]
pub fn end(result: Result<(), &ConnectError>) -> Bytes {
    match result {
        Ok(()) => seal(END_STREAM, b"{}"),
        Err(error) => seal(
            END_STREAM,
            json!({ "error": error.to_json() }).to_string().as_bytes(),
        ),
    }
}

/// Fuzz entry point: feeds `data` in pieces, the first byte being the size of a piece.
pub fn fuzz_envelopes(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let mut decoder = EnvelopeDecoder::new();
    for piece in data.chunks(usize::from(step).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.decode() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_frame_is_what_the_sdks_parse() {
        assert_eq!(&end(Ok(()))[..], b"\x02\0\0\0\x02{}");
        let error = ConnectError::not_found("no \"x\"");
        let frame = end(Err(&error));
        assert_eq!(frame[0], 2);
        let value: serde_json::Value = serde_json::from_slice(&frame[5..]).unwrap();
        assert_eq!(
            value,
            json!({"error": {"code": "not_found", "message": "no \"x\""}})
        );
    }

    #[test]
    fn too_long_compressed_and_unknown_flags_are_refused() {
        for (bytes, code) in [
            (&b"\x00\xff\xff\xff\xff"[..], ConnectCode::ResourceExhausted),
            (&b"\x01\0\0\0\0"[..], ConnectCode::Internal),
            (&b"\x40\0\0\0\0"[..], ConnectCode::InvalidArgument),
        ] {
            let mut decoder = EnvelopeDecoder::new();
            decoder.push(bytes);
            assert_eq!(decoder.decode().unwrap_err().code, code);
        }
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_envelopes(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            step in 1usize..40,
        ) {
            let mut bytes: Vec<u8> = payloads.iter().flat_map(|p| message_text(p)).collect();
            bytes.extend_from_slice(&end(Ok(())));
            let mut decoder = EnvelopeDecoder::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(envelope) = decoder.decode().unwrap() {
                    got.push(envelope);
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert!(got.pop().unwrap().end_stream);
            let got: Vec<Vec<u8>> = got.into_iter().map(|e| e.payload.to_vec()).collect();
            prop_assert_eq!(got, payloads);
        }

        #[test]
        fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..600)) {
            fuzz_envelopes(&data);
        }
    }
}
