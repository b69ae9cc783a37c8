//! Bytes from the guest on their way to the link, in order.
//!
//! Large payloads stay in guest memory: their chain is held until the socket has taken them. Small
//! ones are copied, so that their chains go back at once and a link that does not read can never
//! hold more than `BUFFER / COPY_BELOW` chains: the rest of the queue stays free for the packets
//! by which the guest gives us credit. All is bounded by the connection's credit.

use crate::Memory;
use crate::chain::{self, BadChain, GuestRange};
use crate::ring::IoPiece;
use crate::vsock::connection::BUFFER;
use crate::vsock::spec::QUEUE_SIZES;
use std::collections::VecDeque;
use std::mem;

/// Payloads below this size are copied.
pub(crate) const COPY_BELOW: usize = 4096;
/// A payload in more descriptors than this is copied, too.
const MAX_RANGES: usize = 32;
/// Pieces in one send; together with guest memory regions this bounds the vectors.
const MAX_PIECES: usize = 128;
/// Copies are gathered up to this size.
const GATHER: usize = 32 * 1024;

// Held chains must leave at least a third of the queue's descriptors (two per packet) free.
const _: () = assert!(BUFFER as usize / COPY_BELOW * 4 / 3 <= QUEUE_SIZES[1] as usize);

/// One piece and, if it is the last of its chain, the chain's head.
#[derive(Debug)]
struct Chunk {
    piece: IoPiece,
    head: Option<u16>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LinkOutbox {
    waiting: VecDeque<Chunk>,
    /// Heads of the chains in the send that is in flight.
    flying_heads: Vec<u16>,
    flying_bytes: usize,
    flying: bool,
    waiting_bytes: usize,
    /// Of the bytes in flight and waiting, the first ones that belong to a connection that is gone.
    orphaned: usize,
    spare_pieces: Vec<IoPiece>,
    spare_bytes: Vec<u8>,
}

/// What a completed send had carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// All bytes.
    pub(crate) bytes: usize,
    /// Those that came from the present connection.
    pub(crate) counted: usize,
}

impl LinkOutbox {
    /// Neither waiting nor in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && !self.flying
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.flying
    }

    /// Takes `len` payload bytes at `from`. `Ok(true)`: the chain is held until they are sent.
    pub(crate) fn push(
        &mut self,
        memory: &Memory,
        ranges: &[GuestRange],
        from: usize,
        len: usize,
        head: u16,
    ) -> Result<bool, BadChain> {
        self.waiting_bytes += len;
        if len < COPY_BELOW || ranges.len() > MAX_RANGES {
            self.copy(memory, ranges, from, len)?;
            return Ok(false);
        }
        for piece in chain::pieces(ranges, from, len) {
            self.waiting.push_back(Chunk { piece, head: None });
        }
        if let Some(last) = self.waiting.back_mut() {
            last.head = Some(head);
        }
        Ok(true)
    }

    fn copy(
        &mut self,
        memory: &Memory,
        ranges: &[GuestRange],
        from: usize,
        len: usize,
    ) -> Result<(), BadChain> {
        let room = match self.waiting.back() {
            Some(Chunk {
                piece: IoPiece::Owned { bytes, .. },
                ..
            }) => bytes.len() + len <= GATHER,
            _ => false,
        };
        if !room {
            let mut bytes = mem::take(&mut self.spare_bytes);
            bytes.clear();
            let piece = IoPiece::Owned { bytes, start: 0 };
            self.waiting.push_back(Chunk { piece, head: None });
        }
        let Some(Chunk {
            piece: IoPiece::Owned { bytes, .. },
            ..
        }) = self.waiting.back_mut()
        else {
            return Err(BadChain);
        };
        let at = bytes.len();
        bytes.resize(at + len, 0);
        let copied = chain::read(memory, ranges, from, &mut bytes[at..]);
        if copied.is_err() {
            bytes.truncate(at);
        }
        copied
    }

    /// The pieces of the next send, if none is in flight and something waits.
    pub(crate) fn next(&mut self) -> Option<Vec<IoPiece>> {
        if self.flying || self.waiting.is_empty() {
            return None;
        }
        let mut pieces = mem::take(&mut self.spare_pieces);
        let count = self.waiting.len().min(MAX_PIECES);
        for Chunk { piece, head } in self.waiting.drain(..count) {
            self.flying_bytes += piece.len();
            self.flying_heads.extend(head);
            pieces.push(piece);
        }
        self.waiting_bytes -= self.flying_bytes;
        self.flying = true;
        Some(pieces)
    }

    /// The send is complete. Moves the chains that are free now to `heads`.
    pub(crate) fn sent(&mut self, mut pieces: Vec<IoPiece>, heads: &mut Vec<u16>) -> Sent {
        heads.append(&mut self.flying_heads);
        for piece in pieces.drain(..) {
            if let IoPiece::Owned { bytes, .. } = piece {
                self.spare_bytes = bytes;
            }
        }
        self.spare_pieces = pieces;
        self.flying = false;
        let bytes = mem::take(&mut self.flying_bytes);
        let orphaned = self.orphaned.min(bytes);
        self.orphaned -= orphaned;
        Sent {
            bytes,
            counted: bytes - orphaned,
        }
    }

    /// The connection is gone: drops what waits, moves its chains to `heads`.
    pub(crate) fn drop_waiting(&mut self, heads: &mut Vec<u16>) {
        heads.extend(self.waiting.drain(..).filter_map(|chunk| chunk.head));
        self.waiting_bytes = 0;
        self.disown();
    }

    /// A new connection begins; what is here is not its.
    pub(crate) fn disown(&mut self) {
        self.orphaned = self.flying_bytes + self.waiting_bytes;
    }

    /// The queue is gone: no chain can be given back any more.
    pub(crate) fn forget_chains(&mut self) {
        self.waiting.clear();
        self.flying_heads.clear();
        self.waiting_bytes = 0;
        self.disown();
    }
}
