//! Files and directories.

use super::{CWD, Errno, Fd, Result, at, call, fd, fill, nr, plain, signed, write};
use core::ffi::CStr;

pub(crate) const O_RDONLY: usize = 0;
pub(crate) const O_WRONLY: usize = 1;
pub(crate) const O_RDWR: usize = 2;
pub(crate) const O_CREAT: usize = 0o100;
pub(crate) const O_EXCL: usize = 0o200;
pub(crate) const O_NOCTTY: usize = 0o400;
pub(crate) const O_APPEND: usize = 0o2000;
pub(crate) const O_NONBLOCK: usize = 0o4000;
pub(crate) const O_DIRECTORY: usize = 0o200_000;
pub(crate) const O_NOFOLLOW: usize = 0o400_000;
pub(crate) const O_CLOEXEC: usize = 0o2_000_000;
pub(crate) const O_PATH: usize = 0o10_000_000;

const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const AT_REMOVEDIR: usize = 0x200;

pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;

/// `struct stat`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct FileStat {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    nlink: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pad: u32,
    rdev: u64,
    pub(crate) size: i64,
    blksize: i64,
    blocks: i64,
    atime: [i64; 2],
    pub(crate) mtime: [i64; 2],
    pub(crate) ctime: [i64; 2],
    unused: [i64; 3],
}

impl FileStat {
    pub(crate) const fn is(&self, kind: u32) -> bool {
        self.mode & S_IFMT == kind
    }
}

const _: () = assert!(size_of::<FileStat>() == 144);

/// Where a path starts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PathBase<'a> {
    /// At the root or the working directory.
    Cwd,
    /// In this directory.
    At(&'a Fd),
}

impl PathBase<'_> {
    fn arg(self) -> usize {
        match self {
            Self::Cwd => CWD,
            Self::At(fd) => signed(fd.raw()),
        }
    }
}

/// Opens; always close-on-exec.
pub(crate) fn open(dir: PathBase<'_>, path: &CStr, flags: usize, mode: u32) -> Result<Fd> {
    let mode = usize::try_from(mode).unwrap_or(0);
    loop {
        match at(nr::OPENAT, dir.arg(), path, [flags | O_CLOEXEC, mode, 0]) {
            Err(Errno::INTR) => {}
            other => return other.map(fd),
        }
    }
}

pub(crate) fn fstat(file: &Fd) -> Result<FileStat> {
    let mut stat = FileStat::default();
    // SAFETY: the kernel fills one `struct stat`.
    unsafe {
        call(
            nr::FSTAT,
            [file.arg(), (&raw mut stat).expose_provenance(), 0, 0, 0, 0],
        )
    }?;
    Ok(stat)
}

/// What is at a path; with `follow`, behind links.
pub(crate) fn stat(dir: PathBase<'_>, path: &CStr, follow: bool) -> Result<FileStat> {
    let mut stat = FileStat::default();
    let flags = if follow { 0 } else { AT_SYMLINK_NOFOLLOW };
    at(
        nr::NEWFSTATAT,
        dir.arg(),
        path,
        [(&raw mut stat).expose_provenance(), flags, 0],
    )?;
    Ok(stat)
}

pub(crate) fn readlink<'a>(dir: PathBase<'_>, path: &CStr, buf: &'a mut [u8]) -> Result<&'a [u8]> {
    let n = at(
        nr::READLINKAT,
        dir.arg(),
        path,
        [buf.as_mut_ptr().expose_provenance(), buf.len(), 0],
    )?;
    buf.get(..n).ok_or(Errno::NAMETOOLONG)
}

pub(crate) fn mkdir(dir: PathBase<'_>, path: &CStr, mode: u32) -> Result<()> {
    at(
        nr::MKDIRAT,
        dir.arg(),
        path,
        [usize::try_from(mode).unwrap_or(0), 0, 0],
    )
    .map(drop)
}

pub(crate) fn unlink(dir: PathBase<'_>, path: &CStr) -> Result<()> {
    at(nr::UNLINKAT, dir.arg(), path, [0; 3]).map(drop)
}

pub(crate) fn rmdir(dir: PathBase<'_>, path: &CStr) -> Result<()> {
    at(nr::UNLINKAT, dir.arg(), path, [AT_REMOVEDIR, 0, 0]).map(drop)
}

pub(crate) fn symlink(target: &CStr, path: &CStr) -> Result<()> {
    // SAFETY: both strings are terminated and outlive the call.
    unsafe {
        call(
            nr::SYMLINKAT,
            [
                target.as_ptr().expose_provenance(),
                CWD,
                path.as_ptr().expose_provenance(),
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

pub(crate) fn rename(from: PathBase<'_>, old: &CStr, to: PathBase<'_>, new: &CStr) -> Result<()> {
    let (old, new) = (
        old.as_ptr().expose_provenance(),
        new.as_ptr().expose_provenance(),
    );
    // SAFETY: both strings are terminated and outlive the call.
    unsafe { call(nr::RENAMEAT2, [from.arg(), old, to.arg(), new, 0, 0]) }.map(drop)
}

fn id(v: u32) -> usize {
    usize::try_from(v).unwrap_or(usize::MAX)
}

pub(crate) fn fchown(file: &Fd, uid: u32, gid: u32) -> Result<()> {
    plain(nr::FCHOWN, &[file.arg(), id(uid), id(gid)]).map(drop)
}

/// Changes the owner of a directory entry itself.
pub(crate) fn lchown(dir: PathBase<'_>, path: &CStr, uid: u32, gid: u32) -> Result<()> {
    at(
        nr::FCHOWNAT,
        dir.arg(),
        path,
        [id(uid), id(gid), AT_SYMLINK_NOFOLLOW],
    )
    .map(drop)
}

pub(crate) fn chmod(path: &CStr, mode: u32) -> Result<()> {
    at(nr::FCHMODAT, CWD, path, [id(mode), 0, 0]).map(drop)
}

pub(crate) fn truncate(file: &Fd) -> Result<()> {
    plain(nr::FTRUNCATE, &[file.arg(), 0]).map(drop)
}

/// Reads from a place of the file; the position stays.
pub(crate) fn read_at(file: &Fd, buf: &mut [u8], offset: usize) -> Result<usize> {
    fill(nr::PREAD64, file, buf, offset)
}

/// Opens a small file that is there, as those of the kernel's settings, and writes to it.
pub(crate) fn write_setting(dir: PathBase<'_>, path: &CStr, value: &str) -> Result<()> {
    let file = open(dir, path, O_WRONLY, 0)?;
    write(&file, value.as_bytes()).map(drop)
}

/// Does `work` on files with the rights of this user and group, and no more.
pub(crate) fn as_user<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> T {
    // Root may take any; neither call has another failure.
    let _ = plain(nr::SETFSGID, &[id(gid)]);
    let _ = plain(nr::SETFSUID, &[id(uid)]);
    let done = work();
    let _ = plain(nr::SETFSUID, &[0]);
    let _ = plain(nr::SETFSGID, &[0]);
    done
}

/// Sets the position from the start.
pub(crate) fn seek(file: &Fd, offset: i64) -> Result<()> {
    let offset = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
    plain(nr::LSEEK, &[file.arg(), offset, 0]).map(drop)
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirEntry<'a> {
    /// Position after it, for [`seek`].
    pub(crate) next: i64,
    /// The kernel's hint of what it is; 0 when the file system does not say.
    pub(crate) kind: u8,
    /// Its name.
    pub(crate) name: &'a CStr,
}

pub(crate) const DT_UNKNOWN: u8 = 0;
pub(crate) const DT_DIR: u8 = 4;

/// Reads directory entries into `buf`; 0 at the end.
pub(crate) fn getdents(dir: &Fd, buf: &mut [u8]) -> Result<usize> {
    fill(nr::GETDENTS64, dir, buf, 0)
}

/// The entry at the front of what [`getdents`] read, and what follows it.
pub(crate) fn dirent(bytes: &[u8]) -> Option<(DirEntry<'_>, &[u8])> {
    let next = i64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
    let len = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let kind = *bytes.get(18)?;
    let name = CStr::from_bytes_until_nul(bytes.get(19..len)?).ok()?;
    Some((DirEntry { next, kind, name }, &bytes[len..]))
}

/// Bytes of a file system: all of them, and those a user can still have.
pub(crate) fn disk_space(path: &CStr) -> Result<(u64, u64)> {
    let mut statfs = [0u64; 15];
    // SAFETY: `struct statfs` has 120 bytes.
    unsafe {
        call(
            nr::STATFS,
            [
                path.as_ptr().expose_provenance(),
                statfs.as_mut_ptr().expose_provenance(),
                0,
                0,
                0,
                0,
            ],
        )
    }?;
    let [_, block, blocks, _, available, ..] = statfs;
    Ok((
        block.saturating_mul(blocks),
        block.saturating_mul(available),
    ))
}

/// Writes everything to the disks.
pub(crate) fn sync() {
    let _ = plain(nr::SYNC, &[]);
}

/// A pipe: its reading and its writing end.
pub(crate) fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [0i32; 2];
    // SAFETY: the kernel writes two descriptors.
    unsafe {
        call(
            nr::PIPE2,
            [ends.as_mut_ptr().expose_provenance(), O_CLOEXEC, 0, 0, 0, 0],
        )
    }?;
    Ok((Fd::inherited(ends[0]), Fd::inherited(ends[1])))
}

/// Makes a pipe's end or a socket non-blocking, which is the only flag such a one has here.
pub(crate) fn set_nonblocking(file: &Fd) -> Result<()> {
    const F_SETFL: usize = 4;
    plain(nr::FCNTL, &[file.arg(), F_SETFL, O_NONBLOCK]).map(drop)
}

/// Bytes that can be read now.
pub(crate) fn readable(file: &Fd) -> Result<u32> {
    const FIONREAD: usize = 0x541b;
    let mut n = 0u32;
    // SAFETY: the kernel writes one int.
    unsafe {
        call(
            nr::IOCTL,
            [
                file.arg(),
                FIONREAD,
                (&raw mut n).expose_provenance(),
                0,
                0,
                0,
            ],
        )
    }?;
    Ok(n)
}

/// A new terminal: the master, and the slave for the process.
pub(crate) fn open_pty() -> Result<(Fd, Fd)> {
    const TIOCSPTLCK: usize = 0x4004_5431;
    const TIOCGPTPEER: usize = 0x5441;
    let master = open(
        PathBase::Cwd,
        c"/dev/ptmx",
        O_RDWR | O_NOCTTY | O_NONBLOCK,
        0,
    )?;
    let unlocked = 0i32;
    // SAFETY: the kernel reads one int.
    unsafe {
        call(
            nr::IOCTL,
            [
                master.arg(),
                TIOCSPTLCK,
                (&raw const unlocked).expose_provenance(),
                0,
                0,
                0,
            ],
        )
    }?;
    let slave = plain(
        nr::IOCTL,
        &[master.arg(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC],
    )?;
    Ok((master, fd(slave)))
}

/// Sets the size of a terminal.
pub(crate) fn set_window(pty: &Fd, cols: u16, rows: u16) -> Result<()> {
    const TIOCSWINSZ: usize = 0x5414;
    let size = [rows, cols, 0, 0];
    // SAFETY: the kernel reads four u16.
    unsafe {
        call(
            nr::IOCTL,
            [
                pty.arg(),
                TIOCSWINSZ,
                size.as_ptr().expose_provenance(),
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

/// Closes every descriptor but the standard ones when a program is executed.
pub(crate) fn close_others_on_exec() -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    const LAST: usize = 0xffff_ffff;
    plain(nr::CLOSE_RANGE, &[3, LAST, CLOSE_RANGE_CLOEXEC]).map(drop)
}

/// Makes descriptor `number` the same file as `file`; it stays open in executed programs.
pub(crate) fn replace(file: &Fd, number: usize) -> Result<()> {
    plain(nr::DUP2, &[file.arg(), number]).map(drop)
}
