//! The envd facade over the real guest agent, which runs as an ordinary process. What the SDKs see
//! of it is tested by `tests/sdk`; here are the corners that they cannot reach.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant};
use support::{Answer, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const STREAM: (&str, &str) = ("content-type", "application/connect+json");
const UNARY: (&str, &str) = ("content-type", "application/json");
const PATIENT: Duration = Duration::from_secs(20);

/// A server with one sandbox.
struct Box1 {
    server: Server,
    id: String,
    token: String,
    dir: tempfile::TempDir,
}

impl Box1 {
    async fn new() -> Self {
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
    fn headers<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut headers = vec![
            ("e2b-sandbox-id", self.id.as_str()),
            ("e2b-sandbox-port", "49983"),
            ("x-access-token", self.token.as_str()),
            ("authorization", "Basic cm9vdDo="),
        ];
        headers.extend_from_slice(more);
        headers
    }

    async fn send(
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

    async fn unary(&self, method: &str, body: Value) -> Answer {
        self.send("POST", &format!("/{method}"), &[UNARY], body.to_string())
            .await
    }

    async fn stream(&self, method: &str, more: &[(&str, &str)], body: Value) -> Stream {
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

    async fn start(&self, script: &str, more: &[(&str, &str)]) -> (Stream, u32) {
        let request = json!({ "process": { "cmd": "/bin/sh", "args": ["-c", script] } });
        let mut stream = self.stream("Start", more, request).await;
        let pid = stream.message().await["event"]["start"]["pid"]
            .as_u64()
            .unwrap();
        (stream, u32::try_from(pid).unwrap())
    }

    /// The path of a file in the test's own folder.
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir.path().display())
    }

    async fn connect(&self, pid: u32) -> Stream {
        self.stream("Connect", &[], json!({ "process": { "pid": pid } }))
            .await
    }
}

fn envelope(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

struct Stream {
    body: Incoming,
    buffer: BytesMut,
}

/// A frame, or how the stream broke off.
type Frame = Result<(u8, Value), String>;

impl Stream {
    async fn frame(&mut self) -> Frame {
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

    async fn message(&mut self) -> Value {
        let (flags, value) = self.frame().await.unwrap();
        assert_eq!(flags, 0, "{value}");
        value
    }

    /// The rest: standard output, the end event, the end frame.
    async fn rest(&mut self) -> (Vec<u8>, Value, Value) {
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

#[tokio::test]
async fn every_listener_hears_all_and_late_ones_the_end() {
    let it = Box1::new().await;
    let (mut first, pid) = it.start("read x; seq 1 20000; exit 7", &[]).await;
    let mut second = it.connect(pid).await;
    assert_eq!(
        second.message().await,
        json!({ "event": { "start": { "pid": pid } } })
    );
    let list = it.unary("process.Process/List", json!({})).await.json();
    assert_eq!(list["processes"][0]["pid"], pid);
    assert_eq!(list["processes"][0]["config"]["cmd"], "/bin/sh");
    let input = json!({ "process": { "pid": pid }, "input": { "stdin": "Cg" } });
    assert_eq!(
        it.unary("process.Process/SendInput", input).await.json(),
        json!({})
    );
    let wanted: Vec<u8> = (1..=20_000)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect();
    let (one, two) = tokio::join!(first.rest(), second.rest());
    assert!(
        one.0 == wanted && two.0 == wanted,
        "{} and {} bytes",
        one.0.len(),
        two.0.len()
    );
    let words = "exit status 7";
    let end = json!({ "exitCode": 7, "exited": true, "status": words, "error": words });
    assert_eq!((&one.1, &two.1), (&end, &end));
    let mut late = it.connect(pid).await;
    late.message().await;
    assert_eq!(late.rest().await, (Vec::new(), end, json!({})));
    assert_eq!(
        it.unary("process.Process/List", json!({})).await.json()["processes"],
        json!([])
    );
    let signal = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGKILL" });
    assert_eq!(
        it.unary("process.Process/SendSignal", signal).await.status,
        404
    );
}

#[tokio::test]
async fn a_listener_that_does_not_read_blocks_the_process() {
    let it = Box1::new().await;
    let mark = it.path("done");
    let script = format!("head -c 200000000 /dev/zero; touch {mark}");
    let (stalled, pid) = it.start(&script, &[]).await;
    sleep(Duration::from_secs(2)).await;
    assert!(
        !std::fs::exists(&mark).unwrap(),
        "200 MB went where nobody read them"
    );
    // Others of the same sandbox do not notice.
    let (mut other, _) = it.start("echo fine", &[]).await;
    assert_eq!(other.rest().await.0, b"fine\n");
    // Nobody listens any more: the output goes nowhere and the process runs on.
    drop(stalled);
    let mut again = it.connect(pid).await;
    let (_, end, _) = timeout(PATIENT * 3, again.rest()).await.unwrap();
    assert_eq!(end["exitCode"], 0);
    assert!(std::fs::exists(&mark).unwrap());
}

#[tokio::test]
async fn deadlines_kill_what_was_started_and_only_leave_what_was_connected_to() {
    let it = Box1::new().await;
    let (mut started, pid) = it
        .start("sleep 60", &[("connect-timeout-ms", "1500")])
        .await;
    let brief = [("connect-timeout-ms", "200")];
    let mut connected = it
        .stream("Connect", &brief, json!({ "process": { "pid": pid } }))
        .await;
    connected.message().await;
    assert_eq!(
        connected.rest().await.2["error"]["code"],
        "deadline_exceeded"
    );
    let mut witness = it.connect(pid).await;
    let (_, end, last) = started.rest().await;
    assert_eq!(
        (end, last["error"]["code"].as_str()),
        (Value::Null, Some("deadline_exceeded"))
    );
    let words = "signal: killed";
    let killed = json!({ "exitCode": -1, "exited": false, "status": words, "error": words });
    assert_eq!(witness.rest().await.1, killed);
    // The deadline holds for a process whose client has left.
    let (gone, pid) = it.start("sleep 60", &[("connect-timeout-ms", "500")]).await;
    drop(gone);
    assert_eq!(it.connect(pid).await.rest().await.1["exitCode"], -1);
}

#[tokio::test]
async fn keepalives_come_when_nothing_else_does() {
    let it = Box1::new().await;
    let (mut stream, pid) = it
        .start("sleep 60", &[("keepalive-ping-interval", "1")])
        .await;
    let start = Instant::now();
    assert_eq!(
        stream.message().await,
        json!({ "event": { "keepalive": {} } })
    );
    assert!(start.elapsed() >= Duration::from_millis(900));
    let signal = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGTERM" });
    assert_eq!(
        it.unary("process.Process/SendSignal", signal).await.status,
        200
    );
    assert_eq!(stream.rest().await.1["status"], "signal: terminated");
}

#[tokio::test]
async fn input_streams_and_ends() {
    let it = Box1::new().await;
    let (mut stream, pid) = it.start("cat", &[]).await;
    let mut body = envelope(&json!({ "start": { "process": { "pid": pid } } }));
    for piece in [
        json!({ "data": { "input": { "stdin": "aGVs" } } }),
        json!({ "keepalive": {} }),
        json!({ "data": { "input": { "stdin": "bG8=" } } }),
    ] {
        body.extend(envelope(&piece));
    }
    let answer = it
        .send("POST", "/process.Process/StreamInput", &[STREAM], body)
        .await;
    assert_eq!(&answer.body[..], b"\0\0\0\0\x02{}\x02\0\0\0\x02{}");
    let close = json!({ "process": { "pid": pid } });
    assert_eq!(
        it.unary("process.Process/CloseStdin", close.clone())
            .await
            .json(),
        json!({})
    );
    assert_eq!(stream.rest().await.0, b"hello");
    assert_eq!(
        it.unary("process.Process/CloseStdin", close).await.status,
        404
    );
    let request =
        json!({ "process": { "cmd": "/bin/sleep", "args": ["60"] }, "stdin": false, "tag": "t" });
    let mut closed = it.stream("Start", &[], request).await;
    closed.message().await;
    let select = json!({ "tag": "t" });
    let input = json!({ "process": select, "input": { "stdin": "Cg==" } });
    let refused = it.unary("process.Process/SendInput", input).await;
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (500, &json!("internal"))
    );
    let signal = json!({ "process": select, "signal": 9 });
    assert_eq!(
        it.unary("process.Process/SendSignal", signal).await.status,
        200
    );
    closed.rest().await;
}

#[tokio::test]
async fn a_terminal_has_a_size_and_takes_input() {
    let it = Box1::new().await;
    let script = "stty size; read x; stty size";
    let request = json!({ "process": { "cmd": "/bin/sh", "args": ["-c", script] },
        "pty": { "size": { "cols": 91, "rows": 37 } } });
    let mut stream = it.stream("Start", &[], request).await;
    let pid = stream.message().await["event"]["start"]["pid"].clone();
    let text = |value: &Value| {
        let text = value["event"]["data"]["pty"].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
    };
    assert_eq!(text(&stream.message().await), "37 91\r\n");
    let select = json!({ "pid": pid });
    let size = json!({ "process": select, "pty": { "size": { "cols": 50, "rows": 20 } } });
    assert_eq!(
        it.unary("process.Process/Update", size).await.json(),
        json!({})
    );
    let refused = it
        .unary("process.Process/CloseStdin", json!({ "process": select }))
        .await;
    assert_eq!(refused.json()["code"], "internal");
    let input = json!({ "process": select, "input": { "pty": STANDARD.encode("\n") } });
    assert_eq!(
        it.unary("process.Process/SendInput", input).await.json(),
        json!({})
    );
    let mut seen = String::new();
    loop {
        let value = stream.message().await;
        if value["event"]["end"].is_object() {
            break;
        }
        seen += &text(&value);
    }
    assert!(seen.contains("20 50"), "{seen:?}");
}

#[tokio::test]
async fn environment_and_directory() {
    let it = Box1::new().await;
    let at = std::fs::canonicalize(it.dir.path())
        .unwrap()
        .display()
        .to_string();
    let request = json!({ "process": { "cmd": "/bin/sh",
        "args": ["-c", "echo $E2B_SANDBOX_ID $LAYER $BASE $HOME $USER $HATCHERY_X; pwd"],
        "envs": { "LAYER": "request", "HATCHERY_X": "a=b" }, "cwd": at } });
    let mut stream = it.stream("Start", &[], request).await;
    stream.message().await;
    let wanted = format!("{} request 1 /root root a=b\n{at}\n", it.id);
    assert_eq!(String::from_utf8(stream.rest().await.0).unwrap(), wanted);
    for (process, code) in [
        (json!({ "cmd": "/no/such/program" }), "invalid_argument"),
        (
            json!({ "cmd": "/bin/true", "cwd": "/no/such/place" }),
            "invalid_argument",
        ),
        (
            json!({ "cmd": "/bin/true", "cwd": "~other" }),
            "invalid_argument",
        ),
        (
            json!({ "cmd": "/bin/true", "envs": { "A=B": "" } }),
            "invalid_argument",
        ),
        (
            json!({ "cmd": "/bin/true", "args": ["x".repeat(300_000)] }),
            "invalid_argument",
        ),
    ] {
        let mut stream = it.stream("Start", &[], json!({ "process": process })).await;
        assert_eq!(
            stream.frame().await.unwrap().1["error"]["code"],
            code,
            "{process}"
        );
    }
}

#[tokio::test]
async fn when_the_sandbox_ends_streams_break_off() {
    let it = Box1::new().await;
    let (mut stream, _) = it.start("sleep 60", &[]).await;
    let killed = it
        .server
        .api("DELETE", &format!("/sandboxes/{}", it.id), Value::Null)
        .await;
    assert_eq!(killed.status, 204);
    stream.frame().await.unwrap_err();
    assert_eq!(it.send("GET", "/health", &[], "").await.status, 502);
}

#[tokio::test]
async fn a_dead_agent_breaks_streams_and_then_the_sandbox_is_gone() {
    let it = Box1::new().await;
    // The agent is the parent of what it starts.
    let (mut stream, _) = it.start("sleep 0.5; kill -9 $PPID; sleep 60", &[]).await;
    let end = loop {
        match stream.frame().await {
            Ok((flags, value)) => assert_eq!(flags, 0, "{value}"),
            Err(why) => break why,
        }
    };
    assert!(!end.contains("end frame"), "{end}");
    assert_eq!(it.send("GET", "/health", &[], "").await.status, 502);
}

#[tokio::test]
async fn parts_of_files() {
    let it = Box1::new().await;
    let path = it.path("ten");
    std::fs::write(&path, "0123456789").unwrap();
    std::os::unix::fs::symlink(&path, it.path("link")).unwrap();
    for path in [path.clone(), it.path("link")] {
        let url = format!("/files?path={path}");
        let whole = it.send("GET", &url, &[], "").await;
        assert_eq!((whole.status, &whole.body[..]), (200, &b"0123456789"[..]));
        assert_eq!(whole.header("content-length"), Some("10"));
        assert_eq!(
            whole.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        let part = it.send("GET", &url, &[("range", "bytes=2-4")], "").await;
        assert_eq!((part.status, &part.body[..]), (206, &b"234"[..]));
        assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
        let tail = it.send("GET", &url, &[("range", "bytes=-3")], "").await;
        assert_eq!((tail.status, &tail.body[..]), (206, &b"789"[..]));
        let beyond = it.send("GET", &url, &[("range", "bytes=10-")], "").await;
        assert_eq!(
            (beyond.status, beyond.header("content-range")),
            (416, Some("bytes */10"))
        );
        let modified = whole.header("last-modified").unwrap();
        let same = it
            .send("GET", &url, &[("if-modified-since", modified)], "")
            .await;
        assert_eq!((same.status, same.body.len()), (304, 0));
        let same = [("range", "bytes=0-0"), ("if-range", modified)];
        assert_eq!(it.send("GET", &url, &same, "").await.status, 206);
        let changed = [
            ("range", "bytes=0-0"),
            ("if-range", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ];
        assert_eq!(it.send("GET", &url, &changed, "").await.status, 200);
    }
    // Files whose size the kernel does not tell come whole all the same; empty ones say so.
    let proc = it
        .send("GET", "/files?path=/proc/self/status", &[], "")
        .await;
    assert!(
        proc.status == 200 && proc.body.starts_with(b"Name:"),
        "{proc:?}"
    );
    std::fs::write(it.path("none"), "").unwrap();
    let none = it
        .send("GET", &format!("/files?path={}", it.path("none")), &[], "")
        .await;
    assert_eq!(
        (none.status, none.header("content-length")),
        (200, Some("0"))
    );
}

fn form(parts: &[(&str, &str, &str)]) -> String {
    let mut body = String::new();
    for (name, file, text) in parts {
        body += &format!(
            "--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\r\n{text}\r\n"
        );
    }
    body + "--b--\r\n"
}

#[tokio::test]
async fn uploads_of_every_form() {
    let it = Box1::new().await;
    let multipart = ("content-type", "multipart/form-data; boundary=b");
    let (a, b) = (it.path("new dir/ä.txt"), it.path("b"));
    let body = form(&[
        ("file", &a, "alpha"),
        ("other", "/nowhere", "x"),
        ("file", &b, ""),
    ]);
    let answer = it.send("POST", "/files", &[multipart], body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let wanted = json!([{ "path": a, "name": "ä.txt", "type": "file" },
        { "path": b, "name": "b", "type": "file" }]);
    assert_eq!(answer.json(), wanted);
    assert_eq!(std::fs::read_to_string(&a).unwrap(), "alpha");
    assert_eq!(std::fs::read_to_string(&b).unwrap(), "");

    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let text = "many ".repeat(100_000);
    gzip.write_all(text.as_bytes()).unwrap();
    let raw = [
        ("content-type", "application/octet-stream"),
        ("content-encoding", "gzip"),
    ];
    let url = format!("/files?path={b}");
    let answer = it.send("POST", &url, &raw, gzip.finish().unwrap()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(std::fs::read_to_string(&b).unwrap(), text);

    let twice = form(&[("file", &b, "1"), ("file", &b, "2")]);
    let cut = &form(&[("file", &b, "1")])[..84];
    let folder = format!("/files?path={}", it.path("new%20dir"));
    let octets = ("content-type", "application/octet-stream");
    for (url, kind, body, status) in [
        ("/files", multipart, twice.as_str(), 400),
        ("/files", multipart, cut, 400),
        ("/files", ("content-type", "text/plain"), "x", 400),
        ("/files", octets, "x", 400),
        (folder.as_str(), octets, "x", 400),
        ("/files?path=/dev/full", octets, "x", 400),
        ("/files?path=/proc/nothing/here", octets, "x", 404),
        (
            "/files?path=/tmp/x&username=nobody-of-that-name",
            octets,
            "x",
            401,
        ),
    ] {
        let answer = it.send("POST", url, &[kind], body.to_owned()).await;
        assert_eq!(answer.status, status, "{url}: {answer:?}");
        assert_eq!(answer.json()["code"], status);
    }
    let missing = it
        .send("GET", &format!("/files?path={}", it.path("no")), &[], "")
        .await;
    let message = format!("path '{}' does not exist", it.path("no"));
    assert_eq!(
        (missing.status, missing.json()["message"].clone()),
        (404, json!(message))
    );
    let folder = it.send("GET", &folder, &[], "").await;
    assert_eq!(folder.status, 400);
}

#[tokio::test]
async fn a_vanished_uploader_and_a_vanished_downloader_leave_no_stream() {
    let it = Box1::new().await;
    let path = it.path("big");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(200 << 20)
        .unwrap();
    for _ in 0..300 {
        // More than the link has streams.
        let headers = it.headers(&[]);
        let url = format!("/files?path={path}");
        let response = it.server.open("GET", &url, &headers, "").await.unwrap();
        assert_eq!(response.status(), 200);
        drop(response);
    }
    let end = Instant::now() + PATIENT;
    while it
        .send(
            "GET",
            &format!("/files?path={path}"),
            &[("range", "bytes=0-0")],
            "",
        )
        .await
        .status
        != 206
    {
        assert!(
            Instant::now() < end,
            "the streams of vanished clients are still open"
        );
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn directories() {
    let it = Box1::new().await;
    for name in ["d/b/deep", "d/a.txt", "d/a/z"] {
        let make = it
            .unary(
                "filesystem.Filesystem/MakeDir",
                json!({ "path": it.path(name) }),
            )
            .await;
        assert_eq!(
            make.json()["entry"]["type"],
            "FILE_TYPE_DIRECTORY",
            "{make:?}"
        );
    }
    let again = it
        .unary(
            "filesystem.Filesystem/MakeDir",
            json!({ "path": it.path("d/a") }),
        )
        .await;
    assert_eq!(
        (again.status, again.json()["code"].clone()),
        (409, json!("already_exists"))
    );
    let list = |depth: u32| {
        let request = json!({ "path": it.path("d"), "depth": depth });
        let it = &it;
        async move {
            let list = it
                .unary("filesystem.Filesystem/ListDir", request)
                .await
                .json();
            let name = |entry: &Value| entry["name"].as_str().unwrap().to_owned();
            list["entries"]
                .as_array()
                .unwrap()
                .iter()
                .map(name)
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(list(0).await, ["a", "a.txt", "b"]);
    assert_eq!(list(1000).await, ["a", "z", "a.txt", "b", "deep"]);
    let source = json!({ "source": it.path("d/b"), "destination": it.path("e/f") });
    let moved = it.unary("filesystem.Filesystem/Move", source).await.json();
    assert_eq!(moved["entry"]["path"], it.path("e/f"));
    for _ in 0..2 {
        let gone = it
            .unary(
                "filesystem.Filesystem/Remove",
                json!({ "path": it.path("d") }),
            )
            .await;
        assert_eq!(gone.json(), json!({}), "removing what is not there is fine");
    }
    let stat = it
        .unary(
            "filesystem.Filesystem/Stat",
            json!({ "path": it.path("d") }),
        )
        .await;
    assert_eq!(
        (stat.status, stat.json()["code"].clone()),
        (404, json!("not_found"))
    );
}

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
