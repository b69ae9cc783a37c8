//! The far end of a guest's connections: a server on this machine that says how long each took, by
//! its own clock, so that a guest's start of a program is not in it.

use crate::engine::now_ns;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Bytes that are read and written at a time.
const PIECE: usize = 256 << 10;
/// How long a guest may let this wait. Where instructions are counted a second is a billion.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks for a connection.
const LOOK: Duration = Duration::from_millis(1);

/// What is done over one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetWork {
    /// The guest reads so many bytes.
    Download(u64),
    /// It writes them.
    Upload(u64),
    /// It writes a byte and reads one, so often.
    RoundTrips(u64),
}

impl fmt::Display for NetWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Download(bytes) => write!(f, "download {bytes}"),
            Self::Upload(bytes) => write!(f, "upload {bytes}"),
            Self::RoundTrips(count) => write!(f, "round-trips {count}"),
        }
    }
}

/// What the guest runs for it: `python3 -c PROGRAM ADDRESS PORT WHAT COUNT`.
pub(super) const PROGRAM: &str = "
import socket, sys
what, count = sys.argv[3], int(sys.argv[4])
far = socket.create_connection((sys.argv[1], int(sys.argv[2])))
far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
far.sendall(f'{what} {count}\\n'.encode())
piece = bytearray(1 << 18)
if what == 'download':
    while count:
        got = far.recv_into(piece, min(count, len(piece)))
        assert got
        count -= got
    far.sendall(b'k')
elif what == 'upload':
    view = memoryview(piece)
    while count:
        count -= far.send(view[:min(count, len(piece))])
    assert far.recv(1) == b'k'
else:
    for _ in range(count):
        far.sendall(b'k')
        assert far.recv(1) == b'k'
";

/// A listener that guests reach by an address of this machine.
pub(super) struct FarEnd {
    listener: TcpListener,
    address: SocketAddr,
}

impl FarEnd {
    /// Listens at this machine's own address, not at loopback, which no guest can ask for.
    pub(super) fn listen() -> Result<Self> {
        // Nothing is sent: the kernel says which address it would send from.
        let probe = UdpSocket::bind("0.0.0.0:0")?;
        probe.connect("192.0.2.1:9").context("Finding a route")?;
        let own: IpAddr = probe.local_addr()?.ip();
        let listener = TcpListener::bind((own, 0));
        let listener = listener.with_context(|| format!("Listening on {own}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the next connection, which has to ask for `work`; nanoseconds from its asking to its
    /// end.
    pub(super) fn serve(&self, work: NetWork) -> Result<u64> {
        let mut stream = self.accept()?;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut asked = String::new();
        let mut reader = BufReader::with_capacity(PIECE, stream.try_clone()?);
        reader.by_ref().take(64).read_line(&mut asked)?;
        let begin_ns = now_ns();
        if asked.trim_end() != work.to_string() {
            bail!("A guest asked for {asked:?}, not for \"{work}\"");
        }
        let done = exchange(&mut reader, &mut stream, work);
        done.with_context(|| format!("Serving \"{work}\""))?;
        Ok(now_ns() - begin_ns)
    }

    fn accept(&self) -> Result<TcpStream> {
        let begin = Instant::now();
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(e) if e.kind() == ErrorKind::WouldBlock && begin.elapsed() < PATIENCE => {
                    std::thread::sleep(LOOK);
                }
                Err(e) => return Err(e).context("Waiting for a guest's connection"),
            }
        }
    }
}

fn exchange(reader: &mut impl Read, writer: &mut impl Write, work: NetWork) -> Result<()> {
    let mut piece = vec![b'x'; PIECE];
    let mut acknowledgement = [0];
    let most = |left: u64| usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    match work {
        NetWork::Download(mut left) => {
            while left > 0 {
                let most = most(left);
                writer.write_all(&piece[..most])?;
                left -= most as u64;
            }
            reader.read_exact(&mut acknowledgement)?;
        }
        NetWork::Upload(mut left) => {
            while left > 0 {
                let most = most(left);
                match reader.read(&mut piece[..most])? {
                    0 => bail!("The guest ended {left} bytes early"),
                    got => left -= u64::try_from(got)?,
                }
            }
            writer.write_all(b"k")?;
        }
        NetWork::RoundTrips(count) => {
            for _ in 0..count {
                reader.read_exact(&mut acknowledgement)?;
                writer.write_all(&acknowledgement)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn guest(far: &FarEnd, asks: &str) -> Child {
        let address = far.address();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let mut command = Command::new("python3");
        command
            .args(["-c", PROGRAM, &ip, &port])
            .args(asks.split(' '));
        command.stderr(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn each_kind_of_work_is_done_and_timed() {
        let far = FarEnd::listen().unwrap();
        for work in [
            NetWork::Download(3 << 20),
            NetWork::Upload(3 << 20),
            NetWork::RoundTrips(50),
        ] {
            let mut guest = guest(&far, &work.to_string());
            assert!(far.serve(work).unwrap() > 0);
            assert!(guest.wait().unwrap().success());
        }
    }

    #[test]
    fn a_guest_that_asks_for_something_else_is_no_sample() {
        let far = FarEnd::listen().unwrap();
        let mut guest = guest(&far, "upload 5");
        let error = far.serve(NetWork::Upload(6)).unwrap_err();
        assert!(error.to_string().contains("upload 5"), "{error}");
        assert!(!guest.wait().unwrap().success());
    }
}
