//! Constants of the block device (virtio 1.2 §5.2).

/// Virtio device type (§5.2.1).
pub(crate) const DEVICE_ID: u32 = 2;
/// One request queue (§5.2.2). With indirect descriptors a request takes one entry.
pub(crate) const QUEUE_SIZES: &[u16] = &[64];

/// Feature bits (§5.2.3): `VIRTIO_BLK_F_SIZE_MAX`.
pub(crate) const F_SIZE_MAX: u64 = 1 << 1;
/// `VIRTIO_BLK_F_SEG_MAX`.
pub(crate) const F_SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`.
pub(crate) const F_RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_TOPOLOGY`.
pub(crate) const F_TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_DISCARD`.
pub(crate) const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub(crate) const F_WRITE_ZEROES: u64 = 1 << 14;

/// The unit of all positions (§5.2.4).
pub(crate) const SECTOR: u64 = 512;
/// Most bytes of one data segment.
pub(crate) const SIZE_MAX: u32 = 64 * 1024;
/// Most data segments of one request.
pub(crate) const SEG_MAX: u32 = 64;
/// Most data bytes of one request.
pub(crate) const MAX_DATA: usize = SIZE_MAX as usize * SEG_MAX as usize;
/// Most sectors of one discard or write-zeroes segment: 1 GiB.
pub(crate) const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// Bytes of a request's header (§5.2.6).
pub(crate) const HEADER_LEN: usize = 16;
/// Bytes of the answer to `GET_ID`.
pub(crate) const ID_LEN: usize = 20;
/// Bytes of one discard or write-zeroes segment.
pub(crate) const DISCARD_SEGMENT_LEN: usize = 16;

/// Request types (§5.2.6).
pub(crate) const T_IN: u32 = 0;
/// Write.
pub(crate) const T_OUT: u32 = 1;
/// Flush.
pub(crate) const T_FLUSH: u32 = 4;
/// Read the serial number.
pub(crate) const T_GET_ID: u32 = 8;
/// Discard.
pub(crate) const T_DISCARD: u32 = 11;
/// Write zeroes.
pub(crate) const T_WRITE_ZEROES: u32 = 13;

/// Status bytes (§5.2.6).
pub(crate) const S_OK: u8 = 0;
/// I/O error.
pub(crate) const S_IOERR: u8 = 1;
/// Not supported.
pub(crate) const S_UNSUPP: u8 = 2;
