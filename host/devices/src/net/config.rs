//! What a network device is made of.

use crate::Attachment;
use std::os::fd::OwnedFd;

/// One end of a connected sequential-packet socket, in blocking mode: each message is one frame.
#[derive(Debug)]
pub struct FrameSocket(pub OwnedFd);

impl From<FrameSocket> for Attachment {
    fn from(socket: FrameSocket) -> Self {
        Self::new(socket)
    }
}
