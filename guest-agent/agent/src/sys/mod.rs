//! The system calls the agent makes, x86-64 Linux.
//!
//! There is no libc and no wrapper crate: a wrapper that other members of the workspace use with
//! `std` would, by feature unification, bring `std` into this program as well. Each function here
//! is one call: slices, [`Fd`]s and C strings in, values out, the kernel's number as the error.
//! Everything unsafe of the agent is in this folder.

#![expect(unsafe_code, reason = "system calls and the C runtime's few symbols")]

pub(crate) mod event;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod network;
pub(crate) mod runtime;
pub(crate) mod sock_diag;
pub(crate) mod spawn;
mod start;
pub(crate) mod system;
pub(crate) mod tcp;

use core::arch::asm;
use core::ffi::CStr;

/// The kernel's error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const PERM: Self = Self(1);
    pub(crate) const NOENT: Self = Self(2);
    pub(crate) const SRCH: Self = Self(3);
    pub(crate) const INTR: Self = Self(4);
    pub(crate) const IO: Self = Self(5);
    pub(crate) const NXIO: Self = Self(6);
    pub(crate) const TOOBIG: Self = Self(7);
    pub(crate) const NOEXEC: Self = Self(8);
    pub(crate) const CHILD: Self = Self(10);
    pub(crate) const AGAIN: Self = Self(11);
    pub(crate) const NOMEM: Self = Self(12);
    pub(crate) const ACCES: Self = Self(13);
    pub(crate) const BUSY: Self = Self(16);
    pub(crate) const EXIST: Self = Self(17);
    pub(crate) const XDEV: Self = Self(18);
    pub(crate) const NOTDIR: Self = Self(20);
    pub(crate) const ISDIR: Self = Self(21);
    pub(crate) const INVAL: Self = Self(22);
    pub(crate) const NFILE: Self = Self(23);
    pub(crate) const MFILE: Self = Self(24);
    pub(crate) const FBIG: Self = Self(27);
    pub(crate) const NOSPC: Self = Self(28);
    pub(crate) const ROFS: Self = Self(30);
    pub(crate) const NAMETOOLONG: Self = Self(36);
    pub(crate) const NOTEMPTY: Self = Self(39);
    pub(crate) const LOOP: Self = Self(40);
    pub(crate) const NOTSUP: Self = Self(95);
    pub(crate) const ADDRINUSE: Self = Self(98);
    pub(crate) const TIMEDOUT: Self = Self(110);
    pub(crate) const INPROGRESS: Self = Self(115);
    pub(crate) const STALE: Self = Self(116);
    pub(crate) const DQUOT: Self = Self(122);
}

/// A call's outcome.
pub(crate) type Result<T> = core::result::Result<T, Errno>;

/// An open descriptor, closed when dropped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fd(i32);

impl Fd {
    /// Takes a descriptor this program was started with.
    pub(crate) const fn inherited(fd: i32) -> Self {
        Self(fd)
    }

    pub(crate) const fn raw(&self) -> i32 {
        self.0
    }

    fn arg(&self) -> usize {
        signed(self.0)
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and nobody uses it afterwards.
        let _ = unsafe { call(nr::CLOSE, [self.arg(), 0, 0, 0, 0, 0]) };
    }
}

/// Numbers of the calls.
pub(crate) mod nr {
    macro_rules! numbers { ($($name:ident $n:literal)*) => {
        $(pub(crate) const $name: usize = $n;)*
    } }
    numbers! {
        READ 0 WRITE 1 CLOSE 3 FSTAT 5 LSEEK 8 MMAP 9 MUNMAP 11 SIGPROCMASK 14 IOCTL 16 PREAD64 17
        DUP2 33
        GETPID 39 SOCKET 41 CONNECT 42 SHUTDOWN 48 BIND 49 SETSOCKOPT 54 GETSOCKOPT 55 EXECVE 59
        KILL 62 FCNTL 72 FTRUNCATE 77
        CHDIR 80 FCHOWN 93 UMASK 95 SYSINFO 99 SETSID 112 SETGROUPS 116 SETRESUID 117 SETRESGID 119
        SETFSUID 122 SETFSGID 123
        STATFS 137 PRCTL 157 ADJTIMEX 159 CHROOT 161 SYNC 162 MOUNT 165 REBOOT 169 SETHOSTNAME 170
        GETDENTS64 217 CLOCK_SETTIME 227 CLOCK_GETTIME 228 EXIT_GROUP 231 EPOLL_WAIT 232
        EPOLL_CTL 233 WAITID 247 OPENAT 257 MKDIRAT 258 FCHOWNAT 260 NEWFSTATAT 262 UNLINKAT 263
        SYMLINKAT 266 READLINKAT 267 FCHMODAT 268 SIGNALFD4 289 EPOLL_CREATE1 291 PIPE2 293
        PRLIMIT64 302
        RENAMEAT2 316 PIDFD_OPEN 434 CLONE3 435 CLOSE_RANGE 436
    }
}

/// `AT_FDCWD`.
pub(crate) const CWD: usize = signed(-100);

/// A signed number as the kernel expects it in a register.
pub(crate) const fn signed(v: i32) -> usize {
    (v as isize).cast_unsigned()
}

/// A system call.
///
/// # Safety
/// Whatever the call demands of its arguments: pointers valid for as much as it reads or writes.
#[inline]
pub(crate) unsafe fn call(n: usize, a: [usize; 6]) -> Result<usize> {
    let ret: isize;
    // SAFETY: the registers are those of the x86-64 system call convention; memory is as promised
    // by the caller.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") n => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    match usize::try_from(ret) {
        Ok(v) => Ok(v),
        Err(_) => Err(Errno(i32::try_from(-ret).unwrap_or(Errno::IO.0))),
    }
}

/// A call whose arguments are numbers only.
fn plain(n: usize, a: &[usize]) -> Result<usize> {
    let mut all = [0; 6];
    all[..a.len()].copy_from_slice(a);
    // SAFETY: used in this module for calls that touch no memory of ours.
    unsafe { call(n, all) }
}

/// A call with a path first after a directory.
fn at(n: usize, dir: usize, path: &CStr, rest: [usize; 3]) -> Result<usize> {
    // SAFETY: the path is NUL-terminated and outlives the call; `rest` are numbers.
    unsafe {
        call(
            n,
            [
                dir,
                path.as_ptr().expose_provenance(),
                rest[0],
                rest[1],
                rest[2],
                0,
            ],
        )
    }
}

fn fd(v: usize) -> Fd {
    Fd(i32::try_from(v).unwrap_or(-1))
}

/// A call with a descriptor that fills the front of `buf`, and says how much of it; `last` is a
/// number.
fn fill(n: usize, fd: &Fd, buf: &mut [u8], last: usize) -> Result<usize> {
    let at = buf.as_mut_ptr().expose_provenance();
    // SAFETY: used in this module for calls that write at most `buf.len()` bytes to `buf`.
    unsafe { call(n, [fd.arg(), at, buf.len(), last, 0, 0]) }
}

pub(crate) fn read(fd: &Fd, buf: &mut [u8]) -> Result<usize> {
    fill(nr::READ, fd, buf, 0)
}

pub(crate) fn write(fd: &Fd, buf: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most `buf.len()` bytes of `buf`.
    unsafe {
        call(
            nr::WRITE,
            [
                fd.arg(),
                buf.as_ptr().expose_provenance(),
                buf.len(),
                0,
                0,
                0,
            ],
        )
    }
}

/// Writes all of it, or fails.
pub(crate) fn write_all(fd: &Fd, mut buf: &[u8]) -> Result<()> {
    while !buf.is_empty() {
        match write(fd, buf) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => buf = &buf[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
