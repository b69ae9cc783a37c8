//! Descriptors and file systems.
#![expect(
    unsafe_code,
    reason = "close_range closes descriptors it does not own; libc has no call for Landlock"
)]

use crate::error::JailError;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetStatus, Scope,
};

/// Closes every descriptor from `first` on. To be called at the start of `main`, before anything
/// is opened.
///
/// # Errors
/// From `close_range` (Linux 5.9).
///
/// # Safety
/// Nothing in this process may own a descriptor from `first` on.
pub unsafe fn close_inherited(first: u32) -> Result<(), JailError> {
    // SAFETY: the call takes plain numbers; the caller promises that nobody loses a descriptor.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if done == 0 {
        return Ok(());
    }
    let source = std::io::Error::last_os_error();
    Err(JailError::System {
        what: "close inherited descriptors",
        source,
    })
}

/// The least version of Landlock that forbids files and TCP ports (Linux 6.7).
pub const LANDLOCK_VERSION: u32 = 4;

/// The version of Landlock that the kernel has: 0 for none, 3 knows all of files, 4 (Linux 6.7) TCP
/// ports, 6 (Linux 6.12) abstract sockets and signals.
#[must_use]
pub fn landlock_version() -> u32 {
    const CREATE_RULESET_VERSION: u32 = 1;
    let no_attributes = std::ptr::null::<u8>();
    // SAFETY: with this flag the call takes no memory, makes nothing, and returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            no_attributes,
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Takes away every right to the file system and to TCP ports, and to reach sockets and processes
/// outside. Open descriptors keep working. Holds for the calling thread and the threads it starts
/// afterwards. Tells whether the kernel enforces it; older ones know less: see
/// [`landlock_version`].
///
/// # Errors
/// [`JailError::Landlock`]. A kernel without Landlock is no error, see the result.
pub fn forbid_files_and_network() -> Result<bool, JailError> {
    forbid(AccessNet::from_all(ABI::V6))
}

/// As [`forbid_files_and_network`], for a process whose work is to connect to other hosts: it may
/// connect to TCP ports, and bind none.
///
/// # Errors
/// [`JailError::Landlock`]. A kernel without Landlock is no error, see the result.
pub fn forbid_files_and_servers() -> Result<bool, JailError> {
    forbid(AccessNet::BindTcp.into())
}

fn forbid(network: BitFlags<AccessNet>) -> Result<bool, JailError> {
    let abi = ABI::V6;
    let apply = || -> Result<RestrictionStatus, landlock::RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(network)?
            .scope(Scope::from_all(abi))?
            .create()?
            .restrict_self()
    };
    let status = apply().map_err(JailError::Landlock)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn open_files_stay_and_no_other_can_be_had() {
        // Landlock holds for a thread and its children, so this test costs only its own thread.
        let test = std::thread::spawn(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut open = File::open("/proc/self/status").unwrap();
            if landlock_version() < 4 || !forbid_files_and_network().unwrap() {
                eprintln!("skipped: this kernel has no (full) Landlock");
                return;
            }
            let denied = |kind| assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
            denied(File::open("/proc/self/status").unwrap_err().kind());
            denied(
                TcpStream::connect(listener.local_addr().unwrap())
                    .unwrap_err()
                    .kind(),
            );
            open.read_exact(&mut [0; 4]).unwrap();
        });
        test.join().unwrap();
    }

    #[test]
    fn who_may_connect_has_no_file_and_is_no_server() {
        let test = std::thread::spawn(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            if landlock_version() < 4 || !forbid_files_and_servers().unwrap() {
                eprintln!("skipped: this kernel has no (full) Landlock");
                return;
            }
            let denied = |kind| assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
            denied(File::open("/proc/self/status").unwrap_err().kind());
            denied(TcpListener::bind("127.0.0.1:0").unwrap_err().kind());
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        });
        test.join().unwrap();
    }
}
