//! The parts of userfaultfd that the crate of that name lacks and two of ours need.
#![expect(unsafe_code, reason = "an ioctl on a structure of ours")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFD_API: u64 = 0xaa;
/// Write protection.
pub(crate) const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
/// The kernel lifts it by itself, at the first write. Linux 6.7, as `PAGEMAP_SCAN` is.
pub(crate) const WP_ASYNC: u64 = 1 << 15;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// Asks a new userfaultfd for features; before that it can do nothing.
pub(crate) fn prepare(fd: &OwnedFd, features: u64) -> io::Result<()> {
    let mut api = UffdioApi {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: `api` is the structure this request takes and fills.
    match unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_number_is_the_kernels() {
        let size = size_of::<UffdioApi>() as libc::c_ulong;
        assert_eq!(UFFDIO_API, 3 << 30 | size << 16 | 0xaa00 | 0x3f);
    }
}
