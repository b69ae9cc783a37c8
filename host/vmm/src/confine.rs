//! What each thread of a VM process may do once it is built.

/// Confines the calling vCPU thread before its first entry into the guest.
pub(crate) fn vcpu() -> Result<(), i32> {
    Ok(())
}

/// Confines the main thread before it serves the machine.
pub(crate) fn main_thread() -> std::io::Result<()> {
    Ok(())
}
