//! What the ring can be asked for, which the kernel holds it to.
//!
//! A system call filter does not see what is submitted to a ring: by operations, a process that may
//! not call `socket` or `openat` could do so all the same. So the ring is born disabled, is told
//! what it is used for, and enabled: from then on every other operation, flag or registration fails
//! with `EACCES`, and nothing widens the list again (`io_uring_register(2)`,
//! `IORING_REGISTER_RESTRICTIONS`).

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};
use std::io;

/// What devices ask for.
const OPERATIONS: &[u8] = &[
    opcode::PollAdd::CODE,     // eventfds, sockets
    opcode::RecvMulti::CODE,   // sockets
    opcode::SendMsg::CODE,     // sockets
    opcode::Write::CODE,       // eventfds
    opcode::Readv::CODE,       // files of disks
    opcode::Writev::CODE,      // files of disks
    opcode::Fallocate::CODE,   // files of disks
    opcode::AsyncCancel::CODE, // a device that is reset
];
/// A completion that nobody needs is not told; a receive picks a buffer of the pool.
const FLAGS: squeue::Flags = squeue::Flags::SKIP_SUCCESS.union(squeue::Flags::BUFFER_SELECT);
/// `IORING_REGISTER_SYNC_CANCEL`: the end of a ring with operations in flight.
const SYNC_CANCEL: u8 = 24;

/// Restricts a disabled ring, and enables it.
pub(super) fn enable(uring: &IoUring) -> io::Result<()> {
    let mut allowed: Vec<_> = OPERATIONS
        .iter()
        .map(|op| Restriction::sqe_op(*op))
        .collect();
    allowed.push(Restriction::sqe_flags_allowed(FLAGS.bits()));
    allowed.push(Restriction::register_op(SYNC_CANCEL));
    uring.submitter().register_restrictions(&mut allowed)?;
    uring.submitter().register_enable_rings()
}

#[cfg(test)]
#[expect(unsafe_code, reason = "entries that no safe function makes")]
mod test {
    use super::super::build;
    use super::*;
    use rustix::io::Errno;
    use std::collections::BTreeSet;

    /// What the kernel answers to an entry of zeros, but for these two bytes.
    fn answer(uring: &mut IoUring, operation: u8, flags: u8) -> i32 {
        let mut bytes = [0_u8; size_of::<squeue::Entry>()];
        (bytes[0], bytes[1]) = (operation, flags);
        // SAFETY: an entry is plain bytes, for which every value is valid.
        let entry: squeue::Entry = unsafe { std::mem::transmute(bytes) };
        // SAFETY: the entry points to no memory.
        unsafe { uring.submission().push(&entry) }.unwrap();
        uring.submitter().submit_and_wait(1).unwrap();
        uring.completion().next().unwrap().result()
    }

    #[test]
    fn every_other_operation_and_flag_is_refused() {
        let mut uring = build().unwrap();
        enable(&uring).unwrap();
        let denied = -Errno::ACCESS.raw_os_error();
        let mut taken = BTreeSet::new();
        for operation in 0..=u8::MAX {
            let answer = answer(&mut uring, operation, 0);
            // Codes that this kernel does not know are invalid before they are forbidden.
            if answer != denied && answer != -Errno::INVAL.raw_os_error() {
                taken.insert(operation);
            }
        }
        let operations: BTreeSet<_> = OPERATIONS.iter().copied().collect();
        assert!(taken.is_subset(&operations), "{taken:?}");
        for operation in [
            opcode::Socket::CODE,
            opcode::OpenAt::CODE,
            opcode::Nop::CODE,
        ] {
            assert_eq!(answer(&mut uring, operation, 0), denied);
        }
        for flag in (0..8).map(|bit| 1 << bit) {
            let answer = answer(&mut uring, opcode::Write::CODE, flag);
            let refused = answer == denied || answer == -Errno::INVAL.raw_os_error();
            assert_eq!(
                refused,
                FLAGS.bits() & flag == 0,
                "flag {flag:#x}: {answer}"
            );
        }
    }

    #[test]
    fn a_ring_takes_nothing_before_it_is_restricted_and_no_second_list() {
        let uring = build().unwrap();
        let early = uring.submitter().submit_and_wait(0).unwrap_err();
        assert_eq!(early.raw_os_error(), Some(Errno::BADFD.raw_os_error()));
        enable(&uring).unwrap();
        enable(&uring).unwrap_err();
        uring.submitter().register_eventfd(0).unwrap_err();
    }
}
