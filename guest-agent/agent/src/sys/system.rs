//! The machine: mounts, name, randomness, memory figures, power.

use super::{Fd, Result, call, nr, plain, signed};
use agent_core::FixedText;
use core::ffi::CStr;

pub(crate) const MS_NOSUID: usize = 2;
pub(crate) const MS_NODEV: usize = 4;
pub(crate) const MS_NOEXEC: usize = 8;
pub(crate) const MS_NOATIME: usize = 1024;
pub(crate) const MS_BIND: usize = 4096;
pub(crate) const MS_MOVE: usize = 8192;

/// Mounts; empty strings stand for absent arguments.
pub(crate) fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: usize,
    data: &CStr,
) -> Result<()> {
    let arg = |s: &CStr| {
        if s.is_empty() {
            0
        } else {
            s.as_ptr().expose_provenance()
        }
    };
    let args = [arg(source), arg(target), arg(kind), flags, arg(data), 0];
    // SAFETY: null, or terminated strings that outlive the call.
    unsafe { call(nr::MOUNT, args) }.map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: a terminated string that outlives the call.
    unsafe {
        call(
            nr::CHDIR,
            [path.as_ptr().expose_provenance(), 0, 0, 0, 0, 0],
        )
    }
    .map(drop)
}

pub(crate) fn chroot(path: &CStr) -> Result<()> {
    // SAFETY: a terminated string that outlives the call.
    unsafe {
        call(
            nr::CHROOT,
            [path.as_ptr().expose_provenance(), 0, 0, 0, 0, 0],
        )
    }
    .map(drop)
}

/// Bytes of memory the kernel manages.
pub(crate) fn memory_bytes() -> Result<u64> {
    let mut info = [0u64; 14];
    // SAFETY: `struct sysinfo` has 112 bytes.
    unsafe {
        call(
            nr::SYSINFO,
            [info.as_mut_ptr().expose_provenance(), 0, 0, 0, 0, 0],
        )
    }?;
    // uptime, three loads, then the total, in units given by the u32 at byte 104: 1 on x86-64
    Ok(info[4])
}

/// Limits the open files of this process and those it will start.
pub(crate) fn limit_open_files(soft: u64, hard: u64) -> Result<()> {
    const RLIMIT_NOFILE: usize = 7;
    let pair = [soft, hard];
    let at = pair.as_ptr().expose_provenance();
    // SAFETY: the kernel reads one `struct rlimit`.
    unsafe { call(nr::PRLIMIT64, [0, RLIMIT_NOFILE, at, 0, 0, 0]) }.map(drop)
}

/// Sets the file mode creation mask.
pub(crate) fn umask(mask: usize) {
    let _ = plain(nr::UMASK, &[mask]);
}

pub(crate) fn set_hostname(name: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `name.len()` bytes.
    unsafe {
        call(
            nr::SETHOSTNAME,
            [name.as_ptr().expose_provenance(), name.len(), 0, 0, 0, 0],
        )
    }
    .map(drop)
}

pub(crate) fn pid() -> usize {
    plain(nr::GETPID, &[]).unwrap_or(0)
}

/// Makes this process the parent of its orphaned descendants, as PID 1 is of all.
pub(crate) fn adopt_orphans() {
    const PR_SET_CHILD_SUBREAPER: usize = 36;
    let _ = plain(nr::PRCTL, &[PR_SET_CHILD_SUBREAPER, 1]);
}

/// Restarts the machine; a VM ends by it.
pub(crate) fn restart() {
    const MAGIC1: usize = 0xfee1_dead;
    const MAGIC2: usize = 672_274_793;
    const RESTART: usize = 0x0123_4567;
    let _ = plain(nr::REBOOT, &[MAGIC1, MAGIC2, RESTART]);
}

/// Mixes bytes into the kernel's random pool, all of them counted as random, and makes the
/// generator take from the pool now.
pub(crate) fn add_entropy(random: &Fd, bytes: &[u8]) -> Result<()> {
    const RNDADDENTROPY: usize = 0x4008_5203;
    const RNDRESEEDCRNG: usize = 0x5207;
    #[repr(C)]
    struct PoolInfo {
        bits: u32,
        len: u32,
        bytes: [u8; wire::MAX_ENTROPY],
    }
    let n = bytes.len().min(wire::MAX_ENTROPY);
    let len = u32::try_from(n).unwrap_or(0);
    let mut info = PoolInfo {
        bits: 8 * len,
        len,
        bytes: [0; wire::MAX_ENTROPY],
    };
    info.bytes[..n].copy_from_slice(&bytes[..n]);
    let random = signed(random.raw());
    // SAFETY: the kernel reads the header and `len` bytes.
    unsafe {
        call(
            nr::IOCTL,
            [
                random,
                RNDADDENTROPY,
                (&raw const info).expose_provenance(),
                0,
                0,
                0,
            ],
        )
    }?;
    plain(nr::IOCTL, &[random, RNDRESEEDCRNG]).map(drop)
}

/// Says something to whoever reads the log: the kernel's log, or standard error in test mode.
pub(crate) fn log(message: core::fmt::Arguments<'_>) {
    let line = FixedText::<256>::of(format_args!("<6>hatchery-agent: {message}\n"));
    let log = core::mem::ManuallyDrop::new(Fd::inherited(2));
    let _ = super::write_all(&log, line.as_str().as_bytes());
}
