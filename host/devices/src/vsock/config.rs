//! What the socket device is made of, and its attachment.

use crate::Attachment;
use std::os::fd::OwnedFd;

/// What the socket device needs.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub guest_cid: u32,
    /// The host port on which a guest connection is joined to the link.
    pub port: u32,
    /// What it is joined to.
    pub link: VsockLink,
}

/// The attachment of a socket device.
#[derive(Debug)]
pub struct VsockLink {
    /// A connected stream socket; it stays open when the guest reconnects.
    pub socket: OwnedFd,
    /// What becomes of the connection in a state that is loaded.
    pub connection: SavedConnection,
}

impl From<VsockLink> for Attachment {
    fn from(link: VsockLink) -> Self {
        Self::new(link)
    }
}

/// What becomes of a connection that was open when the devices were saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedConnection {
    /// The new link continues where the saved one was: the guest's connection stays open, and both
    /// ends agree that nothing was under way on it.
    Kept,
    /// The new link knows nothing of the saved one: the guest's connection is reset.
    Broken,
}
