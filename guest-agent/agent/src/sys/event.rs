//! Waiting: epoll, signals as a descriptor, the clock, the vsock connection.

use super::{Errno, Fd, Result, call, fd, nr, plain};

const EPOLL_CLOEXEC: usize = 0o2_000_000;
const EPOLL_CTL_ADD: usize = 1;
const EPOLLIN: u32 = 1;
const EPOLLPRI: u32 = 2;
const EPOLLOUT: u32 = 4;
const EPOLLERR: u32 = 8;
const EPOLLHUP: u32 = 16;
const EPOLLRDHUP: u32 = 0x2000;
const EPOLLET: u32 = 1 << 31;

/// `struct epoll_event`: packed on x86-64.
#[derive(Clone, Copy, Default)]
#[repr(C, packed)]
pub(crate) struct EpollEvent {
    events: u32,
    token: u64,
}

impl EpollEvent {
    pub(crate) const fn token(&self) -> u64 {
        self.token
    }
    /// A read would not block (also at the end, or after an error).
    pub(crate) const fn readable(&self) -> bool {
        self.events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP) != 0
    }
    /// The other side will send no more: after what is there comes the end.
    pub(crate) const fn ended(&self) -> bool {
        self.events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP) != 0
    }
    /// A write would not block (also when nobody reads any more).
    pub(crate) const fn writable(&self) -> bool {
        self.events & (EPOLLOUT | EPOLLERR | EPOLLHUP) != 0
    }
}

/// An epoll instance. Everything is edge-triggered: an event is reported once, and holds until a
/// call has said that it would block.
#[derive(Debug)]
pub(crate) struct Epoll(Fd);

impl Epoll {
    pub(crate) fn new() -> Result<Self> {
        plain(nr::EPOLL_CREATE1, &[EPOLL_CLOEXEC]).map(fd).map(Self)
    }

    /// Watches a descriptor until it is closed.
    pub(crate) fn add(&self, what: &Fd, token: u64, write: bool, read: bool) -> Result<()> {
        self.control(EPOLL_CTL_ADD, what, token, interest(write, read))
    }

    /// Watches a file of the kernel's that tells of its changes (`EPOLLPRI`).
    pub(crate) fn add_notified(&self, what: &Fd) -> Result<()> {
        self.control(EPOLL_CTL_ADD, what, 0, EPOLLPRI)
    }

    /// Watches a descriptor for something else from now on.
    pub(crate) fn change(&self, what: &Fd, token: u64, write: bool, read: bool) -> Result<()> {
        const EPOLL_CTL_MOD: usize = 3;
        self.control(EPOLL_CTL_MOD, what, token, interest(write, read))
    }

    fn control(&self, how: usize, what: &Fd, token: u64, interest: u32) -> Result<()> {
        let event = EpollEvent {
            events: EPOLLET | interest,
            token,
        };
        let at = (&raw const event).expose_provenance();
        // SAFETY: the kernel reads one event.
        unsafe { call(nr::EPOLL_CTL, [self.0.arg(), how, what.arg(), at, 0, 0]) }.map(drop)
    }

    /// Waits for events; `None` waits for ever. Returns how many there are.
    pub(crate) fn wait(&self, events: &mut [EpollEvent], timeout_ms: Option<u32>) -> usize {
        let timeout = timeout_ms.map_or(usize::MAX, |ms| usize::try_from(ms).unwrap_or(0));
        let at = events.as_mut_ptr().expose_provenance();
        // SAFETY: the kernel writes at most `events.len()` events.
        unsafe {
            call(
                nr::EPOLL_WAIT,
                [self.0.arg(), at, events.len(), timeout, 0, 0],
            )
        }
        .unwrap_or(0)
    }
}

const fn interest(write: bool, read: bool) -> u32 {
    let read = if read { EPOLLIN | EPOLLRDHUP } else { 0 };
    let write = if write { EPOLLOUT } else { 0 };
    read | write
}

/// Blocks every signal, and returns a descriptor that is readable when a child has ended.
pub(crate) fn child_signals() -> Result<Fd> {
    const SIG_SETMASK: usize = 2;
    const SFD_NONBLOCK_CLOEXEC: usize = 0o2_004_000;
    const SIGCHLD: u64 = 1 << 16;
    let all = u64::MAX;
    let child = SIGCHLD;
    // SAFETY: the kernel reads one 8-byte set.
    unsafe {
        call(
            nr::SIGPROCMASK,
            [
                SIG_SETMASK,
                (&raw const all).expose_provenance(),
                0,
                8,
                0,
                0,
            ],
        )
    }?;
    let mask = (&raw const child).expose_provenance();
    // SAFETY: the kernel reads one 8-byte set.
    unsafe {
        call(
            nr::SIGNALFD4,
            [usize::MAX, mask, 8, SFD_NONBLOCK_CLOEXEC, 0, 0],
        )
    }
    .map(fd)
}

const CLOCK_REALTIME: usize = 0;
const CLOCK_MONOTONIC: usize = 1;

fn clock(which: usize) -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: the kernel writes one `struct timespec`.
    let done = unsafe {
        call(
            nr::CLOCK_GETTIME,
            [which, time.as_mut_ptr().expose_provenance(), 0, 0, 0, 0],
        )
    };
    debug_assert!(done.is_ok(), "these clocks exist");
    time[0]
        .saturating_mul(1_000_000_000)
        .saturating_add(time[1])
}

/// Nanoseconds since boot.
pub(crate) fn monotonic_ns() -> u64 {
    clock(CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970.
pub(crate) fn wall_ns() -> u64 {
    clock(CLOCK_REALTIME)
}

/// How far the wall clock may be ahead, and is slowed down instead of set.
const SLOWED_NS: u64 = 500_000_000;

/// Sets the wall clock. One that is a little ahead is slowed down until it is right, so that no
/// program sees it go back: in a copy of a machine whose clock has drifted.
pub(crate) fn set_wall_ns(ns: u64) -> Result<()> {
    let ahead = wall_ns().saturating_sub(ns);
    if ahead > 0 && ahead <= SLOWED_NS {
        return slow_down(ahead);
    }
    let time = [ns / 1_000_000_000, ns % 1_000_000_000];
    // SAFETY: the kernel reads one `struct timespec`.
    unsafe {
        call(
            nr::CLOCK_SETTIME,
            [
                CLOCK_REALTIME,
                time.as_ptr().expose_provenance(),
                0,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

/// Has the kernel take so much off the wall clock, half a millisecond a second.
fn slow_down(ns: u64) -> Result<()> {
    const ADJ_OFFSET_SINGLESHOT: i64 = 0x8001;
    // `struct timex`: modes, offset in microseconds, and what is not used here.
    let mut request = [0i64; 26];
    request[0] = ADJ_OFFSET_SINGLESHOT;
    request[1] = -i64::try_from(ns / 1000).unwrap_or(0);
    let at = request.as_mut_ptr().expose_provenance();
    // SAFETY: the kernel reads and writes one 208-byte `struct timex`.
    unsafe { call(nr::ADJTIMEX, [at, 0, 0, 0, 0, 0]) }.map(drop)
}

const AF_VSOCK: usize = 40;
const SOCK_STREAM: usize = 1;
pub(super) const SOCK_NONBLOCK_CLOEXEC: usize = 0o2_004_000;

/// `struct sockaddr_vm`.
#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: u32,
}

/// Begins to connect to a port of the host; writable when it is decided. From a port that nobody
/// else in the guest may use without being its root: the host takes no call from another.
pub(crate) fn connect_host(port: u32) -> Result<Fd> {
    const HOST_CID: u32 = 2;
    let socket = fd(plain(
        nr::SOCKET,
        &[AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK_CLOEXEC, 0],
    )?);
    bind_privileged(&socket)?;
    match address_call(nr::CONNECT, &socket, HOST_CID, port) {
        Err(e) if e != Errno::INPROGRESS => Err(e),
        _ => Ok(socket),
    }
}

/// Takes the first free one of some privileged ports: that of a connection which was lost is in use
/// until the host has seen its end.
fn bind_privileged(socket: &Fd) -> Result<()> {
    const ANY_CID: u32 = u32::MAX;
    const LAST: u32 = 1023;
    const TRIED: u32 = 16;
    let mut bound = Err(Errno::ADDRINUSE);
    for port in (LAST + 1 - TRIED..=LAST).rev() {
        bound = address_call(nr::BIND, socket, ANY_CID, port);
        if bound != Err(Errno::ADDRINUSE) {
            break;
        }
    }
    bound
}

fn address_call(number: usize, socket: &Fd, cid: u32, port: u32) -> Result<()> {
    let address = SockaddrVm {
        family: 40,
        reserved: 0,
        port,
        cid,
        zero: 0,
    };
    let at = (&raw const address).expose_provenance();
    let size = size_of::<SockaddrVm>();
    // SAFETY: the kernel reads 16 bytes of address.
    unsafe { call(number, [socket.arg(), at, size, 0, 0, 0]) }.map(drop)
}

/// How the connecting ended.
pub(crate) fn socket_error(socket: &Fd) -> Result<()> {
    const SOL_SOCKET: usize = 1;
    const SO_ERROR: usize = 4;
    let mut error = 0i32;
    let mut len = 4u32;
    let (error_at, len_at) = (
        (&raw mut error).expose_provenance(),
        (&raw mut len).expose_provenance(),
    );
    // SAFETY: the kernel writes one int and its length.
    unsafe {
        call(
            nr::GETSOCKOPT,
            [socket.arg(), SOL_SOCKET, SO_ERROR, error_at, len_at, 0],
        )
    }?;
    if error == 0 {
        Ok(())
    } else {
        Err(Errno(error))
    }
}
