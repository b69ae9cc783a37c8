//! Guest memory.

/// Guest memory, as `machine` maps it and every device sees it.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
