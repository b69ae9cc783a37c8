//! The packet header (virtio 1.2 §5.10.6): 44 little-endian bytes, every pattern of which parses.

use super::spec::HEADER_LEN;

/// What a packet is for (§5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PacketOp {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// Not of this specification.
    Unknown(u16),
}

impl From<u16> for PacketOp {
    fn from(op: u16) -> Self {
        match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }
}

impl From<PacketOp> for u16 {
    fn from(op: PacketOp) -> Self {
        match op {
            PacketOp::Request => 1,
            PacketOp::Response => 2,
            PacketOp::Reset => 3,
            PacketOp::Shutdown => 4,
            PacketOp::Data => 5,
            PacketOp::CreditUpdate => 6,
            PacketOp::CreditRequest => 7,
            PacketOp::Unknown(other) => other,
        }
    }
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PacketHeader {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    /// Bytes of payload that follow.
    pub(crate) len: u32,
    /// Socket type.
    pub(crate) kind: u16,
    pub(crate) op: PacketOp,
    pub(crate) flags: u32,
    /// Bytes the sender can buffer for this connection.
    pub(crate) buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer since the connection began, wrapping.
    pub(crate) fwd_cnt: u32,
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    match bytes.split_first_chunk() {
        Some((head, rest)) => {
            *bytes = rest;
            *head
        }
        None => [0; N],
    }
}

impl PacketHeader {
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)).into(),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(crate) fn emit(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        out[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        out[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        out[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        out[24..28].copy_from_slice(&self.len.to_le_bytes());
        out[28..30].copy_from_slice(&self.kind.to_le_bytes());
        out[30..32].copy_from_slice(&u16::from(self.op).to_le_bytes());
        out[32..36].copy_from_slice(&self.flags.to_le_bytes());
        out[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        out[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        out
    }

    /// The header with the ends exchanged and nothing else kept but the socket type.
    pub(crate) fn reply(&self, op: PacketOp) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_pattern_parses_and_comes_back(bytes: [u8; HEADER_LEN]) {
            prop_assert_eq!(PacketHeader::parse(&bytes).emit(), bytes);
        }
    }

    #[test]
    fn the_layout_is_the_specification_s() {
        // src cid 3 port 0x400 -> cid 2 port 0x11223344, 5 bytes of data
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = 3;
        bytes[8] = 2;
        bytes[16..20].copy_from_slice(&[0, 4, 0, 0]);
        bytes[20..24].copy_from_slice(&[0x44, 0x33, 0x22, 0x11]);
        bytes[24] = 5;
        bytes[28] = 1;
        bytes[30] = 5;
        bytes[38] = 1;
        bytes[43] = 0x80;
        let header = PacketHeader::parse(&bytes);
        let expected = PacketHeader {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x400,
            dst_port: 0x1122_3344,
            len: 5,
            kind: 1,
            op: PacketOp::Data,
            flags: 0,
            buf_alloc: 0x1_0000,
            fwd_cnt: 0x8000_0000,
        };
        assert_eq!(header, expected);
    }
}
