//! Whether an event loop like a sandbox's can be had: by the user that asks, on this host.

use machine::{Backing, HugePages, Memory, MemorySpec};
use std::sync::Arc;

/// Guest memory to look with, bytes.
const MEMORY: u64 = 1 << 20;

/// Makes one, and takes it apart.
pub(crate) fn check() -> Result<(), String> {
    let spec = MemorySpec {
        bytes: MEMORY,
        backing: Backing::Anonymous,
        huge_pages: HugePages::Never,
    };
    let memory = Memory::new(&spec).map_err(|e| crate::error::chain(&e))?;
    let made = devices::EventLoop::new(Arc::new(memory.ram().clone()));
    made.map(drop).map_err(|e| crate::error::chain(&e))
}
