//! The virtio devices of a machine: what each is made of, and what it begins with at a reset.

use crate::descriptors::FdName;
use serde::{Deserialize, Serialize};

/// One virtio device. A guest finds them in the order of [`crate::VmSpec::devices`], and in that
/// order their state is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceSpec {
    /// The byte stream between the service and the guest's agent. Each machine has one.
    Vsock(VsockSpec),
    /// A disk. The guest calls the first one `vda`.
    Block(DiskSpec),
    /// A source of random numbers.
    Rng,
    /// A network card. The guest calls the first one `eth0`.
    Net(NetDeviceSpec),
}

/// A network card's wire, when it is made and when it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDeviceSpec {
    /// A connected sequential-packet socket in blocking mode; each message is one Ethernet frame.
    pub frames: FdName,
}

/// A socket device's link, when it is made and when it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSpec {
    /// A connected stream socket.
    pub link: FdName,
    /// What becomes of the agent's connection that was open when the machine's state was saved.
    pub connection: SavedLink,
}

/// What becomes of a saved connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedLink {
    /// It continues over the new link: both sides know that nothing was under way.
    Kept,
    /// The guest sees that it broke; the agent calls again and says Hello.
    Broken,
}

/// What a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The shared image, open for reading; never written.
    pub base: FdName,
    /// The flat layer of a saved machine's disk, open for reading; never written. The section file
    /// that the machine begins with says which blocks it holds.
    pub parent: Option<FdName>,
    /// The private layer that takes writes: an empty file, open for reading and writing. `None`
    /// makes the disk read-only.
    pub layer: Option<FdName>,
    /// The size the guest sees, bytes, a multiple of 4096 and not less than the base image.
    pub size: u64,
}

/// What a device begins with when the machine is reset: one for each [`DeviceSpec`], of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceReset {
    /// A socket device's new link.
    Vsock(VsockSpec),
    /// A disk's parent, as [`DiskSpec::parent`].
    Block {
        /// The flat layer.
        parent: Option<FdName>,
    },
    /// An entropy device takes nothing.
    Rng,
    /// A network card's new wire.
    Net(NetDeviceSpec),
}

impl DeviceSpec {
    /// The descriptors that it names.
    pub(crate) fn fds(&self) -> impl Iterator<Item = FdName> {
        let named = match self {
            Self::Vsock(vsock) => [Some(vsock.link), None, None],
            Self::Block(disk) => [Some(disk.base), disk.parent, disk.layer],
            Self::Rng => [None; 3],
            Self::Net(net) => [Some(net.frames), None, None],
        };
        named.into_iter().flatten()
    }
}

impl DeviceReset {
    /// Whether it is for a device of this kind.
    pub(crate) const fn fits(&self, device: &DeviceSpec) -> bool {
        matches!(
            (self, device),
            (Self::Vsock(_), DeviceSpec::Vsock(_))
                | (Self::Block { .. }, DeviceSpec::Block(_))
                | (Self::Rng, DeviceSpec::Rng)
                | (Self::Net(_), DeviceSpec::Net(_))
        )
    }

    /// The descriptor that it names.
    pub(crate) const fn fd(&self) -> Option<FdName> {
        match self {
            Self::Vsock(vsock) => Some(vsock.link),
            Self::Block { parent } => *parent,
            Self::Rng => None,
            Self::Net(net) => Some(net.frames),
        }
    }
}
