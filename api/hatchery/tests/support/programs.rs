//! Programs that listen as those of a sandbox do, and requests to them.

use super::{Answer, Server};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What has to happen happens sooner.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A program in the guest; what is done with each of its connections.
pub(crate) async fn program<W>(serve: impl Fn(TcpStream) -> W + Send + 'static) -> u16
where
    W: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// A head, up to its blank line.
pub(crate) async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

/// A program that answers with the head that it was sent.
pub(crate) async fn mirror() -> u16 {
    program(async |mut stream| {
        let head = head(&mut stream).await;
        let length = head.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{head}");
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

/// A program that answers with the body that it was sent, as it comes.
pub(crate) async fn echo() -> u16 {
    program(async |stream| {
        let service = service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

/// The headers that name a port of a sandbox.
pub(crate) fn to<'a>(id: &'a str, port: &'a str) -> [(&'a str, &'a str); 2] {
    [("e2b-sandbox-id", id), ("e2b-sandbox-port", port)]
}

pub(crate) async fn get(server: &Server, id: &str, port: u16, more: &[(&str, &str)]) -> Answer {
    let port = port.to_string();
    let headers = [&to(id, &port)[..], more].concat();
    server.send("GET", "/", &headers, "").await
}

/// A client's connection, with a request that has these lines sent.
pub(crate) async fn raw(server: &Server, lines: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(lines.as_bytes()).await.unwrap();
    stream
}

/// A program that upgrades and then says back what it hears, in capitals.
pub(crate) async fn upgrading() -> u16 {
    program(async |mut stream| {
        let asked = head(&mut stream).await.to_ascii_lowercase();
        if !asked.contains("upgrade: websocket\r\n") {
            let plain = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain";
            return stream.write_all(plain.as_bytes()).await.unwrap();
        }
        assert!(asked.contains("connection: upgrade\r\n") && asked.contains("sec-websocket-key"));
        let changed = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nearly";
        stream.write_all(changed.as_bytes()).await.unwrap();
        let mut buffer = [0; 1000];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            buffer.make_ascii_uppercase();
            stream.write_all(&buffer[..length]).await.unwrap();
        }
        stream.write_all(b"the end").await.unwrap();
    })
    .await
}

pub(crate) fn upgrade(id: &str, port: u16, protocol: &str) -> String {
    format!(
        "GET /socket HTTP/1.1\r\nHost: {port}-{id}.localhost\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: {protocol}\r\nSec-WebSocket-Key: y\r\n\r\n"
    )
}
