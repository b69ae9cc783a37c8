//! Constants of the socket device (virtio 1.2 §5.10).

/// Virtio device type (§5.10.1).
pub(crate) const DEVICE_ID: u32 = 19;

/// Sizes of rx, tx and event queue. Linux fills the rx queue with buffers of 4 KiB when it starts:
/// 64 of them are as much as its default credit of 256 KiB allows to be under way.
pub(crate) const QUEUE_SIZES: &[u16] = &[64, 256, 8];

/// `VMADDR_CID_HOST`: the well-known context id of the host.
pub(crate) const HOST_CID: u64 = 2;

/// Bytes of `struct virtio_vsock_hdr` (§5.10.6).
pub(crate) const HEADER_LEN: usize = 44;
/// The largest payload a Linux driver sends in one packet.
pub(crate) const MAX_PAYLOAD: usize = 64 * 1024;

/// The last port that Linux lets nobody bind without `CAP_NET_BIND_SERVICE` in the guest's first
/// user namespace (its `LAST_RESERVED_PORT`).
pub(crate) const LAST_PRIVILEGED_PORT: u32 = 1023;

/// `VIRTIO_VSOCK_TYPE_STREAM` (§5.10.6.1).
pub(crate) const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE` (§5.10.6.5): the sender of the packet receives no more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender of the packet sends no more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;
