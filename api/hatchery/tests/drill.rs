//! What a client may try against the service, and which wall stops it: a line for each, read with
//! `cargo test -p hatchery --test drill -- --nocapture`. Every attack comes over loopback from
//! this process.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use bytes::Bytes;
use futures_util::future::join_all;
use hatchery::config::LimitsFile;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::told::{pause, state};
use support::{Answer, KEY, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const MIB: usize = 1 << 20;
/// Within this everybody who may be served is.
const BOUND: Duration = Duration::from_secs(10);

#[expect(clippy::print_stdout, reason = "the line of a drill")]
fn stopped(attack: &str, wall: &str) {
    println!("drill: {attack}: stopped by {wall}");
}

fn few_connections() -> LimitsFile {
    LimitsFile {
        max_connections: Some(64),
        header_timeout: Some(60),
        ..LimitsFile::default()
    }
}

/// A client with its key and a connection that it keeps.
struct KnownClient(http1::SendRequest<Full<Bytes>>);

impl KnownClient {
    async fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut client = Self(sender);
        assert_eq!(client.ask().await, 200);
        client
    }

    async fn ask(&mut self) -> u16 {
        let request = Request::get("/templates").header("host", "localhost");
        let request = request.header("x-api-key", KEY);
        let answer = self.0.send_request(request.body(Full::default()).unwrap());
        let answer = timeout(BOUND, answer).await.expect("nobody answers");
        let answer = answer.unwrap();
        let status = answer.status().as_u16();
        answer.into_body().collect().await.unwrap();
        status
    }
}

/// Both the client that is there and one that comes now are served.
async fn others_are_served(server: &Server, there: &mut KnownClient) {
    assert_eq!(there.ask().await, 200);
    let fresh = timeout(BOUND, KnownClient::connect(server));
    drop(fresh.await.expect("a fresh client is not served"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_without_a_key_keep_nobody_out() {
    let server = Server::start_with("refuse", few_connections()).await;
    let mut there = KnownClient::connect(&server).await;
    for (attack, begun) in [
        ("200 connections that say nothing", ""),
        ("200 half request lines", "GET /sand"),
        (
            "200 heads without an end",
            "GET /sandboxes HTTP/1.1\r\nHost: a\r\nX-A: ",
        ),
    ] {
        let mut held = Vec::new();
        for _ in 0..200 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let _ = stream.write_all(begun.as_bytes()).await;
            held.push(stream);
        }
        others_are_served(&server, &mut there).await;
        stopped(
            attack,
            "strangers give way to newcomers, a quarter of the places is reserved",
        );
    }
    for _ in 0..40 {
        let mut held = Vec::new();
        for _ in 0..250 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let _ = stream.write_all(b"POST /sandboxes HTTP/1.1\r\n").await;
            held.push(stream);
        }
        others_are_served(&server, &mut there).await;
    }
    stopped("10,000 half requests", "strangers give way to newcomers");
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_clients_that_answer_pings_keep_nobody_out() {
    let limits = LimitsFile {
        header_timeout: Some(2),
        ..few_connections()
    };
    let server = Server::start_with("refuse", limits).await;
    let mut there = KnownClient::connect(&server).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_millis(300))
            .keep_alive_while_idle(true);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get("http://localhost/sandboxes");
        let refused = sender.send_request(request.body(Full::<Bytes>::default()).unwrap());
        assert_eq!(refused.await.unwrap().status(), 401);
        held.push((sender, connection));
    }
    others_are_served(&server, &mut there).await;
    let ends = held.into_iter().map(|(sender, connection)| async {
        let ended = timeout(BOUND, connection).await;
        drop(sender);
        ended.expect("a connection that only pings is still there")
    });
    join_all(ends).await;
    stopped(
        "100 HTTP/2 connections that answer pings",
        "strangers give way, and rest no longer than a head may take",
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn one_address_has_no_more_connections_than_it_may() {
    let limits = LimitsFile {
        max_peer_connections: Some(3),
        ..LimitsFile::default()
    };
    let server = Server::start_with("refuse", limits).await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(KnownClient::connect(&server).await);
    }
    let mut fourth = TcpStream::connect(server.address).await.unwrap();
    let mut said = String::new();
    let read = timeout(BOUND, fourth.read_to_string(&mut said)).await;
    read.expect("the fourth is not refused").unwrap();
    assert!(
        said.starts_with("HTTP/1.1 503 ") && said.contains("max_peer_connections"),
        "{said}"
    );
    for client in &mut all {
        assert_eq!(client.ask().await, 200);
    }
    stopped(
        "a fourth connection of three",
        "limits.max_peer_connections",
    );
    assert!(server.stop().await);
}

/// A sandbox and how it is reached.
struct Target {
    id: String,
    token: String,
}

impl Target {
    async fn new(server: &Server) -> Self {
        let made = server.create(json!({})).await;
        let token = made.json()["envdAccessToken"].as_str().unwrap().to_owned();
        Self {
            id: made.id(),
            token,
        }
    }

    async fn list(&self, server: &Server, body: Bytes) -> Answer {
        let headers = [
            ("e2b-sandbox-id", self.id.as_str()),
            ("e2b-sandbox-port", "49983"),
            ("x-access-token", self.token.as_str()),
            ("content-type", "application/json"),
        ];
        let call = server.send("POST", "/process.Process/List", &headers, body);
        timeout(Duration::from_secs(120), call).await.unwrap()
    }

    /// The beginning of a long body, and nothing more.
    async fn begin(&self, server: &Server) -> TcpStream {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "POST /process.Process/List HTTP/1.1\r\nhost: localhost\r\ne2b-sandbox-id: {}\r\n\
             e2b-sandbox-port: 49983\r\nx-access-token: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n    ",
            self.id,
            self.token,
            16 * MIB
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }
}

/// 16 MiB of blanks and an empty object.
fn long_body() -> Bytes {
    let mut body = vec![b' '; 16 * MIB - 2];
    body.extend_from_slice(b"{}");
    body.into()
}

/// A line of `/proc/self/status`, in bytes.
fn memory(name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line
        .unwrap()
        .trim_matches([':', ' ', '\t'])
        .trim_end_matches(" kB");
    kib.parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_long_bodies_take_no_more_memory_than_they_may() {
    const BUDGET: usize = 64;
    const MARGIN: usize = 96;
    let limits = LimitsFile {
        body_memory_mb: Some(BUDGET),
        ..LimitsFile::default()
    };
    let server = Server::start_with("", limits).await;
    let [one, other] = [Target::new(&server).await, Target::new(&server).await];
    let body = long_body();
    assert_eq!(
        one.list(&server, body.clone()).await.status,
        200,
        "alone it is read"
    );

    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    let long = join_all((0..40).map(|_| one.list(&server, body.clone())));
    let small = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..10 {
            let begin = Instant::now();
            let answer = other.list(&server, Bytes::from_static(b"{}")).await;
            assert_eq!(answer.status, 200);
            slowest = slowest.max(begin.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        slowest
    };
    let (long, slowest) = tokio::join!(long, small);
    let grown = memory("VmHWM").saturating_sub(before) / MIB;
    let read = long.iter().filter(|answer| answer.status == 200).count();
    assert!(
        long.iter()
            .all(|answer| [200, 429].contains(&answer.status))
    );
    assert!(read >= 4, "{read} of 40");
    assert!(
        grown <= BUDGET + MARGIN,
        "{grown} MiB for a budget of {BUDGET}"
    );
    assert!(slowest < BOUND, "{slowest:?}");
    let figures = format!("{grown} MiB more, {read} read, a small one within {slowest:?}");
    stopped(
        &format!("40 bodies of 16 MiB ({figures})"),
        "limits.body_memory_mb",
    );
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_keep_no_other_body_out() {
    let limits = LimitsFile {
        body_memory_mb: Some(64),
        ..LimitsFile::default()
    };
    let server = Server::start_with("", limits).await;
    let [one, other] = [Target::new(&server).await, Target::new(&server).await];
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(one.begin(&server).await);
    }
    let begin = Instant::now();
    assert_eq!(
        other.list(&server, Bytes::from_static(b"{}")).await.status,
        200
    );
    let small = begin.elapsed();
    assert!(small < BOUND, "{small:?}");
    assert_eq!(other.list(&server, long_body()).await.status, 200);
    let long = begin.elapsed();
    // The first of them held what the long one waited for.
    let mut said = [0; 12];
    let read = timeout(BOUND, slow[0].read_exact(&mut said)).await;
    read.expect("a slow body is not ended").unwrap();
    assert_eq!(&said, b"HTTP/1.1 429");
    let figures = format!("a small one after {small:?}, a long one after {long:?}");
    stopped(
        &format!("20 bodies that stop halfway ({figures})"),
        "the least speed of bodies",
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn what_a_sandbox_wrote_does_not_run_in_a_browser() {
    let server = Server::start().await;
    let made = server.create(json!({})).await;
    let (id, token) = (made.id(), made.json()["envdAccessToken"].clone());
    let dir = tempfile::tempdir().unwrap();
    for (name, way) in [
        ("page.html", "attachment"),
        ("image.svg", "attachment"),
        ("a.png", "inline"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, "<script>alert(1)</script>").unwrap();
        let headers = [
            ("e2b-sandbox-id", id.as_str()),
            ("e2b-sandbox-port", "49983"),
            ("x-access-token", token.as_str().unwrap()),
            ("origin", "http://attacker.example"),
        ];
        let path = format!("/files?username=root&path={}", path.display());
        let answer = server.send("GET", &path, &headers, "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(
            answer
                .header("content-disposition")
                .unwrap()
                .starts_with(way),
            "{answer:?}"
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("sandbox"), "{policy}");
    }
    stopped(
        "a file with a script, opened by its address",
        "attachment, nosniff, sandbox",
    );
    assert!(server.stop().await);
}

/// A sandbox as the old API makes it, asked for its files under a host name.
async fn under(server: &Server, id: &str, host: &str) -> Answer {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/envs").header("host", host);
    let request = match host.contains(id) {
        true => request,
        false => request
            .header("e2b-sandbox-id", id)
            .header("e2b-sandbox-port", "49983"),
    };
    let answer = sender.send_request(request.body(Full::<Bytes>::default()).unwrap());
    let (head, body) = answer.await.unwrap().into_parts();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

#[tokio::test]
async fn a_web_page_reaches_no_sandbox_by_a_name_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let domain = |file: &mut hatchery::config::ConfigFile| {
        file.domain = Some("sandbox.example.com".into());
    };
    let server = Server::start_changed(dir, "", LimitsFile::default(), None, domain).await;
    let old = json!({ "templateID": "base", "timeout": 300, "autoPause": true,
                      "autoResume": { "enabled": true } });
    let made = server.api("POST", "/sandboxes", old).await;
    let id = made.id();
    assert_eq!(made.json()["envdAccessToken"], Value::Null);
    for ours in [
        "localhost:3000",
        "127.0.0.1",
        "49983-ID.sandbox.example.com",
        "49983-ID.localhost",
    ] {
        let host = ours.replace("ID", &id);
        assert_eq!(under(&server, &id, &host).await.status, 200, "{host}");
    }
    let foreign = ["attacker.example:3000", "49983-ID.attacker.example"];
    for round in ["running", "paused"] {
        for host in foreign {
            let answer = under(&server, &id, &host.replace("ID", &id)).await;
            let wanted = if round == "running" { 403 } else { 502 };
            assert_eq!(answer.status, wanted, "{host}: {answer:?}");
        }
        if round == "running" {
            assert_eq!(pause(&server, &id).await.status, 204);
        }
    }
    assert_eq!(state(&server, &id).await, "paused");
    stopped(
        "a page's own name that points at 127.0.0.1",
        "the host name is checked",
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn where_tokens_are_required_every_sandbox_has_one() {
    let dir = tempfile::tempdir().unwrap();
    let required = |file: &mut hatchery::config::ConfigFile| file.require_token = Some(true);
    let server = Server::start_changed(dir, "", LimitsFile::default(), None, required).await;
    for secure in [Value::Null, json!(false)] {
        let wanted = json!({ "templateID": "base", "timeout": 300, "secure": secure });
        let made = server.api("POST", "/sandboxes", wanted).await;
        let id = made.id();
        assert!(made.json()["envdAccessToken"].is_string());
        assert_eq!(under(&server, &id, "localhost").await.status, 401);
    }
    stopped("an id without a token", "require_token");
    assert!(server.stop().await);
}

#[tokio::test]
async fn forged_and_late_signatures_resume_nothing() {
    let server = Server::start().await;
    let how = json!({ "autoPause": true, "autoResume": { "enabled": true } });
    let id = server.create(how).await.id();
    assert_eq!(pause(&server, &id).await.status, 204);
    let signature = "A".repeat(43);
    for (query, said) in [
        (
            format!("path=a&signature=v1_{signature}"),
            "invalid signature",
        ),
        ("path=a&signature=v1_short".into(), "invalid signature"),
        (
            format!("path=a&username=b:read:c&signature=v1_{signature}"),
            "invalid signature",
        ),
        (
            format!("path=a&signature=v1_{signature}&signature_expiration=1"),
            "signature is already expired",
        ),
    ] {
        let answer = server
            .send("GET", &format!("/files?{query}"), &[], "")
            .await;
        assert_eq!(
            (answer.status, &answer.json()["message"]),
            (401, &json!(said)),
            "{query}"
        );
    }
    assert_eq!(state(&server, &id).await, "paused");
    stopped(
        "forged, shifted and late signatures",
        "they are checked before the sandbox is touched",
    );
    assert!(server.stop().await);
}
