//! Why a vCPU came back from the guest, by value.
#![expect(
    unsafe_code,
    reason = "the details of an internal error lie in a union of kvm_run"
)]

use crate::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};

/// Why a vCPU came back from the guest. Port and memory accesses are already answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A port or memory-mapped access, answered by a bus.
    Io,
    /// A signal, or the kernel asking to try again. Continue.
    Interrupted,
    /// The guest halted with nobody to wake it. Only without an in-kernel APIC.
    Halted,
    /// Triple fault: the processor reset itself.
    Shutdown,
    /// KVM cannot continue.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// The guest's instruction pointer, if it could be read.
        rip: u64,
    },
    /// The processor refused the guest's state.
    EntryFailed {
        /// The processor's reason.
        reason: u64,
    },
    /// A `KVM_SYSTEM_EVENT_*`.
    SystemEvent(u32),
    /// An exit we never asked for, by KVM's number.
    Unexpected(u32),
    /// `KVM_RUN` itself failed, by error number.
    Failed(i32),
}

/// Runs the guest once and answers what it asks of the buses.
pub(crate) fn run_once(vcpu: &mut VcpuFd, ports: &Bus, memory: &Bus) -> Exit {
    match vcpu.run() {
        // Ports are byte devices: each byte of an access is one access, so a string instruction
        // (`rep outsb`, up to a page at once) needs nothing special.
        Ok(VcpuExit::IoOut(port, data)) => {
            data.iter()
                .for_each(|byte| ports.write(port.into(), &[*byte]));
            Exit::Io
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            data.chunks_mut(1)
                .for_each(|byte| ports.read(port.into(), byte));
            Exit::Io
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            memory.read(address, data);
            Exit::Io
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            memory.write(address, data);
            Exit::Io
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Exit::Interrupted,
        Ok(VcpuExit::Hlt) => Exit::Halted,
        Ok(VcpuExit::Shutdown) => Exit::Shutdown,
        Ok(VcpuExit::FailEntry(reason, _)) => Exit::EntryFailed { reason },
        Ok(VcpuExit::SystemEvent(kind, _)) => Exit::SystemEvent(kind),
        Ok(VcpuExit::MemoryFault { .. }) => Exit::Failed(libc::EFAULT),
        Ok(VcpuExit::InternalError) => internal_error(vcpu),
        Ok(_) => Exit::Unexpected(vcpu.get_kvm_run().exit_reason),
        Err(error) => match error.errno() {
            // EAGAIN: a processor waiting for its start-up message was woken.
            libc::EINTR | libc::EAGAIN => Exit::Interrupted,
            other => Exit::Failed(other),
        },
    }
}

fn internal_error(vcpu: &mut VcpuFd) -> Exit {
    // SAFETY: the kernel has just said KVM_EXIT_INTERNAL_ERROR, so `internal` is the live member;
    // its fields are plain integers.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    Exit::InternalError {
        suberror,
        rip: vcpu.get_regs().map_or(0, |r| r.rip),
    }
}
