//! What the server says when no sandbox comes of a request. Needs no guest agent.

mod support;

use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use std::time::Duration;
use support::{KEY, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn short() -> LimitsFile {
    LimitsFile {
        boot_timeout: Some(1),
        max_json_bytes: Some(4096),
        ..LimitsFile::default()
    }
}

#[tokio::test]
async fn only_health_is_open() {
    let server = Server::start_with("refuse", short()).await;
    assert_eq!(server.send("GET", "/health", &[], "").await.status, 200);
    for path in ["/sandboxes", "/v2/sandboxes", "/nowhere", "/templates"] {
        for key in [
            None,
            Some("e2b_ffffffffffffffffffffffffffffffffffffffff"),
            Some(""),
        ] {
            let headers: Vec<_> = key.map(|key| ("x-api-key", key)).into_iter().collect();
            let answer = server.send("GET", path, &headers, "").await;
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (401, &json!(401)),
                "{path} {key:?}"
            );
        }
    }
    assert!(server.stop().await);
}

/// Before anything is made; the clients are told when to come again.
#[tokio::test]
async fn a_host_without_memory_to_spare_begins_nothing() {
    let limits = LimitsFile {
        min_memory_mb: Some(1 << 24),
        ..short()
    };
    let server = Server::start_with("refuse", limits).await;
    for (path, body) in [
        ("/sandboxes", json!({ "templateID": "base" })),
        ("/v2/sandboxes", json!({ "templateID": "base" })),
        (
            "/sandboxes:batch",
            json!({ "templateID": "base", "count": 3 }),
        ),
    ] {
        let answer = server.api("POST", path, body).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        let retry = ["should-retry", "retry-after"].map(|name| answer.header(name));
        assert_eq!(retry, [Some("false"), Some("5")], "{path}");
        let said = answer.json();
        assert_eq!(said["error_code"], "host_memory_low", "{path}");
        let message = said["message"].as_str().unwrap();
        assert!(
            message.contains("16777216") && message.contains("limits.min_memory_mb"),
            "{message}"
        );
    }
    assert_eq!(server.registry.in_use(), 0);
    assert!(server.stop().await);
}

#[tokio::test]
async fn rules_that_cannot_be_are_refused_without_their_values() {
    let server = Server::start().await;
    let headers = |headers: Value| json!([{ "transform": { "headers": headers } }]);
    for rules in [
        json!({ "*": headers(json!({ "x": "zqzq" })) }),
        json!({ "a.net": headers(json!({ "Host": "zqzq" })) }),
        json!({ "a.net": headers(json!({ "x": "zqzq\n" })) }),
        json!({ "a.net": [{ "block": "zqzq" }] }),
    ] {
        let body = json!({ "templateID": "base", "network": { "rules": rules } });
        let answer = server.api("POST", "/v2/sandboxes", body.clone()).await;
        let said = answer.json();
        assert_eq!((answer.status, &said["code"]), (400, &json!(400)), "{body}");
        assert!(!said.to_string().contains("zqzq"), "{said}");
    }
}

#[tokio::test]
async fn bad_creations_are_told_what_is_wrong() {
    let server = Server::start_with("refuse", short()).await;
    let cases = [
        (json!({ "templateID": "nope" }), 404),
        (json!({}), 404),
        (json!({ "timeout": 0 }), 400),
        (json!({ "timeout": -1 }), 400),
        (json!({ "timeout": 86_401 }), 400),
        (json!({ "timeout": "300" }), 400),
        (json!({ "metadata": { "a": 1 } }), 400),
        (json!({ "envVars": { "A=B": "1" } }), 400),
        (json!({ "envVars": { "": "1" } }), 400),
        (json!({ "envVars": { "A": "\u{0}" } }), 400),
        (json!({ "autoPause": 1 }), 400),
        (
            json!({
                "autoPause": true,
                "autoPauseMemory": false,
                "autoResume": { "enabled": true }
            }),
            400,
        ),
        (
            json!({ "volumeMounts": [{ "name": "v", "path": "/v" }] }),
            501,
        ),
        (
            json!({ "network": { "egressProxy": { "address": "x:1" } } }),
            501,
        ),
    ];
    for (mut body, status) in cases {
        if body["templateID"].is_null() && status != 404 {
            body["templateID"] = "base".into();
        }
        let wanted = if body == json!({}) { 400 } else { status };
        let answer = server.api("POST", "/v2/sandboxes", body.clone()).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (wanted, &json!(wanted)),
            "{body}"
        );
    }
    let answer = server
        .send(
            "POST",
            "/sandboxes",
            &[("x-api-key", KEY)],
            "{\"templateID\":",
        )
        .await;
    assert_eq!(answer.status, 400);
    let answer = server
        .send(
            "POST",
            "/sandboxes",
            &[("x-api-key", KEY)],
            vec![b' '; 5000],
        )
        .await;
    assert_eq!(answer.status, 413);
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_machine_that_fails_is_a_500_with_its_reason_and_nothing_is_left() {
    let cases = [
        ("refuse", "asked to refuse"),
        ("panic", "kernel panicked"),
        ("noagent", "after 1 s"),
        ("chatty", "an answer to nothing"),
    ];
    for (mode, reason) in cases {
        let server = Server::start_with(mode, short()).await;
        let answer = server.create(json!({})).await;
        let body = answer.json();
        assert_eq!(
            (answer.status, &body["code"]),
            (500, &json!(500)),
            "{mode}: {body}"
        );
        assert_eq!(answer.header("should-retry"), Some("false"));
        let message = body["message"].as_str().unwrap();
        assert!(message.contains(reason), "{mode}: {message}");
        server.idle().await;
        assert_eq!(
            server.api("GET", "/v2/sandboxes", Value::Null).await.json(),
            json!([])
        );
        assert!(server.stop().await);
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_creation_along() {
    let server = Server::start_with("noagent", LimitsFile::default()).await;
    let mut stream = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let body = r#"{"templateID":"base"}"#;
    let head = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-KEY: {KEY}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .unwrap();
    for _ in 0..100 {
        if server.registry.in_use() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.registry.in_use(), 1, "the creation is on its way");
    drop(stream);
    server.idle().await;
    assert!(server.stop().await);
}

#[tokio::test]
async fn unknown_sandboxes_are_404_and_502() {
    let server = Server::start_with("refuse", short()).await;
    for (method, path, body) in [
        ("GET", "/sandboxes/inone", Value::Null),
        ("DELETE", "/sandboxes/inone", Value::Null),
        ("POST", "/sandboxes/inone/timeout", json!({ "timeout": 1 })),
        ("POST", "/sandboxes/inone/refreshes", json!({})),
        ("POST", "/sandboxes/inone/connect", json!({ "timeout": 1 })),
        ("POST", "/v2/sandboxes/inone/connect", json!({})),
        ("POST", "/sandboxes/inone/pause", Value::Null),
        ("GET", "/sandboxes/inone/metrics", Value::Null),
        ("GET", "/templates/inone", Value::Null),
    ] {
        let answer = server.api(method, path, body).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (404, &json!(404)),
            "{method} {path}"
        );
    }
    let routing = [("e2b-sandbox-id", "inone"), ("e2b-sandbox-port", "49983")];
    let answer = server.send("GET", "/health", &routing, "").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["message"], "The sandbox was not found");
    let signed = server
        .send("GET", "/files?path=a&signature=v1_x", &[], "")
        .await;
    assert_eq!(signed.status, 401);
    let missing = server.send("GET", "/health", &routing[..1], "").await;
    assert_eq!(missing.status, 400);
    assert!(server.stop().await);
}

#[tokio::test]
async fn templates_can_be_read() {
    let server = Server::start_with("refuse", short()).await;
    let list = server.api("GET", "/v2/templates", Value::Null).await.json();
    assert_eq!(
        (&list[0]["templateID"], &list[0]["buildStatus"]),
        (&json!("base"), &json!("ready"))
    );
    assert_eq!(list[0]["diskSizeMB"], 1);
    let alias = server
        .api("GET", "/templates/aliases/base", Value::Null)
        .await;
    assert_eq!(
        (alias.status, &alias.json()["templateID"]),
        (200, &json!("base"))
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let limits = LimitsFile {
        header_timeout: Some(1),
        ..LimitsFile::default()
    };
    let server = Server::start_with("refuse", limits).await;
    for begun in ["", "GET /health HTTP/1.1\r\nHos"] {
        let mut stream = tokio::net::TcpStream::connect(server.address)
            .await
            .unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest));
        let _ = end.await.expect("the connection is still open");
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn the_same_port_speaks_http2_without_tls() {
    let server = Server::start_with("refuse", short()).await;
    let stream = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let uri = |path: &str| format!("http://{}{path}", server.address);
    let health = hyper::Request::get(uri("/health"))
        .body(String::new())
        .unwrap();
    assert_eq!(sender.send_request(health).await.unwrap().status(), 200);
    // Over HTTP/2 the host is the authority.
    let other = "http://49983-inone.sandbox.localhost/health";
    let other = hyper::Request::get(other).body(String::new()).unwrap();
    assert_eq!(sender.send_request(other).await.unwrap().status(), 502);
    drop(sender);
    assert!(server.stop().await);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_over_the_limit_wait_their_turn() {
    let limits = LimitsFile {
        max_connections: Some(1),
        ..LimitsFile::default()
    };
    let server = Server::start_with("refuse", limits).await;
    // One that is known and busy: its body does not come.
    let mut first = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let head = format!(
        "POST /sandboxes HTTP/1.1\r\nX-API-Key: {KEY}\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    );
    first.write_all(head.as_bytes()).await.unwrap();
    let mut asked = [0; 12];
    first.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    let second = tokio::time::timeout(Duration::from_millis(300), async {
        server.send("GET", "/health", &[], "").await
    });
    assert!(
        second.await.is_err(),
        "the second is served beside the first"
    );
    drop(first);
    assert_eq!(server.send("GET", "/health", &[], "").await.status, 200);
    assert!(server.stop().await);
}
