//! envd's files and directories over the real guest agent.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod support;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant};
use support::envd::{Box1, PATIENT};
use tokio::time::sleep;

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
