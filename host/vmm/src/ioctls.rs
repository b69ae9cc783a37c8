//! The numbers of the ioctls that a VM process makes once it is confined, computed from the types
//! that go through them. A number carries the size of its type, so a type that grew would be
//! another call.

use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_irq_routing, kvm_lapic_state, kvm_mp_state, kvm_msrs,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use linux_raw_sys::general::{pm_scan_arg, uffdio_api, uffdio_copy, uffdio_range, uffdio_register};

const KVM: u8 = 0xae;
const PAGEMAP: u8 = b'f';
const UFFD: u8 = 0xaa;

/// Which way a call's argument goes, as the kernel counts it (`asm-generic/ioctl.h`).
#[derive(Clone, Copy)]
enum Direction {
    None = 0,
    Write = 1,
    Read = 2,
    Both = 3,
}

/// `_IOC(direction, group, number, size)`.
const fn ioc(direction: Direction, group: u8, number: u8, size: usize) -> u32 {
    assert!(size < 1 << 14, "the number has 14 bits for the size");
    #[expect(clippy::cast_possible_truncation, reason = "it has 14 bits")]
    let size = size as u32;
    (direction as u32) << 30 | size << 16 | (group as u32) << 8 | number as u32
}

/// `_IO`: no argument, or a number.
const fn io(group: u8, number: u8) -> u32 {
    ioc(Direction::None, group, number, 0)
}

/// `_IOR`: the kernel fills a `T`.
const fn ior<T>(group: u8, number: u8) -> u32 {
    ioc(Direction::Read, group, number, size_of::<T>())
}

/// `_IOW`: the kernel reads a `T`.
const fn iow<T>(group: u8, number: u8) -> u32 {
    ioc(Direction::Write, group, number, size_of::<T>())
}

/// `_IOWR`: both.
const fn iowr<T>(group: u8, number: u8) -> u32 {
    ioc(Direction::Both, group, number, size_of::<T>())
}

/// All of them.
pub(crate) const WORK: &[u32] = &[
    io(KVM, 0x80),                       // KVM_RUN
    iow::<kvm_irq_routing>(KVM, 0x6a),   // KVM_SET_GSI_ROUTING
    ior::<kvm_regs>(KVM, 0x81),          // KVM_GET_REGS
    ior::<kvm_sregs>(KVM, 0x83),         // KVM_GET_SREGS
    iowr::<kvm_msrs>(KVM, 0x88),         // KVM_GET_MSRS
    ior::<kvm_lapic_state>(KVM, 0x8e),   // KVM_GET_LAPIC
    ior::<kvm_mp_state>(KVM, 0x98),      // KVM_GET_MP_STATE
    ior::<kvm_vcpu_events>(KVM, 0x9f),   // KVM_GET_VCPU_EVENTS
    ior::<kvm_debugregs>(KVM, 0xa1),     // KVM_GET_DEBUGREGS
    io(KVM, 0xa3),                       // KVM_GET_TSC_KHZ
    ior::<kvm_xsave>(KVM, 0xa4),         // KVM_GET_XSAVE
    ior::<kvm_xcrs>(KVM, 0xa6),          // KVM_GET_XCRS
    ior::<kvm_clock_data>(KVM, 0x7c),    // KVM_GET_CLOCK
    iow::<kvm_msrs>(KVM, 0x89),          // KVM_SET_MSRS
    iow::<kvm_clock_data>(KVM, 0x7b),    // KVM_SET_CLOCK
    iow::<kvm_regs>(KVM, 0x82),          // KVM_SET_REGS
    iow::<kvm_sregs>(KVM, 0x84),         // KVM_SET_SREGS
    iow::<kvm_lapic_state>(KVM, 0x8f),   // KVM_SET_LAPIC
    iow::<kvm_mp_state>(KVM, 0x99),      // KVM_SET_MP_STATE
    iow::<kvm_vcpu_events>(KVM, 0xa0),   // KVM_SET_VCPU_EVENTS
    iow::<kvm_debugregs>(KVM, 0xa2),     // KVM_SET_DEBUGREGS
    io(KVM, 0xa2),                       // KVM_SET_TSC_KHZ
    iow::<kvm_xsave>(KVM, 0xa5),         // KVM_SET_XSAVE
    iow::<kvm_xcrs>(KVM, 0xa7),          // KVM_SET_XCRS
    io(KVM, 0xad),                       // KVM_KVMCLOCK_CTRL
    iowr::<pm_scan_arg>(PAGEMAP, 16),    // PAGEMAP_SCAN
    iowr::<uffdio_copy>(UFFD, 0x03),     // UFFDIO_COPY
    ior::<uffdio_range>(UFFD, 0x02),     // UFFDIO_WAKE
    iowr::<uffdio_api>(UFFD, 0x3f),      // UFFDIO_API
    iowr::<uffdio_register>(UFFD, 0x00), // UFFDIO_REGISTER
];

#[cfg(test)]
mod test {
    use super::*;

    /// As the kernel's headers give them, in the order of the list: a type that changed its size,
    /// or a call that was mixed up, is seen here.
    #[test]
    fn the_numbers_are_the_kernels() {
        let pinned = [
            0xae80,      // KVM_RUN
            0x4008_ae6a, // KVM_SET_GSI_ROUTING
            0x8090_ae81, // KVM_GET_REGS
            0x8138_ae83, // KVM_GET_SREGS
            0xc008_ae88, // KVM_GET_MSRS
            0x8400_ae8e, // KVM_GET_LAPIC
            0x8004_ae98, // KVM_GET_MP_STATE
            0x8040_ae9f, // KVM_GET_VCPU_EVENTS
            0x8080_aea1, // KVM_GET_DEBUGREGS
            0xaea3,      // KVM_GET_TSC_KHZ
            0x9000_aea4, // KVM_GET_XSAVE
            0x8188_aea6, // KVM_GET_XCRS
            0x8030_ae7c, // KVM_GET_CLOCK
            0x4008_ae89, // KVM_SET_MSRS
            0x4030_ae7b, // KVM_SET_CLOCK
            0x4090_ae82, // KVM_SET_REGS
            0x4138_ae84, // KVM_SET_SREGS
            0x4400_ae8f, // KVM_SET_LAPIC
            0x4004_ae99, // KVM_SET_MP_STATE
            0x4040_aea0, // KVM_SET_VCPU_EVENTS
            0x4080_aea2, // KVM_SET_DEBUGREGS
            0xaea2,      // KVM_SET_TSC_KHZ
            0x5000_aea5, // KVM_SET_XSAVE
            0x4188_aea7, // KVM_SET_XCRS
            0xaead,      // KVM_KVMCLOCK_CTRL
            0xc060_6610, // PAGEMAP_SCAN
            0xc028_aa03, // UFFDIO_COPY
            0x8010_aa02, // UFFDIO_WAKE
            0xc018_aa3f, // UFFDIO_API
            0xc020_aa00, // UFFDIO_REGISTER
        ];
        assert_eq!(WORK, pinned);
    }
}
