//! The requests of one connection: each gets its headers, and what follows a head passes through.
//!
//! ```text
//!        ┌──────────── the body is over ─────────────┐
//!        v                                           │
//!  head ─┼─ length ──────────────────────────────> body
//!        ├─ chunked ─────────────────────────────> body
//!        └─ upgrade ─> the host's answer ─ 101 ──> raw, for good
//!                          │ another
//!                          └──────────────────────> head
//! ```
//!
//! A request that can be read in two ways ends its connection: what one side takes for a body, the
//! other might take for a request.

use crate::chunked_body::ChunkedBody;
use crate::request_head::{self, HeadRule, MAX_HEAD, RequestBody, RequestFault};
use control::{SecretBytes, SecretHeader};

/// Methods whose bodies mean nothing (RFC 9110 §9.3), with what follows them.
const BODILESS: [&[u8]; 3] = [b"GET ", b"HEAD ", b"OPTIONS "];
/// Most lines of an answer's head.
const MAX_LINES: usize = 128;

#[derive(Debug)]
enum StreamState {
    /// In a head.
    Head,
    /// In a body of this many more bytes.
    Body(u64),
    /// In a body that says itself where it ends.
    Chunked(ChunkedBody),
    /// Behind a request to speak something else: nothing passes until the host has answered. Its
    /// answer so far.
    Upgrading(Vec<u8>),
    /// The two speak something else.
    Raw,
}

/// The requests of one connection, in order.
#[derive(Debug)]
pub(crate) struct RequestStream {
    state: StreamState,
    /// What has come of a head.
    head: Vec<u8>,
    /// Whether one has been passed on.
    passed: bool,
    /// The last one had a body that hosts may leave unread, and take for the next request.
    last: bool,
}

impl RequestStream {
    /// Before the first one.
    pub(crate) const fn new() -> Self {
        Self {
            state: StreamState::Head,
            head: Vec::new(),
            passed: false,
            last: false,
        }
    }

    /// Whether none has been passed on: the host has nothing to answer.
    pub(crate) const fn is_first(&self) -> bool {
        !self.passed
    }

    /// Takes bytes of the guest's and appends what the host is to hear; how many were taken. None
    /// are while the host's answer decides what they mean.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        rule: HeadRule<'_>,
        out: &mut Vec<u8>,
    ) -> Result<usize, RequestFault> {
        match &mut self.state {
            StreamState::Head => self.push_head(bytes, rule, out),
            StreamState::Body(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let taken = bytes.len().min(most);
                out.extend_from_slice(&bytes[..taken]);
                *left -= taken as u64;
                if *left == 0 {
                    self.state = StreamState::Head;
                }
                Ok(taken)
            }
            StreamState::Chunked(body) => {
                let taken = body.advance(bytes)?;
                out.extend_from_slice(&bytes[..taken]);
                if *body == ChunkedBody::Over {
                    self.state = StreamState::Head;
                }
                Ok(taken)
            }
            StreamState::Upgrading(_) => Ok(0),
            StreamState::Raw => {
                out.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn push_head(
        &mut self,
        bytes: &[u8],
        rule: HeadRule<'_>,
        out: &mut Vec<u8>,
    ) -> Result<usize, RequestFault> {
        let before = self.head.len();
        let taken = bytes.len().min(MAX_HEAD - before);
        self.head.extend_from_slice(&bytes[..taken]);
        let Some(end) = request_head::head_end(&self.head, before)? else {
            return match self.head.len() {
                MAX_HEAD => Err(RequestFault::Form),
                _ => Ok(taken),
            };
        };
        if self.last {
            return Err(RequestFault::Form);
        }
        let body = request_head::rewrite(&self.head[..end], rule, out)?;
        // Which answer is an upgrade's is known of the first request only.
        if body == RequestBody::Upgrade && self.passed {
            return Err(RequestFault::Form);
        }
        self.last = !matches!(body, RequestBody::Length(0) | RequestBody::Upgrade)
            && BODILESS.iter().any(|method| self.head.starts_with(method));
        self.head = Vec::new();
        self.passed = true;
        self.state = match body {
            RequestBody::Length(0) => StreamState::Head,
            RequestBody::Length(length) => StreamState::Body(length),
            RequestBody::Chunked => StreamState::Chunked(ChunkedBody::new()),
            RequestBody::Upgrade => StreamState::Upgrading(Vec::new()),
        };
        // What is behind the head comes again.
        Ok(end - before)
    }

    /// Whether nothing passes before the host has answered.
    pub(crate) const fn is_upgrading(&self) -> bool {
        matches!(self.state, StreamState::Upgrading(_))
    }

    /// Looks at bytes of the host's for the answer to an upgrade; whether it has come.
    pub(crate) fn answered(&mut self, bytes: &[u8]) -> Result<bool, RequestFault> {
        let StreamState::Upgrading(answer) = &mut self.state else {
            return Ok(false);
        };
        answer.extend_from_slice(bytes);
        loop {
            let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
            let mut response = httparse::Response::new(&mut lines);
            let (length, code) = match (response.parse(answer), response.code) {
                (Ok(httparse::Status::Complete(length)), Some(code)) => (length, code),
                (Ok(httparse::Status::Partial), _) if answer.len() < MAX_HEAD => return Ok(false),
                _ => return Err(RequestFault::Form),
            };
            match code {
                101 => self.state = StreamState::Raw,
                // More answers follow.
                100..200 => {
                    answer.drain(..length);
                    continue;
                }
                _ => self.state = StreamState::Head,
            }
            return Ok(true);
        }
    }
}

/// What a stream of requests becomes for the host, given in pieces of these lengths, as far as it
/// goes; an upgrade is refused by the host.
fn rewritten(bytes: &[u8], pieces: &[u8], rule: HeadRule<'_>) -> (Vec<u8>, Option<RequestFault>) {
    let (mut stream, mut out, mut rest) = (RequestStream::new(), Vec::new(), bytes);
    let mut lengths = pieces.iter().cycle();
    while !rest.is_empty() {
        let length = lengths.next().map_or(rest.len(), |n| usize::from(*n) + 1);
        match stream.push(&rest[..length.min(rest.len())], rule, &mut out) {
            Ok(0) => {
                let answered = stream.answered(b"HTTP/1.1 200 OK\r\n\r\n");
                assert_eq!(answered, Ok(true), "only an upgrade waits");
            }
            Ok(taken) => rest = &rest[taken..],
            Err(fault) => return (out, Some(fault)),
        }
    }
    (out, None)
}

/// Fuzz entry point: a guest sends any bytes as requests. What passes has the header once a
/// request, and passes again as it is: nobody finds a request in it that has not got it.
pub fn fuzz_requests(bytes: &[u8]) {
    let [pieces @ .., _] = &bytes[..bytes.len().min(4)] else {
        return;
    };
    let headers = [SecretHeader {
        name: "x-fuzz".to_owned(),
        value: SecretBytes::new(b"v".to_vec()),
    }];
    let rule = HeadRule {
        host: "a.net",
        headers: &headers,
    };
    let whole = rewritten(bytes, &[], rule);
    let (first, fault) = rewritten(bytes, pieces, rule);
    assert_eq!(whole.1, fault, "pieces do not matter");
    if fault.is_none() {
        assert!(whole.0 == first, "pieces do not matter");
        let (second, fault) = rewritten(&first, &[], rule);
        assert_eq!(fault, None, "what has passed passes");
        assert!(second == first, "what has passed passes as it is");
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    const HOST: &str = "api.example.com";

    fn headers() -> [SecretHeader; 2] {
        [("authorization", "Bearer s"), ("x-empty", "")].map(|(name, value)| SecretHeader {
            name: name.into(),
            value: SecretBytes::new(value.into()),
        })
    }

    /// What the host hears of these bytes, or what is wrong with them.
    fn heard(bytes: &str) -> Result<String, RequestFault> {
        let headers = headers();
        let rule = HeadRule {
            host: HOST,
            headers: &headers,
        };
        let (out, fault) = rewritten(bytes.as_bytes(), &[], rule);
        let one_by_one = rewritten(bytes.as_bytes(), &[0], rule);
        assert_eq!(one_by_one.1, fault, "one by one");
        assert!(fault.is_some() || one_by_one.0 == out, "one by one");
        match fault {
            None => Ok(String::from_utf8(out).unwrap()),
            Some(fault) => Err(fault),
        }
    }

    const ADDED: &str = "authorization: Bearer s\r\nx-empty: \r\n\r\n";

    #[test]
    fn each_request_of_a_connection_gets_its_headers() {
        let host = format!("Host: {HOST}\r\n");
        let chunks = "5;a=b\r\nhello\r\n00a\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
        let requests = [
            (format!("GET /a HTTP/1.1\r\n{host}"), ""),
            (
                format!("POST /b HTTP/1.1\r\n{host}Content-Length: 5\r\n"),
                "GET /",
            ),
            (
                format!("POST /c HTTP/1.1\r\n{host}Transfer-Encoding: Chunked\r\n"),
                chunks,
            ),
            (format!("OPTIONS * HTTP/1.0\r\n{host}"), ""),
            (
                format!("PUT /d?x HTTP/1.1\r\n{host}Expect: 100-continue\r\ncontent-length: 0\r\n"),
                "",
            ),
        ];
        let said: String = requests
            .iter()
            .map(|(head, body)| format!("{head}AUTHORIZATION: mine\r\n\r\n{body}"))
            .collect();
        // A body comes in any case, so nobody is asked whether it may.
        let expected: String = requests
            .iter()
            .map(|(head, body)| format!("{head}{ADDED}{body}"))
            .collect();
        let expected = expected.replace("Expect: 100-continue\r\n", "");
        assert_eq!(heard(&said), Ok(expected));
    }

    #[test]
    fn a_request_for_another_host_gets_nothing() {
        for line in [
            "Host: evil.net\r\n",
            "Host: api.example.com.evil.net\r\n",
            "Host: x@api.example.com\r\n",
            "Host: \r\n",
            "X-Host: api.example.com\r\n",
            "",
        ] {
            let said = format!("GET / HTTP/1.1\r\n{line}\r\n");
            assert_eq!(heard(&said), Err(RequestFault::OtherHost), "{line:?}");
        }
        for line in [
            "host: API.example.com:443\r\n",
            "Host: api.example.com.\r\n",
        ] {
            let said = format!("GET / HTTP/1.1\r\n{line}\r\n");
            heard(&said).unwrap();
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_passed_on() {
        let host = format!("Host: {HOST}\r\n");
        for head in [
            format!("GET / HTTP/1.1\r\n{host}Host: {HOST}\r\n"),
            format!("GET https://evil.net/ HTTP/1.1\r\n{host}"),
            format!("GET evil.net HTTP/1.1\r\n{host}"),
            format!("CONNECT {HOST}:443 HTTP/1.1\r\n{host}"),
            format!("TRACE / HTTP/1.1\r\n{host}"),
            format!("GET / HTTP/2.0\r\n{host}"),
            format!("GET  / HTTP/1.1\r\n{host}"),
            format!("GET / HTTP/1.1\r\n {host}"),
            format!("GET / HTTP/1.1\r\n{host} folded\r\n"),
            format!("GET / HTTP/1.1\r\n{host}A : b\r\n"),
            format!("GET / HTTP/1.1\r\n{host}A: b\nC: d\r\n"),
            format!("GET / HTTP/1.1\r\n{host}Upgrade: tcp\r\n"),
            format!("GET / HTTP/1.0\r\n{host}Upgrade: tcp\r\nConnection: upgrade\r\n"),
            format!("GET / HTTP/1.1\r\n{host}A: b\0c\r\n"),
            format!("GET / HTTP/1.1\n{host}"),
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 1\r\n"),
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 1, 1\r\n"),
            format!("POST / HTTP/1.1\r\n{host}Content-Length: +1\r\n"),
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 18446744073709551616\r\n"),
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n"),
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: x\r\n"),
            format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n"),
            format!(
                "GET / HTTP/1.1\r\n{host}Upgrade: a\r\nConnection: upgrade\r\nContent-Length: 1\r\n"
            ),
        ] {
            let said = format!("{head}\r\n");
            assert_eq!(heard(&said), Err(RequestFault::Form), "{said:?}");
        }
        let chunked = format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n");
        for body in [
            "\r\n",
            ";a\r\n",
            "g\r\n",
            "-1\r\n",
            "5\nhello\r\n",
            "1\r\nabc",
            "1\r\na\n0\r\n\r\n",
            "0000000000000001\r\n",
            "0\r\na\n\r\n",
            "0\r\n\n",
        ] {
            let said = format!("{chunked}{body}");
            assert_eq!(heard(&said), Err(RequestFault::Form), "{body:?}");
        }
    }

    #[test]
    fn a_request_that_may_be_mistaken_is_a_connections_last_or_only_one() {
        let host = format!("Host: {HOST}\r\n");
        let get = format!("GET / HTTP/1.1\r\n{host}\r\n");
        let lines = "Connection: upgrade\r\nUpgrade: tcp\r\n";
        let upgrade = format!("POST /start HTTP/1.1\r\n{host}{lines}\r\n");
        heard(&upgrade).unwrap();
        // The answer to the first would be taken for the second's.
        assert_eq!(heard(&format!("{get}{upgrade}")), Err(RequestFault::Form));
        for method in ["GET", "HEAD", "OPTIONS"] {
            let with_body = format!("{method} / HTTP/1.1\r\n{host}Content-Length: 1\r\n\r\na");
            heard(&with_body).unwrap();
            assert_eq!(heard(&format!("{with_body}{get}")), Err(RequestFault::Form));
        }
    }

    #[test]
    fn a_head_a_line_of_a_chunk_and_trailers_are_bounded() {
        let start = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n");
        let fits = format!(
            "{start}A: {}\r\n\r\n",
            "a".repeat(MAX_HEAD - start.len() - 7)
        );
        assert_eq!(fits.len(), MAX_HEAD);
        heard(&fits).unwrap();
        let over = format!(
            "{start}A: {}\r\n\r\n",
            "a".repeat(MAX_HEAD - start.len() - 6)
        );
        assert_eq!(heard(&over), Err(RequestFault::Form));
        let lines = format!("{start}{}\r\n", "A: b\r\n".repeat(MAX_LINES));
        assert_eq!(heard(&lines), Err(RequestFault::Form));
        let chunked = format!("{start}Transfer-Encoding: chunked\r\n\r\n");
        for body in ["1;", "0\r\nA: "] {
            let endless = format!("{chunked}{body}{}", "a".repeat(9000));
            assert_eq!(heard(&endless), Err(RequestFault::Form));
        }
    }

    #[test]
    fn after_an_upgrade_the_host_decides_what_bytes_are() {
        let headers = headers();
        let rule = HeadRule {
            host: HOST,
            headers: &headers,
        };
        let lines = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n";
        let upgrade = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n");
        let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nframe";
        for (answer, raw) in [
            (refusal.to_owned(), false),
            (format!("{hint}{refusal}"), false),
            (switch.to_owned(), true),
            (format!("{hint}{hint}{switch}"), true),
        ] {
            let (mut stream, mut out) = (RequestStream::new(), Vec::new());
            assert_eq!(
                stream.push(upgrade.as_bytes(), rule, &mut out),
                Ok(upgrade.len())
            );
            assert_eq!(stream.push(b"more", rule, &mut out), Ok(0));
            let (start, end) = answer.as_bytes().split_at(10);
            assert_eq!(stream.answered(start), Ok(false));
            assert_eq!(stream.answered(end), Ok(true), "{answer}");
            out.clear();
            assert_eq!(stream.push(b"more", rule, &mut out), Ok(4));
            assert_eq!(out == b"more", raw, "{answer}");
        }
        let (mut stream, mut out) = (RequestStream::new(), Vec::new());
        stream.push(upgrade.as_bytes(), rule, &mut out).unwrap();
        assert_eq!(stream.answered(&[b'x'; 100]), Err(RequestFault::Form));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            lines in proptest::collection::vec(
                prop_oneof![
                    Just("GET / HTTP/1.1\r\n".to_owned()),
                    Just("POST /x HTTP/1.1\r\n".to_owned()),
                    Just("Host: a.net\r\n".to_owned()),
                    Just("x-fuzz: mine\r\n".to_owned()),
                    Just("Content-Length: 4\r\n".to_owned()),
                    Just("Transfer-Encoding: chunked\r\n".to_owned()),
                    Just("Upgrade: a\r\nConnection: upgrade\r\n".to_owned()),
                    Just("\r\n".to_owned()),
                    Just("4\r\nabcd\r\n0\r\n\r\n".to_owned()),
                    "\\PC{0,8}",
                ],
                0..12,
            ),
        ) {
            fuzz_requests(lines.concat().as_bytes());
        }

        #[test]
        fn any_bytes_but_text_are_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            fuzz_requests(&bytes);
            let start = b"POST / HTTP/1.1\r\nHost: a.net\r\nTransfer-Encoding: chunked\r\n\r\n";
            fuzz_requests(&[&start[..], &bytes].concat());
        }
    }
}
