//! envd's processes over the real guest agent: streams, input, terminals, deadlines.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::envd::{Box1, PATIENT, STREAM, envelope};
use tokio::time::{sleep, timeout};

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
