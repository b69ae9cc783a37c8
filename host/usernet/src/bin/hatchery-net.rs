//! `hatchery-net`: the network of one sandbox. Its standard input is the frames, its standard
//! output the service's socket; the end of either ends it.

use control::{JailMode, NET_CONTROL_FD, NET_FRAMES_FD};
use std::error::Error;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use usernet::NetUser;

const USAGE: &str = "\
Usage: hatchery-net [--uid N --gid N] [--jail required|degraded]
  Standard input: frames, one a message (SOCK_SEQPACKET). Standard output: control socket.
  --uid, --gid  the user that it becomes; needed when it is started as root
  --jail        degraded: also where the kernel has no Landlock for files and TCP ports";

/// Buffers of flows are given back to the kernel when they end, and cost nothing before they are
/// used: both need mappings of their own.
const OWN_MAPPING: i32 = 16 * 1024;

/// After the three standard descriptors.
const FIRST_INHERITED: u32 = 3;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words == ["--version"] {
        eprintln!("hatchery-net {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hatchery-net: {}", control::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<(), Box<dyn Error>> {
    let (user, mode) = arguments(words)?;
    let (frames, control) = descriptors()?;
    usernet::confine(user, mode)?;
    Ok(usernet::serve(frames, control)?)
}

fn arguments(words: &[String]) -> Result<(Option<NetUser>, JailMode), Box<dyn Error>> {
    let (mut user, mut group, mut mode) = (None, None, JailMode::Required);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or(USAGE)?;
        match word.as_str() {
            "--uid" => user = Some(value.parse()?),
            "--gid" => group = Some(value.parse()?),
            "--jail" => mode = value.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    match (user, group) {
        (Some(user), Some(group)) => Ok((Some(NetUser { user, group }), mode)),
        (None, None) => Ok((None, mode)),
        _ => Err(USAGE.into()),
    }
}

/// Takes its two sockets, and leaves nothing else of the parent's open. Sets how memory is asked
/// for.
#[expect(
    unsafe_code,
    reason = "descriptors by number, and the C library's allocator"
)]
fn descriptors() -> Result<(OwnedFd, OwnedFd), Box<dyn Error>> {
    // SAFETY: this is the start of the program; it has opened nothing, so nobody owns these.
    unsafe { jail::close_inherited(FIRST_INHERITED)? };
    // SAFETY: sets a number of the allocator's.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING) };
    for fd in [NET_FRAMES_FD, NET_CONTROL_FD] {
        // SAFETY: the call takes plain numbers and only looks.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(format!("descriptor {fd} is not open\n{USAGE}").into());
        }
    }
    // SAFETY: it is open, and nobody else's.
    let frames = unsafe { OwnedFd::from_raw_fd(NET_FRAMES_FD) };
    // SAFETY: it is open, and nobody else's.
    let control = unsafe { OwnedFd::from_raw_fd(NET_CONTROL_FD) };
    Ok((frames, control))
}
