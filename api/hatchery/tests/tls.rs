//! TLS for the service's own domain: both versions of HTTP, ports by host name, upgrades, limits,
//! and a certificate that is renewed.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use bytes::Bytes;
use hatchery::config::{ConfigFile, LimitsFile};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};
use support::programs::{SOON, head, mirror, raw, upgrading};
use support::{Answer, KEY, Server, no_more_files_than, open_files};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const DOMAIN: &str = "sbx.example.com";

/// Another one that the certificate is for.
const OTHER: &str = "other.example.com";

/// Who signs certificates, and what clients trust.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Puts a new certificate for these names into a server's folder.
    fn sign(&self, names: &[&str], dir: &Path) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
        fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    }

    /// A client that speaks these protocols, the best first.
    fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

async fn start(limits: LimitsFile) -> (Server, Authority) {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    authority.sign(&[&format!("*.{DOMAIN}"), &format!("*.{OTHER}")], dir.path());
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let change = |file: &mut ConfigFile| {
        file.domain = Some(DOMAIN.into());
        (file.tls.certificate, file.tls.key) = (Some(certificate), Some(key));
    };
    let server = Server::start_changed(dir, "", limits, None, change).await;
    (server, authority)
}

/// A handshake with whom clients take for `host`.
async fn connect(
    server: &Server,
    config: &Arc<ClientConfig>,
    host: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.tls_address.unwrap()).await?;
    let connector = TlsConnector::from(Arc::clone(config));
    let shaken = connector.connect(host.to_owned().try_into().unwrap(), stream);
    tokio::time::timeout(SOON, shaken).await.unwrap()
}

/// One request over a connection of its own, in the version that both choose.
async fn ask(
    server: &Server,
    config: &Arc<ClientConfig>,
    (method, host, path): (&str, &str, &str),
    (headers, body): (&[(&str, &str)], Value),
) -> (Answer, Version) {
    let stream = connect(server, config, host).await.unwrap();
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = TokioIo::new(stream);
    let body = if body.is_null() {
        Bytes::new()
    } else {
        body.to_string().into()
    };
    let body = Full::new(body);
    let mut request = Request::builder().method(method);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = if http2 {
        let request = request.uri(format!("https://{host}{path}")).body(body);
        let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
        let (mut sender, connection) = made.unwrap();
        tokio::spawn(connection);
        sender.send_request(request.unwrap()).await
    } else {
        let request = request.uri(path).header("host", host).body(body);
        let made = hyper::client::conn::http1::handshake(stream).await;
        let (mut sender, connection) = made.unwrap();
        tokio::spawn(connection);
        sender.send_request(request.unwrap()).await
    };
    let (head, body) = response.unwrap().into_parts();
    let answer = Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    };
    (answer, head.version)
}

/// What a client does that knows nothing but a domain and a key.
#[tokio::test]
async fn a_domain_and_a_key_are_enough_over_both_versions_of_http() {
    let (server, authority) = start(LimitsFile::default()).await;
    let port = mirror().await;
    let key = [("x-api-key", KEY)];
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let client = authority.client(protocols);
        let api = format!("api.{DOMAIN}");
        let wanted = json!({ "templateID": "base", "timeout": 300 });
        let create = ("POST", &*api, "/v2/sandboxes");
        let (made, spoken) = ask(&server, &client, create, (&key, wanted)).await;
        assert_eq!(spoken, version);
        let (id, made) = (made.id(), made.json());
        assert_eq!(made["domain"], DOMAIN);
        let token = made["envdAccessToken"].as_str().unwrap();
        let envd = format!("49983-{id}.{DOMAIN}");
        let metrics = ("GET", &*envd, "/metrics");
        let (refused, _) = ask(&server, &client, metrics, (&[], Value::Null)).await;
        assert_eq!(refused.status, 401, "{refused:?}");
        let token = [("x-access-token", token)];
        let (served, _) = ask(&server, &client, metrics, (&token, Value::Null)).await;
        assert_eq!(served.status, 200, "{served:?}");
        let host = format!("{port}-{id}.{DOMAIN}");
        let (told, _) = ask(&server, &client, ("GET", &host, "/"), (&[], Value::Null)).await;
        let told = String::from_utf8(told.body.to_vec()).unwrap();
        for line in [
            format!("host: {host}\r\n"),
            format!("x-forwarded-host: {host}\r\n"),
            "x-forwarded-proto: https\r\n".into(),
            "x-forwarded-for: 127.0.0.1\r\n".into(),
        ] {
            assert!(told.contains(&line), "{line:?} in {told}");
        }
        let kill = ("DELETE", &*api, &*format!("/sandboxes/{id}"));
        let (killed, _) = ask(&server, &client, kill, (&key, Value::Null)).await;
        assert_eq!(killed.status, 204, "{killed:?}");
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_websocket_goes_over_tls_and_the_plain_listener_serves_beside_it() {
    let (server, authority) = start(LimitsFile::default()).await;
    let port = upgrading().await;
    let id = server.create(json!({})).await.id();
    let host = format!("{port}-{id}.{DOMAIN}");
    let client = authority.client(&["http/1.1"]);
    let mut stream = connect(&server, &client, &host).await.unwrap();
    let asked = format!(
        "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: y\r\n\r\n"
    );
    stream.write_all(asked.as_bytes()).await.unwrap();
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let mut early = [0; 5];
    stream.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"HELLO");
    drop(stream);
    assert!(server.stop().await);
}

/// A browser that comes over TLS has seen that the server may answer under the name.
#[tokio::test]
async fn a_name_of_the_certificate_is_not_foreign() {
    let (server, authority) = start(LimitsFile::default()).await;
    let open = json!({ "templateID": "base" });
    let id = server.api("POST", "/sandboxes", open).await.id();
    let host = format!("49983-{id}.{OTHER}");
    let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let plain = head(&mut raw(&server, &request).await).await;
    assert!(plain.starts_with("HTTP/1.1 403 "), "{plain}");
    for protocol in ["h2", "http/1.1"] {
        let client = authority.client(&[protocol]);
        let health = ("GET", &*host, "/health");
        let (served, _) = ask(&server, &client, health, (&[], Value::Null)).await;
        assert_eq!(served.status, 204, "{served:?}");
    }
    assert!(server.stop().await);
}

/// As the server does when it starts.
fn allow_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Connections that begin no handshake, or do not end it, take nobody's place for long.
#[tokio::test]
async fn a_thousand_half_open_handshakes_are_in_nobodys_way() {
    let limits = LimitsFile {
        max_connections: Some(64),
        ..LimitsFile::default()
    };
    let (server, authority) = start(limits).await;
    let client = authority.client(&["h2"]);
    allow_many_files();
    let mut half_open = Vec::new();
    let before = open_files();
    let health = ("GET", &*format!("api.{DOMAIN}"), "/health");
    for number in 0..1000 {
        let mut stream = TcpStream::connect(server.tls_address.unwrap())
            .await
            .unwrap();
        if number % 2 == 0 {
            // The first record of a handshake, up to its middle.
            stream.write_all(&[22, 3, 1, 2, 0, 1, 0]).await.unwrap();
        }
        half_open.push(stream);
        if number % 100 == 99 {
            let begin = Instant::now();
            let (answer, _) = ask(&server, &client, health, (&[], Value::Null)).await;
            assert_eq!(answer.status, 200);
            let plain = server.send("GET", "/health", &[], "").await;
            assert_eq!(plain.status, 200);
            assert!(begin.elapsed() < Duration::from_secs(5));
        }
    }
    // Theirs, and those that have a place.
    no_more_files_than(before + half_open.len() + 64).await;
    let begin = Instant::now();
    assert!(server.stop().await);
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "nobody waits for them"
    );
}

#[tokio::test]
async fn a_renewed_certificate_is_served_with_and_old_connections_go_on() {
    let (server, authority) = start(LimitsFile::default()).await;
    let client = authority.client(&["http/1.1"]);
    let api = format!("api.{DOMAIN}");
    let mut old = connect(&server, &client, &api).await.unwrap();
    let of = |stream: &TlsStream<TcpStream>| {
        let certificates = stream.get_ref().1.peer_certificates();
        certificates.unwrap()[0].to_vec()
    };
    authority.sign(
        &[&format!("*.{DOMAIN}"), "new.example.com"],
        server.dir.path(),
    );
    let begin = Instant::now();
    loop {
        let now = connect(&server, &client, &api).await.unwrap();
        if of(&now) != of(&old) {
            break;
        }
        assert!(begin.elapsed() < SOON, "the certificate is not read again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    connect(&server, &client, "new.example.com").await.unwrap();
    let request = format!("GET /health HTTP/1.1\r\nHost: {api}\r\n\r\n");
    old.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut old).await.starts_with("HTTP/1.1 200 "));
    let stranger = Authority::new().client(&[]);
    connect(&server, &stranger, &api).await.unwrap_err();
    assert!(server.stop().await);
}
