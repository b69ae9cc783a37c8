//! The envd facade over the real guest agent, which runs as an ordinary process. What the SDKs see
//! of it is tested by `tests/sdk`; here are the corners that they cannot reach: who may ask, and
//! how requests end. Processes and files have files of their own.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod support;

use serde_json::json;
use support::envd::{Box1, PATIENT, UNARY};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn who_may_and_what_else_there_is() {
    let it = Box1::new().await;
    let bare = [
        ("e2b-sandbox-id", it.id.as_str()),
        ("e2b-sandbox-port", "49983"),
    ];
    let open = it.server.send("GET", "/health", &bare, "").await;
    assert_eq!(
        (open.status, open.header("cache-control")),
        (204, Some("no-store"))
    );
    let words =
        "unauthorized access, please provide a valid access token or method signing if supported";
    let shut = it.server.send("GET", "/metrics", &bare, "").await;
    assert_eq!(
        (shut.status, shut.json()),
        (401, json!({ "code": 401, "message": words }))
    );
    let files = it
        .server
        .send("GET", "/files?path=/etc/passwd", &bare, "")
        .await;
    assert_eq!(files.json()["message"], "missing signature query parameter");
    let envs = it.send("GET", "/envs", &[], "").await.json();
    assert_eq!(envs["E2B_SANDBOX_ID"], json!(it.id));
    let metrics = it.send("GET", "/metrics", &[], "").await.json();
    assert!(metrics["mem_total"].as_u64().unwrap() > 0, "{metrics}");
    let unknown = it.unary("process.Process/Fly", json!({})).await;
    assert_eq!(
        (unknown.status, unknown.json()["code"].clone()),
        (501, json!("unimplemented"))
    );
    let watch = it
        .unary(
            "filesystem.Filesystem/CreateWatcher",
            json!({ "path": "/" }),
        )
        .await;
    assert_eq!(
        (watch.status, watch.json()["code"].clone()),
        (501, json!("unimplemented"))
    );
    let proto = it
        .send(
            "POST",
            "/process.Process/List",
            &[("content-type", "application/proto")],
            "",
        )
        .await;
    assert_eq!(proto.status, 415);
}

#[tokio::test]
async fn scripts_of_other_origins_may_ask() {
    let it = Box1::new().await;
    let asked = [
        ("origin", "http://x"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-access-token"),
        ("e2b-sandbox-id", it.id.as_str()),
        ("e2b-sandbox-port", "49983"),
    ];
    let path = "/process.Process/List";
    let preflight = it.server.send("OPTIONS", path, &asked, "").await;
    assert_eq!(preflight.status, 204);
    let allowed = preflight.header("access-control-allow-headers");
    assert_eq!(allowed, Some("x-access-token"));
    let answer = it.send("POST", path, &[UNARY, asked[0]], "{}").await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, Some("*"))
    );
}

#[tokio::test]
async fn an_early_refusal_does_not_cut_a_client_that_still_sends() {
    let it = Box1::new().await;
    let mut socket = TcpStream::connect(it.server.address).await.unwrap();
    let head = format!(
        "POST /files?path=/tmp/x&username=nobody-of-that-name HTTP/1.1\r\nhost: localhost\r\n\
         e2b-sandbox-id: {}\r\ne2b-sandbox-port: 49983\r\nx-access-token: {}\r\n\
         content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        it.id, it.token
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut seen = vec![0; 4096];
    let length = timeout(PATIENT, socket.read(&mut seen))
        .await
        .unwrap()
        .unwrap();
    assert!(seen[..length].starts_with(b"HTTP/1.1 401 "));
    for _ in 0..200 {
        socket.write_all(b"1000\r\n").await.unwrap();
        socket.write_all(&[b'x'; 0x1000]).await.unwrap();
        socket.write_all(b"\r\n").await.unwrap();
    }
    socket
        .write_all(b"0\r\n\r\nGET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let length = timeout(PATIENT, socket.read(&mut seen))
        .await
        .unwrap()
        .unwrap();
    assert!(
        seen[..length].starts_with(b"HTTP/1.1 2"),
        "the connection serves the next request"
    );
}
