//! Requests that get headers on their way out, through a real `hatchery-net` process: a guest that
//! trusts its sandbox's authority, and TLS servers on this host.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::tls::{TlsFlow, TlsServer, Trust, head};
use common::{NetGuest, only, private_kib};
use control::{DenyReason, NetEvent, NetRequest};
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const NAME: &str = "api.example.com";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const MIB: usize = 1 << 20;

fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// A guest whose requests to `NAME` get `x-key: s3cret`, and that may reach this address.
fn guest(trust: &Trust, address: SocketAddr) -> NetGuest {
    let rules = trust.rules(&[(NAME, "s3cret")]);
    NetGuest::start_with(only(&[address]), rules, &trust.roots())
}

/// Answers every request with its head's last lines, until the end.
fn answer_all(mut stream: TlsServer) -> usize {
    let mut count = 0;
    while let Some(head) = head(&mut stream) {
        assert!(head.ends_with("\r\nx-key: s3cret\r\n\r\n"), "{head}");
        stream.write_all(ANSWER).unwrap();
        count += 1;
    }
    count
}

fn denied(guest: &mut NetGuest) -> (DenyReason, Option<String>) {
    loop {
        match guest.event() {
            Some(NetEvent::Denied(denied)) => return (denied.reason, denied.name),
            Some(_) => {}
            None => panic!("the process has ended"),
        }
    }
}

#[test]
fn each_request_gets_its_header_and_the_guest_never_has_it() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, |mut stream| {
        let first = head(&mut stream).unwrap();
        stream.write_all(ANSWER).unwrap();
        let second = head(&mut stream).unwrap();
        stream.write_all(ANSWER).unwrap();
        [first, second]
    });
    let mut guest = guest(&trust, address);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    for path in ["/one", "/two"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nX-Key: mine\r\n\r\n");
        flow.send(&mut guest, request.as_bytes());
        let answer = flow.receive(&mut guest, |heard| heard.ends_with(b"hello"));
        assert_eq!(answer, ANSWER);
    }
    for (request, path) in server.join().unwrap().into_iter().zip(["/one", "/two"]) {
        let expected = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nx-key: s3cret\r\n\r\n");
        assert_eq!(request, expected);
    }
    assert_eq!(flow.tls.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[test]
fn a_name_without_a_rule_is_between_the_guest_and_its_host() {
    let trust = Trust::new();
    let other = "other.example.com";
    let (address, server) = trust.server(other, |mut stream| {
        let head = head(&mut stream).unwrap();
        stream.write_all(ANSWER).unwrap();
        head
    });
    let mut guest = guest(&trust, address);
    // It sees the host's own certificate.
    let tls = Trust::client_of(&trust.servers, other);
    let mut flow = TlsFlow::connect(&mut guest, address, tls);
    flow.send(&mut guest, get("/", other).as_bytes());
    flow.receive(&mut guest, |heard| heard.ends_with(b"hello"));
    assert_eq!(server.join().unwrap(), get("/", other));
}

#[test]
fn what_is_not_tls_does_not_wait_for_a_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut guest = guest(&Trust::new(), address);
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(common::LIMIT)).unwrap();
    // The host speaks first, and what the guest says might become a request.
    stream.write_all(b"220 ").unwrap();
    assert_eq!(guest.receive(flow, 4), b"220 ");
    guest.send_all(flow, b"G");
    let heard = std::thread::spawn(move || {
        let mut heard = [0];
        stream.read_exact(&mut heard).unwrap();
        heard
    });
    guest.until("its byte", |_| heard.is_finished().then_some(()));
    assert_eq!(&heard.join().unwrap(), b"G");
}

#[test]
fn a_request_for_another_host_is_told_so_and_does_not_come_out() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, |mut stream| head(&mut stream));
    let mut guest = guest(&trust, address);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    flow.send(&mut guest, get("/", "evil.example.com").as_bytes());
    flow.ended(&mut guest);
    let answer = String::from_utf8(flow.heard).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    let expected = (DenyReason::OtherHost, Some(NAME.to_owned()));
    assert_eq!(denied(&mut guest), expected);
    assert_eq!(server.join().unwrap(), None, "nothing came");
}

#[test]
fn what_can_be_read_in_two_ways_ends_its_connection() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, answer_all);
    let mut guest = guest(&trust, address);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    flow.send(&mut guest, get("/", NAME).as_bytes());
    flow.receive(&mut guest, |heard| heard.ends_with(b"hello"));
    let two = "Content-Length: 9\r\nTransfer-Encoding: chunked";
    let request = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\n{two}\r\n\r\n");
    flow.send(&mut guest, request.as_bytes());
    flow.ended(&mut guest);
    assert_eq!(denied(&mut guest).0, DenyReason::Request);
    assert_eq!(server.join().unwrap(), 1);
}

#[test]
fn a_host_that_cannot_show_who_it_is_gets_nothing() {
    let trust = Trust::new();
    for (name, roots) in [(NAME, Trust::new().roots()), ("evil.net", trust.roots())] {
        let (address, server) = trust.server(name, |mut stream| stream.read(&mut [0]).is_err());
        let rules = trust.rules(&[("*.example.com", "s3cret")]);
        let mut guest = NetGuest::start_with(only(&[address]), rules, &roots);
        let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
        flow.ended(&mut guest);
        let alert = rustls::AlertDescription::HandshakeFailure;
        assert_eq!(flow.error, Some(rustls::Error::AlertReceived(alert)));
        let expected = (DenyReason::Untrusted, Some(NAME.to_owned()));
        assert_eq!(denied(&mut guest), expected);
        assert!(server.join().unwrap(), "no byte of a request");
    }
}

#[test]
fn a_guest_that_does_not_trust_its_authority_is_told_of() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, |mut stream| head(&mut stream));
    let mut guest = guest(&trust, address);
    let tls = Trust::client_of(&trust.servers, NAME);
    let mut flow = TlsFlow::connect(&mut guest, address, tls);
    flow.ended(&mut guest);
    assert!(flow.error.is_some());
    assert_eq!(denied(&mut guest).0, DenyReason::GuestTls);
    assert_eq!(server.join().unwrap(), None);
}

#[test]
fn much_passes_both_ways_without_being_gathered() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, |mut stream| {
        head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let mut body = vec![0; 8 * MIB];
        stream.read_exact(&mut body).unwrap();
        assert!(body.iter().all(|b| *b == 9));
        stream.write_all(&vec![7; 8 * MIB]).unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    });
    let mut guest = guest(&trust, address);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {NAME}\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        8 * MIB
    );
    flow.send(&mut guest, request.as_bytes());
    flow.receive(&mut guest, |heard| heard.ends_with(b"Continue\r\n\r\n"));
    flow.send(&mut guest, &vec![9; 8 * MIB]);
    // A guest that takes no frames for a while.
    guest.wire.deaf = true;
    std::thread::sleep(Duration::from_millis(300));
    let kib = private_kib(&guest.process);
    println!("a flow in the middle of 8 MiB: {kib} KiB of its own");
    assert!(kib < 1800, "{kib} KiB for a guest that does not read");
    guest.wire.deaf = false;
    let body = flow.receive(&mut guest, |heard| heard.len() >= 8 * MIB);
    assert!(body.len() == 8 * MIB && body.iter().all(|b| *b == 7));
    flow.ended(&mut guest);
    assert_eq!(flow.error, None, "an end that was said");
    server.join().unwrap();
}

#[test]
fn each_end_of_data_is_passed_on_alone() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, |mut stream| {
        head(&mut stream).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        stream.write_all(ANSWER).unwrap();
        stream.flush().unwrap();
        // Without a word.
        stream.sock.shutdown(Shutdown::Both).unwrap();
        rest
    });
    let mut guest = guest(&trust, address);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    let request = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 3\r\n\r\nabc");
    flow.send(&mut guest, request.as_bytes());
    flow.tls.send_close_notify();
    flow.send(&mut guest, b"");
    let socket = flow.flow;
    guest.tcp(socket).close();
    flow.receive(&mut guest, |heard| heard.ends_with(b"hello"));
    flow.ended(&mut guest);
    assert_eq!(server.join().unwrap(), b"abc");
}

#[test]
fn a_websocket_is_what_both_sides_make_of_it() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, |mut stream| {
        let head = head(&mut stream).unwrap();
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nfirst";
        stream.write_all(switch.as_bytes()).unwrap();
        let mut frame = [0; 21];
        stream.read_exact(&mut frame).unwrap();
        stream.write_all(&frame).unwrap();
        head
    });
    let mut guest = guest(&trust, address);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    let lines = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n{lines}\r\n");
    flow.send(&mut guest, request.as_bytes());
    flow.receive(&mut guest, |heard| heard.ends_with(b"\r\n\r\nfirst"));
    flow.send(&mut guest, b"\r\n\r\nno request \0\r\n\r\n\0");
    flow.receive(&mut guest, |heard| {
        heard == b"\r\n\r\nno request \0\r\n\r\n\0"
    });
    assert!(server.join().unwrap().contains("x-key: s3cret"));
}

#[test]
fn other_rules_cut_what_was_begun_by_others_and_hold_for_what_begins() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, answer_all);
    let (next, hears) = trust.server(NAME, |mut stream| head(&mut stream));
    let rules = trust.rules(&[(NAME, "s3cret")]);
    let spec = only(&[address, next]);
    let policy = spec.policy.clone();
    let mut guest = NetGuest::start_with(spec, rules.clone(), &trust.roots());
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    flow.send(&mut guest, get("/", NAME).as_bytes());
    flow.receive(&mut guest, |heard| heard.ends_with(b"hello"));
    let set = |guest: &mut NetGuest, rules| {
        guest.say_rules(rules, &trust.roots());
        let request = NetRequest::SetPolicy(Box::new(policy.clone()));
        control::send(&guest.control, &request, &[]).unwrap();
        loop {
            match guest.event().unwrap() {
                NetEvent::Counters(counters) if counters.policies > 0 => return counters.flows_cut,
                _ => {}
            }
        }
    };
    assert_eq!(set(&mut guest, rules), 0, "the same rules");
    flow.send(&mut guest, get("/", NAME).as_bytes());
    flow.receive(&mut guest, |heard| heard.ends_with(b"hello"));
    let other = trust.rules(&[("*.example.com", "other")]);
    assert_eq!(set(&mut guest, other), 1);
    flow.ended(&mut guest);
    assert_eq!(server.join().unwrap(), 2);
    let mut flow = TlsFlow::connect(&mut guest, next, trust.client(NAME));
    flow.send(&mut guest, get("/", NAME).as_bytes());
    flow.ended(&mut guest);
    assert!(hears.join().unwrap().unwrap().contains("x-key: other"));
}

#[test]
fn one_that_has_rules_and_no_such_flow_costs_what_others_cost() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, answer_all);
    let without = private_kib(&NetGuest::start(only(&[address])).process);
    let mut guest = guest(&trust, address);
    let idle = private_kib(&guest.process);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    flow.send(&mut guest, get("/", NAME).as_bytes());
    flow.receive(&mut guest, |heard| heard.ends_with(b"hello"));
    let one = private_kib(&guest.process);
    println!("{without} KiB without rules, {idle} KiB with them, {one} KiB with a flow");
    assert!(
        idle <= without + 128,
        "{idle} KiB with rules, {without} without"
    );
    assert!(one <= idle + 600, "{one} KiB with a flow, {idle} without");
    guest.tcp(flow.flow).abort();
    guest.poll();
    // The server hears a reset, or an end.
    drop(server);
}

/// Waits until the host's side of a connection is over, while the guest goes on.
fn host_hears_the_end(guest: &mut NetGuest, mut stream: TcpStream) {
    stream.set_read_timeout(Some(common::LIMIT)).unwrap();
    let ended = std::thread::spawn(move || {
        let mut heard = [0; 4096];
        while !matches!(stream.read(&mut heard), Ok(0) | Err(_)) {}
    });
    guest.until("its end", |_| ended.is_finished().then_some(()));
    ended.join().unwrap();
}

#[test]
fn a_guest_that_gives_a_silent_host_up_leaves_nothing() {
    let trust = Trust::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut guest = guest(&trust, address);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    flow.turn(&mut guest);
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(common::LIMIT)).unwrap();
    // The hello has come, and is never answered.
    let peeked = std::thread::spawn(move || {
        stream.peek(&mut [0]).unwrap();
        stream
    });
    guest.until("a hello", |_| peeked.is_finished().then_some(()));
    guest.tcp(flow.flow).close();
    host_hears_the_end(&mut guest, peeked.join().unwrap());
}

#[test]
fn a_host_that_goes_before_it_answers_an_upgrade_ends_the_flow() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, |mut stream| {
        head(&mut stream).unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    });
    let mut guest = guest(&trust, address);
    let mut flow = TlsFlow::connect(&mut guest, address, trust.client(NAME));
    let lines = "Connection: upgrade\r\nUpgrade: tcp\r\n";
    let upgrade = format!("POST /start HTTP/1.1\r\nHost: {NAME}\r\n{lines}\r\nmore");
    flow.send(&mut guest, upgrade.as_bytes());
    guest.until("its end", |guest| {
        flow.turn(guest);
        let state = guest.tcp(flow.flow).state();
        matches!(state, State::Closed | State::CloseWait).then_some(())
    });
    server.join().unwrap();
}
