//! Who comes to the ports of a sandbox, and that each request is the one that was let in.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use support::Server;
use support::programs::{SOON, get, head, mirror, program, raw, to};
use support::told::{connect, pause, post, state};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn private() -> Value {
    json!({
        "network": { "allowPublicTraffic": false },
        "autoPause": true,
        "autoResume": { "enabled": true },
    })
}

#[tokio::test]
async fn a_private_sandbox_asks_for_its_token_on_every_port_but_envds() {
    let server = Server::start().await;
    let port = mirror().await;
    let made = server.create(private()).await;
    let (id, made) = (made.id(), made.json());
    let token = made["trafficAccessToken"].as_str().unwrap().to_owned();
    assert_eq!(token.len(), 64);
    assert_ne!(made["envdAccessToken"], token.as_str());
    let with = |token: &str| [("e2b-traffic-access-token", token.to_owned())];
    let ask = async |id: &str, token: &str| {
        let headers = with(token);
        let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        get(&server, id, port, &headers).await
    };
    for refused in [get(&server, &id, port, &[]).await, ask(&id, "wrong").await] {
        assert_eq!(refused.status, 403, "{refused:?}");
        let told = refused.json();
        assert_eq!(
            (&told["sandboxId"], &told["code"]),
            (&json!(id), &json!(403))
        );
    }
    let served = ask(&id, &token).await;
    assert_eq!(served.status, 200);
    assert!(!String::from_utf8_lossy(&served.body).contains(&token));
    let health = server.send("GET", "/health", &to(&id, "49983"), "").await;
    assert_eq!(health.status, 204, "envd asks for its own");

    // Kept over a pause; only who has it resumes it.
    assert_eq!(pause(&server, &id).await.status, 204);
    assert_eq!(ask(&id, "wrong").await.status, 403);
    assert_eq!(state(&server, &id).await, "paused");
    assert_eq!(ask(&id, &token).await.status, 200);
    assert_eq!(state(&server, &id).await, "running");
    let known = connect(&server, &id).await;
    assert_eq!(known.json()["trafficAccessToken"], token.as_str());
    // Over a restart of the server, too.
    assert_eq!(pause(&server, &id).await.status, 204);
    let server = server.again("", LimitsFile::default()).await;
    assert_eq!(get(&server, &id, port, &[]).await.status, 403);
    let headers = [("e2b-traffic-access-token", token.as_str())];
    assert_eq!(get(&server, &id, port, &headers).await.status, 200);

    // A child has its own, and a reset changes nothing.
    let forked = post(&server, &id, "fork", json!({ "timeout": 60 })).await;
    let child = forked.json()[0]["sandbox"].clone();
    let child_token = child["trafficAccessToken"].as_str().unwrap().to_owned();
    assert_ne!(child_token, token);
    let child_id = child["sandboxID"].as_str().unwrap();
    assert_eq!(get(&server, child_id, port, &headers).await.status, 403);
    let own = [("e2b-traffic-access-token", child_token.as_str())];
    assert_eq!(get(&server, child_id, port, &own).await.status, 200);
    assert_eq!(post(&server, &id, "reset", json!({})).await.status, 204);
    assert_eq!(get(&server, &id, port, &headers).await.status, 200);

    // A snapshot has nothing of it: the request says.
    let snapshot = post(&server, &id, "snapshots", json!({ "name": "open" })).await;
    assert_eq!(snapshot.status, 201, "{snapshot:?}");
    let open = server.create(json!({ "templateID": "open" })).await;
    assert!(open.json().get("trafficAccessToken").is_none());
    assert_eq!(get(&server, &open.id(), port, &[]).await.status, 200);
    assert!(server.stop().await);
}

#[tokio::test]
async fn traffic_to_any_port_resumes_what_may_be_resumed() {
    let server = Server::start().await;
    let port = mirror().await;
    let how = json!({ "autoPause": true, "autoResume": { "enabled": true } });
    let id = server.create(how).await.id();
    assert_eq!(pause(&server, &id).await.status, 204);
    assert_eq!(get(&server, &id, port, &[]).await.status, 200);
    assert_eq!(state(&server, &id).await, "running");
    let id = server.create(json!({ "autoPause": true })).await.id();
    assert_eq!(pause(&server, &id).await.status, 204);
    let refused = get(&server, &id, port, &[]).await;
    assert_eq!(
        (refused.status, &refused.json()["message"]),
        (502, &json!("The sandbox was not found"))
    );
    assert_eq!(state(&server, &id).await, "paused");
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_program_is_told_the_host_that_its_creator_wants() {
    let server = Server::start().await;
    let port = mirror().await;
    let how = json!({ "network": { "maskRequestHost": "localhost:${PORT}" } });
    let id = server.create(how).await.id();
    let told = get(&server, &id, port, &[]).await;
    let told = String::from_utf8(told.body.to_vec()).unwrap();
    assert!(
        told.contains(&format!("host: localhost:{port}\r\n")),
        "{told}"
    );
    assert!(told.contains("x-forwarded-host: localhost\r\n"), "{told}");
    let wrong = json!({ "network": { "maskRequestHost": "a b" } });
    assert_eq!(server.create(wrong).await.status, 400);
    let v1 = json!({ "templateID": "base", "network": { "allowPublicTraffic": false } });
    assert_eq!(
        server.api("POST", "/sandboxes", v1).await.status,
        400,
        "it has no token"
    );
    assert!(server.stop().await);
}

/// A web page that has its own name point here reaches no port that asks for nothing.
#[tokio::test]
async fn a_foreign_name_reaches_no_open_port_of_a_loopback_server() {
    let server = Server::start().await;
    let port = mirror().await;
    let open = server.create(json!({})).await.id();
    let made = server.create(private()).await;
    let (shut, token) = (made.id(), made.json());
    let token = token["trafficAccessToken"].as_str().unwrap();
    for (name, status) in [
        ("attacker.example", "403"),
        ("127.0.0.1.attacker.example", "403"),
        ("127.0.0.1.sslip.io", "200"),
        ("127-0-0-1.nip.io", "200"),
        ("sbx.localhost:3000", "200"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {port}-{open}.{name}\r\n\r\n");
        let told = head(&mut raw(&server, &request).await).await;
        assert!(told.contains(status), "{name}: {told}");
    }
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {port}-{shut}.x.example\r\nE2b-Traffic-Access-Token: {token}\r\n\r\n"
    );
    let told = head(&mut raw(&server, &request).await).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    assert!(server.stop().await);
}

/// Lines of requests whose end two parsers could see at two places, with another request behind.
fn ambiguous() -> Vec<String> {
    let inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = inner.len();
    let begin = [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n".into(),
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n"),
        format!("Content-Length: 0, {length}\r\n\r\n"),
        "Content-Length: +0\r\n\r\n".into(),
        format!("Content-Length : {length}\r\n\r\n"),
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".into(),
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".into(),
        "Transfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n".into(),
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n".into(),
        "X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        "X: y\nContent-Length: 0\n\n".into(),
        "Transfer-Encoding: chunked\r\n\r\n0\n\n".into(),
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n".into(),
        format!("Connection: Content-Length\r\nContent-Length: {length}\r\n\r\n"),
        "Connection: Host, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"),
    ];
    begin.map(|begin| format!("{begin}{inner}")).into()
}

/// What each connection to a program has brought.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// A program that answers once, and notes everything.
async fn noting(heard: &Heard) -> u16 {
    let heard = Arc::clone(heard);
    program(move |mut stream| {
        let heard = Arc::clone(&heard);
        async move {
            let place = {
                let mut heard = heard.lock().unwrap();
                heard.push(Vec::new());
                heard.len() - 1
            };
            let mut buffer = [0; 4096];
            let mut answer = Some(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                heard.lock().unwrap()[place].extend_from_slice(&buffer[..length]);
                if let Some(answer) = answer.take() {
                    let _ = stream.write_all(answer).await;
                }
            }
        }
    })
    .await
}

/// The bytes are of one request, whose body ends where its one length says.
fn is_one_request(bytes: &[u8], lines: &str) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    assert!(text.starts_with("POST /outer HTTP/1.1\r\n"), "{text}");
    let head = head.to_ascii_lowercase();
    let counted = head.matches("content-length: ").count();
    let cut = head.matches("transfer-encoding: ").count();
    assert!(counted + cut <= 1, "{lines:?}: {head}");
    if let Some((_, length)) = head.split_once("content-length: ") {
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        assert_eq!(body.len(), length, "{lines:?}: {text}");
    } else if cut == 0 {
        assert_eq!(body, "", "{lines:?}: {text}");
    } else {
        let whole = body.is_empty() || body.ends_with("\r\n0\r\n\r\n") || body == "0\r\n\r\n";
        assert!(whole, "{lines:?}: {text}");
    }
}

#[tokio::test]
async fn no_request_is_smuggled_in_another_one() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let mut served = 0;
    for lines in ambiguous() {
        // A program for each: one that is accepted late would be counted with the next.
        let heard = Heard::default();
        let port = noting(&heard).await;
        let host = format!("Host: {port}-{id}.localhost\r\n");
        let mut stream = raw(&server, &format!("POST /outer HTTP/1.1\r\n{host}{lines}")).await;
        let _ = stream.shutdown().await;
        let mut answers = Vec::new();
        let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answers)).await;
        let _ = read.unwrap_or_else(|_| panic!("no end of {lines:?}"));
        // A connection without a byte is that of a request which broke off.
        let mut heard = heard.lock().unwrap().clone();
        heard.retain(|bytes| !bytes.is_empty());
        assert!(
            heard.len() <= 1,
            "{lines:?} became {} requests",
            heard.len()
        );
        for bytes in heard {
            is_one_request(&bytes, &lines);
            served += 1;
        }
    }
    assert!(served > 2, "some of these are good requests");
    assert!(server.stop().await);
}
