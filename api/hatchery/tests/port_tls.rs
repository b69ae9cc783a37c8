//! Programs that speak TLS on their ports: `network.httpsPorts`.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring;
use serde_json::json;
use std::sync::Arc;
use support::Server;
use support::programs::{SOON, get, head, mirror, program, raw, upgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

/// With a certificate of its own that has expired and is for nobody here.
fn acceptor(protocols: &[&[u8]]) -> TlsAcceptor {
    let mut params = CertificateParams::new(["nobody.example.com".into()]).unwrap();
    params.not_after = date_time_ymd(2001, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let chain = vec![certificate.der().clone()];
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = builder.with_no_client_auth();
    let mut config = config.with_single_cert(chain, key.into()).unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Arc::new(config).into()
}

/// A program that says over TLS what it was asked, or changes the protocol and echoes.
async fn secure(protocols: &[&[u8]]) -> u16 {
    let acceptor = acceptor(protocols);
    program(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let asked = head(&mut stream).await;
            if asked.to_ascii_lowercase().contains("upgrade: websocket") {
                let changed = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                               Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
                stream.write_all(changed.as_bytes()).await.unwrap();
                let mut said = [0; 5];
                stream.read_exact(&mut said).await.unwrap();
                stream.write_all(&said).await.unwrap();
            } else {
                let length = asked.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{asked}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            let _ = stream.shutdown().await;
        }
    })
    .await
}

#[tokio::test]
async fn programs_that_speak_tls_are_reached_as_others_are() {
    let server = Server::start().await;
    let chooses = secure(&[b"h2", b"http/1.1"]).await;
    let (silent, plain) = (secure(&[]).await, mirror().await);
    let network = json!({ "network": { "httpsPorts": [chooses, silent] } });
    let id = server.create(network).await.id();
    for port in [chooses, silent, plain] {
        let answer = get(&server, &id, port, &[]).await;
        let body = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(answer.status, 200, "{body}");
        assert!(body.starts_with("GET / HTTP/1.1\r\n"), "{body}");
    }

    let mut socket = raw(&server, &upgrade(&id, chooses, "websocket")).await;
    assert!(head(&mut socket).await.starts_with("HTTP/1.1 101 "));
    socket.write_all(b"hello").await.unwrap();
    let mut said = [0; 5];
    let heard = tokio::time::timeout(SOON, socket.read_exact(&mut said)).await;
    heard.unwrap().unwrap();
    assert_eq!(&said, b"hello");
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_program_that_does_not_speak_tls_there_is_told_of() {
    let server = Server::start().await;
    let plain = program(async |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    let only_http2 = secure(&[b"h2"]).await;
    let network = json!({ "network": { "httpsPorts": [plain, only_http2] } });
    let id = server.create(network).await.id();
    for port in [plain, only_http2] {
        let answer = get(&server, &id, port, &[]).await;
        let told = answer.json();
        assert_eq!(answer.status, 502, "{told}");
        let message = told["message"].as_str().unwrap();
        assert!(message.contains("its TLS failed"), "{message}");
    }
    assert!(server.stop().await);
}
