//! Numbers of virtio 1.2 §5.1.

/// Virtio device type (§5.1.1).
pub(super) const DEVICE_ID: u32 = 1;
/// A driver's receive buffer for our MTU is a chain of 18 descriptors, a frame that it sends up to
/// 19: room for 14 buffers and 13 large frames. More of both is memory that a clone would touch.
pub(super) const QUEUE_SIZES: &[u16] = &[256, 256];

/// `VIRTIO_NET_F_CSUM` (§5.1.3): the driver may leave the checksum of what it sends to others. The
/// socket's other end does not look at it.
const F_CSUM: u64 = 1 << 0;
/// `VIRTIO_NET_F_GUEST_CSUM`: the driver takes frames without one.
const F_GUEST_CSUM: u64 = 1 << 1;
/// `VIRTIO_NET_F_MTU`.
const F_MTU: u64 = 1 << 3;
/// `VIRTIO_NET_F_MAC`.
const F_MAC: u64 = 1 << 5;
/// What is offered besides the ring's own features. No segmentation offloads: with a large MTU
/// there is nothing to cut.
pub(super) const FEATURES: u64 = F_CSUM | F_GUEST_CSUM | F_MTU | F_MAC;

/// The header before each frame in guest memory (§5.1.6), with `num_buffers`.
pub(super) const HEADER_LEN: usize = 12;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: checksums need not be looked at.
const DATA_VALID: u8 = 2;
/// The header of every frame to the guest: one buffer, checksums need not be looked at.
pub(super) const RX_HEADER: [u8; HEADER_LEN] = [DATA_VALID, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Bytes of an Ethernet header, the least frame.
pub(super) const MIN_FRAME: usize = 14;
/// The largest frame: the MTU after an Ethernet header.
pub(super) const MAX_FRAME: usize = MIN_FRAME + MTU as usize;
/// Bytes of the largest IP packet, a multiple of 16 close below what IPv4 can say.
pub(super) const MTU: u16 = 65_520;
/// The guest's address on its only wire. No two guests share one, so all have the same.
const MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x05];

/// The configuration space (§5.1.4): address, status and queue pairs that are not offered, MTU.
pub(super) fn config() -> Box<[u8]> {
    let mut config = [0; 12];
    config[..6].copy_from_slice(&MAC);
    config[10..].copy_from_slice(&MTU.to_le_bytes());
    config.into()
}
