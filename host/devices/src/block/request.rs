//! From a descriptor chain to a request that is known to be in bounds (virtio 1.2 §5.2.6).

use super::spec::{
    DISCARD_SEGMENT_LEN, HEADER_LEN, ID_LEN, MAX_DATA, MAX_DISCARD_SECTORS, S_IOERR, S_UNSUPP,
    SECTOR, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES,
};
use crate::Memory;
use crate::chain::{self, BadChain, BufferChain};
use vm_memory::GuestAddress;

/// What a request does. Offsets and lengths are in bytes and inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskAction {
    /// Fill the chain's writable part, except its last byte.
    Read {
        offset: u64,
        len: usize,
    },
    /// Store the chain's readable part after the header.
    Write {
        offset: u64,
        len: usize,
    },
    /// The range may read as anything: here, whole blocks read as zeros afterwards.
    Discard {
        offset: u64,
        len: u64,
    },
    /// The range reads as zeros afterwards.
    Zero {
        offset: u64,
        len: u64,
    },
    Flush,
    /// Fill the first bytes of the writable part with the serial number.
    GetId,
    /// Answer with this status, nothing else.
    Refuse(u8),
}

/// A request with the place of its status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskRequest {
    pub(crate) action: DiskAction,
    /// Offset of the status byte in the chain's writable part: its last byte.
    pub(crate) status_at: usize,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskShape {
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) writable: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |b| u64::from_le_bytes(*b))
}

impl DiskRequest {
    /// Reads the request's header.
    ///
    /// # Errors
    /// The chain has no room for a header or a status byte: it can only be given back.
    pub(crate) fn parse(
        memory: &Memory,
        chain: &BufferChain,
        disk: DiskShape,
    ) -> Result<Self, BadChain> {
        let status_at = chain::len(&chain.writable).checked_sub(1).ok_or(BadChain)?;
        let mut header = [0; HEADER_LEN];
        chain::read(memory, &chain.readable, 0, &mut header)?;
        let out_len = chain::len(&chain.readable) - HEADER_LEN;
        let sector = u64_at(&header, 8);
        let action = match u32_at(&header, 0) {
            T_IN => disk.transfer(sector, status_at, |offset, len| DiskAction::Read {
                offset,
                len,
            }),
            T_OUT if disk.writable => disk.transfer(sector, out_len, |offset, len| {
                DiskAction::Write { offset, len }
            }),
            T_OUT => DiskAction::Refuse(S_IOERR),
            T_FLUSH => DiskAction::Flush,
            T_GET_ID if status_at >= ID_LEN => DiskAction::GetId,
            kind @ (T_DISCARD | T_WRITE_ZEROES) if disk.writable => {
                if out_len == DISCARD_SEGMENT_LEN {
                    let mut segment = [0; DISCARD_SEGMENT_LEN];
                    chain::read(memory, &chain.readable, HEADER_LEN, &mut segment)?;
                    disk.erase(kind, &segment)
                } else {
                    DiskAction::Refuse(S_IOERR)
                }
            }
            _ => DiskAction::Refuse(S_UNSUPP),
        };
        Ok(Self { action, status_at })
    }

    /// Where the status byte goes.
    pub(crate) fn status_address(&self, chain: &BufferChain) -> Result<GuestAddress, BadChain> {
        let mut last = chain::slice(&chain.writable, self.status_at, 1);
        last.next().map(|range| range.addr).ok_or(BadChain)
    }
}

impl DiskShape {
    fn contains(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.size)
    }

    fn transfer(
        &self,
        sector: u64,
        len: usize,
        make: impl Fn(u64, usize) -> DiskAction,
    ) -> DiskAction {
        let bytes = u64::try_from(len).unwrap_or(u64::MAX);
        match sector.checked_mul(SECTOR) {
            Some(offset)
                if bytes.is_multiple_of(SECTOR)
                    && len <= MAX_DATA
                    && self.contains(offset, bytes) =>
            {
                make(offset, len)
            }
            _ => DiskAction::Refuse(S_IOERR),
        }
    }

    fn erase(&self, kind: u32, segment: &[u8; DISCARD_SEGMENT_LEN]) -> DiskAction {
        let (sectors, flags) = (u32_at(segment, 8), u32_at(segment, 12));
        // Only write-zeroes has a flag: bit 0 allows to free the space, which is always done.
        let known = if kind == T_WRITE_ZEROES { 1 } else { 0 };
        if flags & !known != 0 {
            return DiskAction::Refuse(S_UNSUPP);
        }
        let len = u64::from(sectors) * SECTOR;
        match u64_at(segment, 0).checked_mul(SECTOR) {
            Some(offset) if sectors <= MAX_DISCARD_SECTORS && self.contains(offset, len) => {
                if kind == T_DISCARD {
                    DiskAction::Discard { offset, len }
                } else {
                    DiskAction::Zero { offset, len }
                }
            }
            _ => DiskAction::Refuse(S_IOERR),
        }
    }
}
