//! Requests that get headers on their way out, through a real `hatchery-net` process: a guest that
//! trusts its sandbox's authority, and TLS servers on this host.

mod common;

use common::tls::{TlsFlow, Trust, head};
use common::{NetGuest, only};
use std::io::Write;

const NAME: &str = "api.example.com";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn a_request_gets_its_header_and_the_guest_never_has_it() {
    let trust = Trust::new();
    let (address, server) = trust.server(NAME, |mut stream| {
        let first = head(&mut stream);
        stream.write_all(ANSWER).unwrap();
        let second = head(&mut stream);
        stream.write_all(ANSWER).unwrap();
        [first, second]
    });
    let rules = trust.rules(&[(NAME, "s3cret")]);
    let mut guest = NetGuest::start_with(only(&[address]), rules, &trust.roots());
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
