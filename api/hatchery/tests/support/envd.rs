//! A sandbox's envd, asked as clients ask it.

use super::{Answer, Server};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

pub(crate) const STREAM: (&str, &str) = ("content-type", "application/connect+json");
pub(crate) const UNARY: (&str, &str) = ("content-type", "application/json");
pub(crate) const PATIENT: Duration = Duration::from_secs(20);

/// A server with one sandbox.
pub(crate) struct Box1 {
    pub(crate) server: Server,
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) dir: tempfile::TempDir,
}

impl Box1 {
    pub(crate) async fn new() -> Self {
        let server = Server::start().await;
        let made = server
            .create(json!({ "envVars": { "LAYER": "sandbox", "BASE": "1" } }))
            .await;
        let id = made.id();
        let token = made.json()["envdAccessToken"].as_str().unwrap().to_owned();
        Self {
            server,
            id,
            token,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// The headers of a caller who is root: the only user that every machine has.
    pub(crate) fn headers<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut headers = vec![
            ("e2b-sandbox-id", self.id.as_str()),
            ("e2b-sandbox-port", "49983"),
            ("x-access-token", self.token.as_str()),
            ("authorization", "Basic cm9vdDo="),
        ];
        headers.extend_from_slice(more);
        headers
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.server
            .send(method, path, &self.headers(more), body)
            .await
    }

    pub(crate) async fn unary(&self, method: &str, body: Value) -> Answer {
        self.send("POST", &format!("/{method}"), &[UNARY], body.to_string())
            .await
    }

    pub(crate) async fn stream(&self, method: &str, more: &[(&str, &str)], body: Value) -> Stream {
        let mut headers = vec![STREAM];
        headers.extend_from_slice(more);
        let headers = self.headers(&headers);
        let path = format!("/process.Process/{method}");
        let response = self
            .server
            .open("POST", &path, &headers, envelope(&body))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], STREAM.1);
        Stream {
            body: response.into_body(),
            buffer: BytesMut::new(),
        }
    }

    pub(crate) async fn start(&self, script: &str, more: &[(&str, &str)]) -> (Stream, u32) {
        let request = json!({ "process": { "cmd": "/bin/sh", "args": ["-c", script] } });
        let mut stream = self.stream("Start", more, request).await;
        let pid = stream.message().await["event"]["start"]["pid"]
            .as_u64()
            .unwrap();
        (stream, u32::try_from(pid).unwrap())
    }

    /// The path of a file in the test's own folder.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir.path().display())
    }

    pub(crate) async fn connect(&self, pid: u32) -> Stream {
        self.stream("Connect", &[], json!({ "process": { "pid": pid } }))
            .await
    }
}

pub(crate) fn envelope(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

pub(crate) struct Stream {
    pub(crate) body: Incoming,
    pub(crate) buffer: BytesMut,
}

/// A frame, or how the stream broke off.
pub(crate) type Frame = Result<(u8, Value), String>;

impl Stream {
    pub(crate) async fn frame(&mut self) -> Frame {
        loop {
            if self.buffer.len() >= 5 {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap());
                let length = usize::try_from(length).unwrap();
                if self.buffer.len() >= 5 + length {
                    let flags = self.buffer.get_u8();
                    self.buffer.advance(4);
                    let text = self.buffer.split_to(length);
                    return Ok((flags, serde_json::from_slice(&text).unwrap()));
                }
            }
            match timeout(PATIENT, self.body.frame())
                .await
                .expect("no frame came in time")
            {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap()),
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the body ended without an end frame".into()),
            }
        }
    }

    pub(crate) async fn message(&mut self) -> Value {
        let (flags, value) = self.frame().await.unwrap();
        assert_eq!(flags, 0, "{value}");
        value
    }

    /// The rest: standard output, the end event, the end frame.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, Value, Value) {
        let mut output = Vec::new();
        let mut end = Value::Null;
        loop {
            let (flags, value) = self.frame().await.unwrap();
            if flags == 2 {
                return (output, end, value);
            }
            if let Some(text) = value["event"]["data"]["stdout"].as_str() {
                output.extend_from_slice(&STANDARD.decode(text).unwrap());
            } else if value["event"]["end"].is_object() {
                end = value["event"]["end"].clone();
            }
        }
    }
}
