//! `GET /metrics`, at an address of its own.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use e2b::options::ServerOptions;
use e2b::state::AppState;
use hatchery::config::LimitsFile;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::Server;
use tokio::net::{TcpListener, TcpStream};

/// The status, the kind of content, and the text.
async fn get(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost");
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let kind = head.headers.get("content-type");
    let kind = kind.map_or(String::new(), |kind| kind.to_str().unwrap().to_owned());
    let body = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    (head.status.as_u16(), kind, text)
}

#[tokio::test]
async fn prometheus_reads_what_happened() {
    let server = Server::start_clones("", LimitsFile::default(), Some(1)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = ServerOptions {
        domain: None,
        on_loopback: true,
        require_token: false,
        keys: e2b::auth::ApiKeys::new(Vec::new()),
        max_timeout: Duration::from_secs(1),
        max_connections: 1,
        max_peer_connections: 0,
        max_port_connections: 1,
        header_timeout: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(1),
        max_json_bytes: 1,
        body_memory_mb: 64,
    };
    let app = AppState::new(options, Arc::clone(&server.registry));
    let answering = tokio::spawn(e2b::metrics::serve(app, listener));
    server.create(json!({})).await.id();
    let (status, kind, text) = get(address, "GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let line = "hatchery_creations_total{way=\"clone\",outcome=\"ok\"} 1\n";
    assert!(text.contains(line) && text.ends_with("# EOF\n"), "{text}");
    assert_eq!(get(address, "POST", "/metrics").await.0, 405);
    assert_eq!(
        get(address, "GET", "/sandboxes").await.0,
        404,
        "no other endpoint"
    );
    let on_the_other = server.api("GET", "/metrics", json!(null)).await;
    assert_eq!(
        on_the_other.status, 404,
        "and not at the server's own address"
    );
    answering.abort();
    drop(answering.await);
    assert!(server.stop().await);
}
