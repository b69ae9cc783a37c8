//! TCP flows of a guest through a real `hatchery-net` process to servers on this host.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::{LIMIT, NetGuest, only};
use control::{AllowTarget, DenyReason, NetEvent, NetRequest};
use smoltcp::socket::tcp::State;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A server for one connection, and what it does with it.
fn server<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        serve(stream)
    });
    (address, thread)
}

/// Waits for a server while the guest works on.
fn join<T>(guest: &mut NetGuest, server: JoinHandle<T>) -> T {
    guest.until("the server's end", |_| server.is_finished().then_some(()));
    server.join().unwrap()
}

fn echo(mut stream: TcpStream) -> usize {
    let mut buffer = vec![0; 100_000];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return total,
            count => stream.write_all(&buffer[..count]).unwrap(),
        }
        total += 1;
    }
}

#[test]
fn bytes_go_there_and_come_back() {
    let (address, server) = server(echo);
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    guest.send_all(flow, b"hello");
    assert_eq!(guest.receive(flow, 5), b"hello");
    guest.tcp(flow).close();
    guest.until_state(flow, State::TimeWait);
    join(&mut guest, server);
}

#[test]
fn much_goes_there_and_comes_back_whole() {
    let (address, server) = server(echo);
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    let bytes: Vec<u8> = (0..8_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let (mut sent, mut got) = (0, Vec::new());
    guest.until("the echo", |guest| {
        let socket = guest.tcp(flow);
        sent += socket.send_slice(&bytes[sent..]).unwrap();
        while socket.can_recv() {
            let taken = socket.recv(|part| (part.len(), got.extend_from_slice(part)));
            taken.unwrap();
        }
        (got.len() == bytes.len()).then_some(())
    });
    assert!(got == bytes, "the bytes are those that were sent");
    guest.tcp(flow).close();
    join(&mut guest, server);
}

#[test]
fn each_end_of_data_is_passed_on_alone() {
    let (address, server) = server(|mut stream| {
        stream.write_all(b"first").unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        stream.write_all(b"last").unwrap();
        heard
    });
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    assert_eq!(guest.receive(flow, 5), b"first");
    guest.send_all(flow, b"all of it");
    guest.tcp(flow).close();
    assert_eq!(guest.receive(flow, 4), b"last");
    assert_eq!(join(&mut guest, server), b"all of it");
    guest.until_state(flow, State::TimeWait);
}

#[test]
fn a_host_that_ends_first_still_hears_the_guest() {
    let (address, server) = server(|mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard
    });
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    assert_eq!(guest.receive(flow, 3), b"bye");
    guest.until_state(flow, State::CloseWait);
    guest.send_all(flow, b"not yet");
    guest.tcp(flow).close();
    assert_eq!(join(&mut guest, server), b"not yet");
    guest.until_state(flow, State::Closed);
}

#[test]
fn a_reset_on_one_side_is_one_on_the_other() {
    let (address, hears) = server(|mut stream| stream.read(&mut [0; 9]).map_err(|e| e.kind()));
    let (other, resets) = server(|stream| {
        let closing = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&stream, closing).unwrap();
    });
    let mut guest = NetGuest::start(only(&[address, other]));
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    guest.tcp(flow).abort();
    assert_eq!(join(&mut guest, hears), Err(ErrorKind::ConnectionReset));
    let flow = guest.connect(other);
    guest.until_state(flow, State::Closed);
    join(&mut guest, resets);
}

#[test]
fn what_nobody_listens_to_and_what_is_denied_is_reset_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = free.local_addr().unwrap();
    drop(free);
    let mut guest = NetGuest::start(only(&[closed]));
    let begin = Instant::now();
    for to in [
        closed,
        open,
        "10.0.0.1:80".parse().unwrap(),
        "169.254.169.254:80".parse().unwrap(),
    ] {
        let flow = guest.connect(to);
        guest.until_state(flow, State::Closed);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "none waited");
    let mut denied = Vec::new();
    while denied.len() < 3 {
        if let Some(NetEvent::Denied(one)) = guest.event() {
            assert_eq!(one.reason, DenyReason::Reserved);
            denied.push(one.to);
        }
    }
    assert!(denied.contains(&open) && !denied.contains(&closed));
    listener.set_nonblocking(true).unwrap();
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock, "nothing came out");
}

#[test]
fn a_policy_that_denies_a_flow_cuts_it() {
    let (address, server) = server(|mut stream| stream.read(&mut [0; 9]).map_err(|e| e.kind()));
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    let begin = Instant::now();
    let request = NetRequest::SetPolicy(Box::default());
    control::send(&guest.control, &request, &[]).unwrap();
    guest.until_state(flow, State::Closed);
    assert_eq!(join(&mut guest, server), Err(ErrorKind::ConnectionReset));
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    let Some(NetEvent::Counters(counters)) = guest.event() else {
        panic!("no counters");
    };
    assert_eq!((counters.flows_cut, counters.policies), (1, 1));
}

#[test]
fn a_host_that_does_not_read_closes_the_guests_window_and_the_other_way() {
    let (address, server) = server(|mut stream| {
        std::thread::sleep(Duration::from_millis(500));
        let mut heard = 0;
        let mut buffer = vec![0; 1 << 20];
        while heard < 24 << 20 {
            heard += stream.read(&mut buffer).unwrap();
        }
        stream.write_all(&vec![7; 24 << 20]).unwrap();
    });
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    guest.send_all(flow, &vec![9; 24 << 20]);
    // A guest that takes no frames for a while.
    guest.wire.deaf = true;
    std::thread::sleep(Duration::from_millis(300));
    let kib = common::private_kib(&guest.process);
    assert!(
        kib < 1024,
        "{kib} KiB of its own for a guest that does not read"
    );
    guest.wire.deaf = false;
    assert!(guest.receive(flow, 24 << 20).iter().all(|b| *b == 7));
    join(&mut guest, server);
}

#[test]
fn a_segment_of_no_flow_is_reset_at_once() {
    let (address, server) = server(|mut stream| stream.read(&mut [0; 9]).map_err(|e| e.kind()));
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    // As after a fork: the guest's stack goes on, with another process.
    let mut next = NetGuest::start(only(&[address]));
    std::mem::swap(&mut guest.wire.socket, &mut next.wire.socket);
    drop(next);
    guest.tcp(flow).send_slice(b"still there?").unwrap();
    drop(server);
    let mut third = NetGuest::start(only(&[address]));
    std::mem::swap(&mut guest.wire.socket, &mut third.wire.socket);
    guest.until_state(flow, State::Closed);
}

#[test]
fn a_full_table_refuses_and_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut spec = only(&[address]);
    spec.limits.flows = 8;
    let mut guest = NetGuest::start(spec);
    let flows: Vec<_> = (0..8).map(|_| guest.connect(address)).collect();
    for flow in &flows {
        guest.until_state(*flow, State::Established);
    }
    let refused = guest.connect(address);
    guest.until_state(refused, State::Closed);
    let Some(NetEvent::Denied(denied)) = guest.event() else {
        panic!("not told");
    };
    assert_eq!(denied.reason, DenyReason::Flows);
    guest.tcp(flows[0]).abort();
    let mut again = guest.connect(address);
    guest.until("a place", |guest| match guest.tcp(again).state() {
        State::Established => Some(()),
        State::Closed => {
            again = guest.connect(address);
            None
        }
        _ => None,
    });
}

#[test]
fn a_few_flows_cost_little_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut guest = NetGuest::start(only(&[address]));
    println!(
        "without a flow: {} KiB of its own",
        common::private_kib(&guest.process)
    );
    let mut streams = Vec::new();
    for _ in 0..4 {
        let flow = guest.connect(address);
        guest.until_state(flow, State::Established);
        let (mut stream, _) = listener.accept().unwrap();
        guest.send_all(flow, &[1; 8192]);
        guest.until("a request", |_| {
            stream.read_exact(&mut [0; 8192]).is_ok().then_some(())
        });
        stream.write_all(&[2; 16384]).unwrap();
        guest.receive(flow, 16384);
        streams.push(stream);
    }
    let kib = common::private_kib(&guest.process);
    println!("4 flows, 24 KiB each: {kib} KiB of its own");
    assert!(kib <= 768, "{kib} KiB");
}

#[test]
fn a_name_is_looked_for_where_only_names_are_allowed() {
    // Without a name server in this test: the address is allowed by a range, which needs no name.
    let (address, server) = server(echo);
    let mut spec = only(&[address]);
    let domain: AllowTarget = "example.com".parse().unwrap();
    spec.policy.allow_out = vec![domain];
    spec.policy.internet = false;
    let mut guest = NetGuest::start(spec);
    let flow = guest.connect(address);
    guest.send_when_open(flow, b"no name at all");
    assert_eq!(guest.receive(flow, 14), b"no name at all");
    guest.tcp(flow).close();
    join(&mut guest, server);
}

#[test]
fn the_process_ends_with_either_of_its_peers() {
    for end in 0..2 {
        let mut guest = NetGuest::start(only(&[]));
        let (one, _other) = control::pair().unwrap();
        let place = [&mut guest.wire.socket, &mut guest.control];
        drop(std::mem::replace(place.into_iter().nth(end).unwrap(), one));
        let begin = Instant::now();
        while guest.process.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < LIMIT, "it lives on without peer {end}");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(guest.process.wait().unwrap().success());
    }
}

#[test]
fn a_specification_that_is_none_ends_it_with_words() {
    let mut guest = NetGuest::start_unconfigured(&only(&[]));
    let policy = NetRequest::SetPolicy(Box::default());
    control::send(&guest.control, &policy, &[]).unwrap();
    assert_eq!(guest.event(), None);
    assert!(!guest.process.wait().unwrap().success());
}
