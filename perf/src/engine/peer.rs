//! What all other engines have in common: a process that boots the same kernel, agent and disk, is
//! saved to files, and begins again from them; and a connection to its agent.

use super::{GuestSpec, now_ns};
use crate::agent::{AgentClient, AgentReady};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// What a guest is told on its kernel's command line.
pub(super) const CMDLINE: &str = "quiet panic=-1 reboot=k rdinit=/init";
/// How long anything of an engine may take. Where instructions are counted a second is a billion.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks for a socket.
const LOOK: Duration = Duration::from_micros(200);

/// A byte stream to an agent, whatever carries it.
pub(crate) trait GuestStream: Read + Write + Send {}
impl<T: Read + Write + Send> GuestStream for T {}

/// An engine that is measured beside ours.
pub(crate) trait PeerEngine {
    /// Its name in records.
    fn name(&self) -> &'static str;
    /// Boots the guest, with its files in `place`, and waits for its agent.
    fn boot(&self, guest: &GuestSpec, place: &Path) -> Result<PeerVm>;
    /// Saves an idle machine into `place`, and ends it.
    fn save(&self, machine: PeerVm, place: &Path) -> Result<()>;
    /// Starts a process, has it begin where a machine was saved, and waits for its agent.
    fn restore(&self, guest: &GuestSpec, place: &Path) -> Result<PeerVm>;
}

/// A running machine of a peer; killed when dropped.
pub(crate) struct PeerVm {
    pub(super) process: PeerProcess,
    /// Its agent.
    pub(crate) agent: AgentClient<Box<dyn GuestStream>>,
    /// When the agent came about, as it says.
    pub(crate) ready: AgentReady,
    /// When the process was asked for, answered, stood loaded or booting, and its agent had
    /// greeted.
    pub(crate) times: [u64; 4],
}

/// A process that does not outlive this.
pub(super) struct PeerProcess(pub(super) Child);

impl Drop for PeerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl PeerVm {
    /// The process to count.
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Kills the process and waits until it is gone.
    pub(crate) fn end(mut self) -> Result<()> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        Ok(())
    }
}

impl PeerProcess {
    /// Connects to a socket that the process is about to make.
    pub(super) fn connect(&mut self, path: &Path) -> Result<UnixStream> {
        let begin_ns = now_ns();
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
                Err(error) => {
                    self.lives()?;
                    if u128::from(now_ns() - begin_ns) > PATIENCE.as_nanos() {
                        let what = format!("No socket {} within {PATIENCE:?}", path.display());
                        return Err(error).context(what);
                    }
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    fn lives(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            Some(status) => bail!("The engine ended: {status}"),
            None => Ok(()),
        }
    }

    /// Waits for a connection, but not for a process that has ended. `accept` must not block.
    pub(super) fn accept<S>(
        &mut self,
        listener: &impl AsFd,
        mut accept: impl FnMut() -> std::io::Result<S>,
    ) -> Result<S> {
        let begin_ns = now_ns();
        loop {
            match accept() {
                Ok(stream) => return Ok(stream),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("Accepting the agent's connection"),
            }
            self.lives()?;
            if u128::from(now_ns() - begin_ns) > PATIENCE.as_nanos() {
                bail!("The guest's agent does not come within {PATIENCE:?}");
            }
            let timeout = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            let mut fds = [PollFd::new(listener, PollFlags::IN)];
            poll(&mut fds, Some(&timeout))?;
        }
    }

    /// The agent that connects to `listener`, greeted.
    pub(super) fn agent(
        &mut self,
        listener: &UnixListener,
    ) -> Result<(AgentClient<Box<dyn GuestStream>>, AgentReady)> {
        let accept = || listener.accept().map(|(stream, _)| stream);
        let stream = self.accept(listener, accept)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        AgentClient::greet(Box::new(stream))
    }
}

/// Where a peer's `vsock` socket is: guests' connections to a port go to this path, `_` and the
/// port.
pub(super) fn vsock_path(place: &Path) -> PathBuf {
    place.join("vsock")
}

/// Listens for the guest's agent, in the way that Firecracker and Cloud Hypervisor share.
pub(super) fn listen(place: &Path) -> Result<UnixListener> {
    let socket = vsock_path(place);
    let path = PathBuf::from(format!("{}_{}", socket.display(), wire::AGENT_PORT));
    for old in [&socket, &path] {
        remove(old)?;
    }
    let listener = UnixListener::bind(&path);
    let listener = listener.with_context(|| format!("Listening on {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A hardware address as engines are told it.
pub(super) fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// Removes a file that an earlier process may have left.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("Removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A writable copy of the guest's disk in `place`, holes and all. Machines that begin at one
/// restore point share it one after the other; none lives long enough to write back what it has
/// changed.
pub(super) fn disk(guest: &GuestSpec, place: &Path) -> Result<PathBuf> {
    let (from, to) = (guest.dist.join("base.ext4"), place.join("disk"));
    if !to.exists() {
        copy_sparse(&from, &to)
            .with_context(|| format!("Copying {} to {}", from.display(), to.display()))?;
    }
    Ok(to)
}

fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let (source, target) = (File::open(from)?, File::create(to)?);
    target.set_len(rustix::fs::seek(&source, SeekFrom::End(0))?)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            other => other?,
        };
        let end = rustix::fs::seek(&source, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let got = source.read_at(&mut buffer[..most], at)?;
            if got == 0 {
                return Ok(());
            }
            if buffer[..got].iter().any(|byte| *byte != 0) {
                target.write_all_at(&buffer[..got], at)?;
            }
            at += u64::try_from(got)?;
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"here", 32 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 8 << 20);
    }
}
