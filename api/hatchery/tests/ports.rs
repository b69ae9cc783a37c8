//! Ports of a sandbox: HTTP to programs that listen in it. Here they listen on this machine's
//! loopback address, which the agent of a stand-in connects to as to a guest's.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use bytes::Bytes;
use hatchery::config::{ConfigFile, LimitsFile};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::Server;
use support::programs::{SOON, echo, get, head, mirror, program, raw, to, upgrade, upgrading};
use support::told::{kill, post, works};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_program_is_told_what_was_asked_and_nothing_of_ours() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let port = mirror().await.to_string();
    let headers = [
        &to(&id, &port)[..],
        &[
            ("e2b-traffic-access-token", "mine"),
            ("E2B_Sandbox_Id", "mine"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-host", "forged"),
            ("X_Forwarded_For", "6.6.6.7"),
            ("x-real-ip", "6.6.6.8"),
            ("forwarded", "for=6.6.6.9"),
            ("connection", "keep-alive, x-hop"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "mine"),
            ("te", "gzip"),
            ("proxy-authorization", "mine"),
            ("expect", "100-continue"),
            ("authorization", "Bearer yours"),
            ("x-access-token", "yours"),
            ("x-yours", "1"),
            ("x-yours", "2"),
        ],
    ]
    .concat();
    let answer = server.send("GET", "/a%2fb/../c?d=%20e", &headers, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(
        told.starts_with("GET /a%2fb/../c?d=%20e HTTP/1.1\r\n"),
        "{told}"
    );
    let told = told.to_ascii_lowercase();
    for hidden in [
        "e2b",
        "6.6.6",
        "forged",
        "x-hop",
        "mine",
        "keep-alive",
        "gzip",
        "expect",
        "content-length",
    ] {
        assert!(!told.contains(hidden), "{hidden} in {told}");
    }
    for shown in [
        "\r\nhost: localhost\r\n",
        "\r\nx-forwarded-host: localhost\r\n",
        "\r\nx-forwarded-for: 127.0.0.1\r\n",
        "\r\nx-forwarded-proto: http\r\n",
        "\r\nauthorization: bearer yours\r\n",
        "\r\nx-access-token: yours\r\n",
        "\r\nx-yours: 1\r\n",
        "\r\nx-yours: 2\r\n",
        "\r\nconnection: close\r\n",
    ] {
        assert!(told.contains(shown), "{shown:?} not in {told}");
    }

    // By its host name, where a key is the program's.
    let host = format!("{port}-{id}.localhost:{}", server.address.port());
    let request = format!(
        "GET /x HTTP/1.1\r\nHost: {host}\r\nX-API-KEY: theirs\r\nConnection: close\r\n\r\n"
    );
    let mut stream = raw(&server, &request).await;
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    assert!(told.contains(&format!("host: {host}\r\n")), "{told}");
    assert!(told.contains("x-api-key: theirs\r\n"), "{told}");
    assert!(server.stop().await);
}

#[tokio::test]
async fn bodies_go_both_ways_in_every_form() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let port = echo().await.to_string();
    let headers = to(&id, &port);
    let body: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    let answer = server.send("POST", "/", &headers, body.clone()).await;
    assert_eq!(answer.header("content-length"), Some("3000000"));
    assert!(answer.body == body);
    for method in ["PUT", "PATCH", "DELETE"] {
        let answer = server.send(method, "/", &headers, "short").await;
        assert_eq!(&answer.body[..], b"short");
    }
    let answer = server.send("POST", "/", &headers, "").await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));

    // In pieces, also of a request that most often has no body.
    for method in ["POST", "GET"] {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: {port}-{id}.localhost\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\n\r\n"
        );
        let mut stream = raw(&server, &request).await;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(
            text.contains("chunked") && text.contains("3\r\nabc\r\n"),
            "{text}"
        );
        assert!(text.ends_with("\r\n0\r\n\r\n"), "{text}");
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn answers_keep_their_status_headers_and_length() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let answers = [
        (
            "HEAD",
            "200 OK\r\nContent-Length: 1234\r\n\r\n",
            200,
            Some("1234"),
            "",
        ),
        (
            "GET",
            "304 Not Modified\r\nContent-Length: 77\r\nETag: x\r\n\r\n",
            304,
            None,
            "",
        ),
        ("GET", "204 No Content\r\n\r\n", 204, None, ""),
        (
            "GET",
            "418 I'm a teapot\r\nX-A: b\r\nContent-Length: 2\r\n\r\nhi",
            418,
            Some("2"),
            "hi",
        ),
        (
            "GET",
            "100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nto the end",
            200,
            None,
            "to the end",
        ),
        (
            "GET",
            "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            200,
            None,
            "x",
        ),
        (
            "GET",
            "301 Moved\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\n\r\n",
            301,
            Some("0"),
            "",
        ),
    ];
    for (method, text, status, length, body) in answers {
        let port = program(move |mut stream| async move {
            head(&mut stream).await;
            let answer = format!("HTTP/1.1 {text}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await
        .to_string();
        let answer = server.send(method, "/", &to(&id, &port), "").await;
        assert_eq!(answer.status, status, "{text}");
        assert_eq!(answer.header("content-length"), length, "{text}");
        assert_eq!(&answer.body[..], body.as_bytes(), "{text}");
        assert!(answer.header("connection").is_none());
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn events_arrive_one_by_one_and_a_client_that_leaves_is_noticed() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let (said, mut next) = tokio::sync::mpsc::unbounded_channel::<&str>();
    let next = Arc::new(tokio::sync::Mutex::new(async move || next.recv().await));
    let gone = Arc::new(tokio::sync::Notify::new());
    let (program_gone, port_next) = (Arc::clone(&gone), Arc::clone(&next));
    let port = program(move |mut stream| {
        let (gone, next) = (Arc::clone(&program_gone), Arc::clone(&port_next));
        async move {
            head(&mut stream).await;
            let begin = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
            stream.write_all(begin.as_bytes()).await.unwrap();
            let mut next = next.lock().await;
            while let Some(event) = next().await {
                let event = format!("data: {event}\n\n");
                stream.write_all(event.as_bytes()).await.unwrap();
            }
            drop(next);
            // Only now nobody reads any more.
            let _ = stream.read_u8().await;
            gone.notify_one();
        }
    })
    .await
    .to_string();
    let response = server.open("GET", "/", &to(&id, &port), "").await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    for event in ["one", "two", "three"] {
        said.send(event).unwrap();
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, format!("data: {event}\n\n"));
    }
    drop(said);
    drop(body);
    tokio::time::timeout(SOON, gone.notified()).await.unwrap();
    assert!(server.stop().await);
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_whose_halves_end_by_themselves() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let port = upgrading().await;
    let mut stream = raw(&server, &upgrade(&id, port, "websocket")).await;
    let told = head(&mut stream).await.to_ascii_lowercase();
    assert!(told.starts_with("http/1.1 101 "), "{told}");
    assert!(told.contains("upgrade: websocket\r\n"), "{told}");
    assert!(told.contains("connection: upgrade\r\n"), "{told}");
    assert!(told.contains("sec-websocket-accept: x\r\n"), "{told}");
    let mut early = [0; 5];
    stream.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");
    for _ in 0..100 {
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"HELLO");
    }
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "the end");

    // Requests inside of a tunnel would not be looked at: HTTP/2 is no protocol to change to.
    for protocol in ["h2c", "websocket, h2c"] {
        let mut stream = raw(&server, &upgrade(&id, port, protocol)).await;
        assert!(
            head(&mut stream).await.starts_with("HTTP/1.1 200 "),
            "{protocol}"
        );
    }

    // A tunnel ends with its sandbox.
    let mut stream = raw(&server, &upgrade(&id, port, "websocket")).await;
    head(&mut stream).await;
    assert_eq!(kill(&server, &id).await, 204);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut rest));
    let _ = ended.await.expect("the tunnel is still there");
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_port_that_nobody_has_is_told_in_the_sdks_words_and_to_a_browser_as_a_page() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let answer = get(&server, &id, port, &[]).await;
    assert_eq!(answer.status, 502);
    let message = "The sandbox is running but port is not open";
    let expected = json!({ "sandboxId": id, "message": message, "port": port, "code": 502 });
    assert_eq!(answer.json(), expected);
    let browser = [("accept", "text/html,*/*"), ("sec-fetch-mode", "navigate")];
    let page = get(&server, &id, port, &browser).await;
    assert_eq!(page.status, 502);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert!(String::from_utf8_lossy(&page.body).contains(message));
    let other = get(&server, "inobody", port, &[]).await;
    assert_eq!(
        (other.status, &other.json()["message"]),
        (502, &json!("The sandbox was not found"))
    );

    let mut stream = raw(
        &server,
        &format!(
            "CONNECT {port}-{id}.localhost:80 HTTP/1.1\r\nHost: {port}-{id}.localhost\r\n\r\n"
        ),
    )
    .await;
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 405 "));
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_program_that_does_not_speak_http_is_told_as_such() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let answers: [&[u8]; 4] = [
        b"220 mail.example ESMTP\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n",
    ];
    for answer in answers {
        let port = program(move |mut stream| async move {
            head(&mut stream).await;
            stream.write_all(answer).await.unwrap();
        })
        .await;
        let told = get(&server, &id, port, &[]).await;
        assert_eq!(told.status, 502, "{told:?}");
        let words = told.json()["message"].as_str().unwrap().to_owned();
        assert!(words.contains("did not answer"), "{words}");
        assert!(
            !words.contains("port is not open") && !words.contains("was not found"),
            "{words}"
        );
    }
    works(&server, &id).await;
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_program_back() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let port = program(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            head(&mut stream).await;
            let begin = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
            stream.write_all(begin).await.unwrap();
            while let Ok(length) = stream.write(&[0; 65_536]).await {
                count.fetch_add(length, Ordering::Relaxed);
            }
        }
    })
    .await
    .to_string();
    let response = server.open("GET", "/", &to(&id, &port), "").await.unwrap();
    let mut before = usize::MAX;
    let still = async {
        while before != written.load(Ordering::Relaxed) {
            before = written.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(SOON, still)
        .await
        .expect("it writes on");
    // What the kernel's sockets hold, on both ways, and a few windows.
    assert!(
        before < 24 << 20,
        "{before} bytes for a client that reads none"
    );
    works(&server, &id).await;
    let mut body = response.into_body();
    let mut read = 0;
    while read < 2 * before {
        read += body
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len();
    }
    drop(body);
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_sandbox_has_a_limit_of_connections_and_commands_are_none_of_them() {
    const MOST: usize = 1000;
    let limits = LimitsFile {
        max_port_connections: Some(MOST),
        ..LimitsFile::default()
    };
    let server = Server::start_with("", limits).await;
    let id = server.create(json!({})).await.id();
    let port = upgrading().await;
    let mut open = Vec::new();
    for _ in 0..MOST {
        let mut stream = raw(&server, &upgrade(&id, port, "websocket")).await;
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 101 "));
        open.push(stream);
    }
    let full = get(&server, &id, port, &[]).await;
    assert_eq!((full.status, full.header("retry-after")), (429, Some("1")));
    let words = full.json()["message"].as_str().unwrap().to_owned();
    assert!(
        words.contains("1000") && words.contains("limits.max_port_connections"),
        "{words}"
    );
    works(&server, &id).await;
    let other = server.create(json!({})).await.id();
    assert_eq!(
        get(&server, &other, port, &[]).await.status,
        200,
        "another has its own"
    );
    drop(open.pop());
    let freed = async {
        while get(&server, &id, port, &[]).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, freed)
        .await
        .expect("its place is not free");
    for mut stream in open {
        stream.write_all(b"x").await.unwrap();
        let mut back = [0; 6];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"earlyX");
    }
    assert!(server.stop().await);
}

/// A call of gRPC: HTTP/2 to the program as well, with what comes after the body.
#[tokio::test]
async fn grpc_goes_over_http2_with_its_trailers() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let port = program(async |stream| {
        let service = service_fn(|request: Request<Incoming>| async move {
            let authority = request.uri().authority().unwrap().to_string();
            let te = request.headers().get("te").cloned();
            let body = request.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-sent"], "after");
            let answer = format!("{authority} {te:?} {}", body.to_bytes().len());
            let after =
                HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let frames = [Frame::data(Bytes::from(answer)), Frame::trailers(after)];
            let frames = frames.map(Ok::<_, Infallible>);
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let mut response = Response::new(body);
            let kind = "application/grpc".parse().unwrap();
            response.headers_mut().insert("content-type", kind);
            Ok::<_, Infallible>(response)
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let after = HeaderMap::from_iter([("x-sent".parse().unwrap(), "after".parse().unwrap())]);
    let frames = [
        Frame::data(Bytes::from_static(b"hello")),
        Frame::trailers(after),
    ];
    let frames = frames.map(Ok::<_, Infallible>);
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::post(format!("http://{port}-{id}.localhost/Service/Method"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    let expected = format!("{port}-{id}.localhost Some(\"trailers\") 5");
    assert_eq!(body.to_bytes(), expected);
    assert!(server.stop().await);
}

/// Over HTTP/2 to a program that speaks HTTP/1.1: the host, the cookies and the path are told.
#[tokio::test]
async fn http2_becomes_http1_for_a_program() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let port = mirror().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{port}-{id}.localhost/a?b"))
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let told = response.into_body().collect().await.unwrap().to_bytes();
    let told = String::from_utf8(told.to_vec()).unwrap();
    assert!(told.starts_with("GET /a?b HTTP/1.1\r\n"), "{told}");
    assert!(
        told.contains(&format!("host: {port}-{id}.localhost\r\n")),
        "{told}"
    );
    assert!(told.contains("cookie: a=1; b=2\r\n"), "{told}");
    assert!(server.stop().await);
}

/// A reset cuts what goes to the machine as it was, and what comes after it begins anew.
#[tokio::test]
async fn a_reset_cuts_connections_to_the_machine_as_it_was() {
    let server = Server::start_clones("", LimitsFile::default(), Some(1)).await;
    let id = server.create(json!({})).await.id();
    let port = upgrading().await;
    let mut stream = raw(&server, &upgrade(&id, port, "websocket")).await;
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 101 "));
    assert_eq!(post(&server, &id, "reset", json!({})).await.status, 204);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut rest));
    let _ = ended.await.expect("the tunnel has outlived its machine");
    assert_eq!(get(&server, &id, port, &[]).await.status, 200);
    assert!(server.stop().await);
}

/// A program that says nothing, for too long.
#[tokio::test]
async fn a_connection_on_which_no_byte_goes_is_ended() {
    let change = |file: &mut ConfigFile| file.limits.idle_timeout = Some(1);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_changed(dir, "", LimitsFile::default(), None, change).await;
    let id = server.create(json!({})).await.id();
    let port = program(async |mut stream| {
        head(&mut stream).await;
        let _ = stream.read_u8().await;
    })
    .await;
    let silent = get(&server, &id, port, &[]).await;
    assert_eq!(silent.status, 504, "{silent:?}");
    let mut stream = raw(&server, &upgrade(&id, upgrading().await, "websocket")).await;
    head(&mut stream).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut rest));
    let _ = ended.await.expect("a tunnel without a byte is still there");
    assert!(server.stop().await);
}
