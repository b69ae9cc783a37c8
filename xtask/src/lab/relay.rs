//! Ports of loopback that lead into the lab, for as many clients as come at once.
//!
//! The emulator's own forward listens with a backlog of one and takes one connection each time its
//! loop turns. A hundred clients that connect to it at once overflow its queue: the kernel drops
//! their requests, answers some with a cookie and forgets them, and those clients are reset or
//! wait for minutes. So clients connect here, where the queue is deep, and one after the other is
//! passed on: a connection that the emulator's queue has no room for is dropped at once, and
//! tried again a moment later, before the next one.

use anyhow::{Context, Result};
use rustix::net::sockopt::set_socket_linger;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

/// Connections at a time, of all ports together; more wait in the listener's queue.
const MOST: usize = 1024;
/// Clients that wait to be accepted; the kernel's `somaxconn` may make it less.
const BACKLOG: u32 = 4096;
/// Bytes between the two ends of a connection in each direction, beside the sockets' own.
const BUFFER: usize = 32 << 10;
/// What each of a connection's two sockets may store in each direction (the kernel doubles it for
/// its own accounts): with [`MOST`] and [`BUFFER`], never over 1.1 GiB, and of that only what a
/// reader has not taken yet.
const SOCKET_BUFFER: u32 = 128 << 10;
/// On loopback a connection is made at once or its queue is full.
const AT_ONCE: Duration = Duration::from_millis(25);
/// How long the emulator gets to take something from its queue.
const PAUSE: Duration = Duration::from_millis(3);
/// An emulator that takes nothing for so long has died.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What all relayed ports share.
pub(super) struct RelayGate {
    places: Arc<Semaphore>,
    /// Held by whoever connects to the emulator.
    turn: Mutex<()>,
}

impl RelayGate {
    /// For a process that may open as many files as it wants; see [`RelayGate::open_files`].
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(MOST)),
            turn: Mutex::new(()),
        })
    }

    /// So many open files a process needs.
    pub(super) const fn open_files() -> u64 {
        2 * MOST as u64 + 128
    }
}

/// Listens on a port of loopback; 0 is any.
///
/// # Errors
/// If it is in use.
pub(super) fn listen(port: u16) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    bound(&socket)?;
    socket
        .bind(loopback(port))
        .with_context(|| format!("Listening on port {port} of 127.0.0.1"))?;
    Ok(socket.listen(BACKLOG)?)
}

/// Passes connections on to another port of loopback, for ever.
pub(super) async fn serve(listener: TcpListener, to: u16, gate: Arc<RelayGate>) {
    loop {
        let Ok(place) = Arc::clone(&gate.places).acquire_owned().await else {
            return;
        };
        let Ok((client, _)) = listener.accept().await else {
            sleep(PAUSE).await; // out of file descriptors, most likely
            continue;
        };
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            pass(client, to, &gate).await;
            drop(place);
        });
    }
}

/// Carries a connection until both ends have closed it; one that breaks is reset at both ends.
async fn pass(mut client: TcpStream, to: u16, gate: &RelayGate) {
    let Ok(mut lab) = connect(to, gate).await else {
        let _ = reset_on_close(&client);
        return;
    };
    let _ = (client.set_nodelay(true), lab.set_nodelay(true));
    if copy_bidirectional_with_sizes(&mut client, &mut lab, BUFFER, BUFFER)
        .await
        .is_err()
    {
        let _ = (reset_on_close(&client), reset_on_close(&lab));
    }
}

fn reset_on_close(stream: &TcpStream) -> rustix::io::Result<()> {
    set_socket_linger(stream, Some(Duration::ZERO))
}

/// Connects to a listener whose queue is short, in turn with all others.
async fn connect(to: u16, gate: &RelayGate) -> io::Result<TcpStream> {
    let _turn = gate.turn.lock().await;
    let begin = Instant::now();
    loop {
        let socket = TcpSocket::new_v4()?;
        bound(&socket)?;
        match timeout(AT_ONCE, socket.connect(loopback(to))).await {
            Ok(done) => return done,
            Err(_) if begin.elapsed() > GIVE_UP => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// A client that reads slowly costs so much and no more.
fn bound(socket: &TcpSocket) -> io::Result<()> {
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod test {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;

    fn run<T>(what: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.unwrap().block_on(what)
    }

    /// A listener as the emulator's: a backlog of one, and one connection a few milliseconds.
    fn short() -> (TcpListener, u16) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(loopback(0)).unwrap();
        let listener = socket.listen(1).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    async fn relay(to: u16) -> u16 {
        let listener = listen(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(listener, to, RelayGate::new()));
        port
    }

    #[test]
    fn three_hundred_clients_at_once_are_served_by_a_listener_with_a_backlog_of_one() {
        run(async {
            let (listener, to) = short();
            tokio::spawn(async move {
                loop {
                    let (mut client, _) = listener.accept().await.unwrap();
                    tokio::spawn(async move {
                        let asked = client.read_u32().await.unwrap();
                        client.write_u32(asked + 1).await.unwrap();
                    });
                    sleep(Duration::from_millis(2)).await;
                }
            });
            let port = relay(to).await;
            let mut clients = JoinSet::new();
            for number in 0..300 {
                clients.spawn(async move {
                    let mut stream = TcpStream::connect(loopback(port)).await?;
                    stream.write_u32(number).await?;
                    io::Result::Ok((number, stream.read_u32().await?))
                });
            }
            let begin = Instant::now();
            for (number, answer) in clients.join_all().await.into_iter().map(Result::unwrap) {
                assert_eq!(answer, number + 1);
            }
            assert!(begin.elapsed() < Duration::from_secs(30));
        });
    }

    #[test]
    fn a_close_of_one_direction_and_a_reset_are_passed_on() {
        run(async {
            let (listener, to) = short();
            let port = relay(to).await;
            let mut client = TcpStream::connect(loopback(port)).await.unwrap();
            let (mut lab, _) = listener.accept().await.unwrap();
            client.write_all(b"all").await.unwrap();
            client.shutdown().await.unwrap();
            let mut text = String::new();
            lab.read_to_string(&mut text).await.unwrap();
            lab.write_all(b"back").await.unwrap();
            reset_on_close(&lab).unwrap();
            let mut four = [0; 4];
            client.read_exact(&mut four).await.unwrap();
            drop(lab);
            let end = client.read(&mut four).await.unwrap_err();
            assert_eq!((text.as_str(), &four), ("all", b"back"));
            assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn a_reader_that_stops_stops_the_writer() {
        run(async {
            let (listener, to) = short();
            let port = relay(to).await;
            let client = TcpStream::connect(loopback(port)).await.unwrap();
            let (mut lab, _) = listener.accept().await.unwrap();
            let mut taken = 0;
            let chunk = vec![0; 64 << 10];
            while let Ok(written) = timeout(Duration::from_secs(1), lab.write(&chunk)).await {
                taken += written.unwrap();
                assert!(taken < 32 << 20, "the relay stores {taken} bytes");
            }
            drop(client);
        });
    }
}
