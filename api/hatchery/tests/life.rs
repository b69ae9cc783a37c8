//! The life of sandboxes, with the real guest agent as an ordinary process in place of a machine.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{Answer, KEY, Server, children, open_files};

/// These tests count processes and descriptors of this one, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn list_ids(list: &Value) -> Vec<String> {
    let id = |entry: &Value| entry["sandboxID"].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn a_creation_answers_what_it_made_and_how_long_it_took() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let made = server.create(json!({ "unknown": 1 })).await;
    let (id, body) = (made.id(), made.json());
    assert_eq!((id.len(), &id[..1]), (20, "i"));
    assert_eq!(
        (&body["templateID"], &body["envdVersion"]),
        (&json!("base"), &json!("0.6.13"))
    );
    assert_eq!(
        body["envdAccessToken"].as_str().map(str::len),
        Some(64),
        "v2 is always secure"
    );
    let timing = made.header("server-timing").unwrap();
    for step in ["spawn", "configure", "hello", "identity", "total"] {
        assert!(timing.contains(&format!("{step};dur=")), "{timing}");
    }
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

#[tokio::test]
async fn get_and_list_show_it() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let made = server.create(json!({ "metadata": { "u": "x y&z" } })).await;
    let id = made.id();
    let detail = server.get(&id).await.json();
    assert_eq!(
        (&detail["state"], &detail["cpuCount"]),
        (&json!("running"), &json!(1))
    );
    assert_eq!(
        (&detail["memoryMB"], &detail["diskSizeMB"]),
        (&json!(512), &json!(1))
    );
    assert_eq!(detail["metadata"], json!({ "u": "x y&z" }));
    assert_eq!(detail["envdAccessToken"], made.json()["envdAccessToken"]);
    let old_form = server.get(&format!("{id}-6532622b")).await;
    assert_eq!(old_form.status, 200);

    let found = "/v2/sandboxes?metadata=u%3Dx%252520y%252526z&state=running%2Cpaused";
    let list = server.api("GET", found, Value::Null).await;
    assert_eq!(list_ids(&list.json()), [id.as_str()]);
    for other in ["metadata=u%3Dother", "state=paused", "template=other"] {
        let none = server
            .api("GET", &format!("/v2/sandboxes?{other}"), Value::Null)
            .await;
        assert_eq!(none.json(), json!([]), "{other}");
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn set_timeout_moves_the_end_and_connect_only_extends_it() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let made = server.create(json!({})).await;
    let id = made.id();
    let end = |answer: Answer| {
        let text = answer.json()["endAt"].as_str().unwrap().to_owned();
        text.parse::<jiff::Timestamp>().unwrap()
    };
    let first = end(server.get(&id).await);
    let set = format!("/sandboxes/{id}/timeout");
    assert_eq!(
        server
            .api("POST", &set, json!({ "timeout": 600 }))
            .await
            .status,
        204
    );
    let later = end(server.get(&id).await);
    assert!(later > first);

    let connect = format!("/v2/sandboxes/{id}/connect");
    let connected = server.api("POST", &connect, json!({ "timeout": 20 })).await;
    assert_eq!(connected.status, 200);
    assert_eq!(connected.json(), made.json(), "the token too");
    assert_eq!(end(server.get(&id).await), later, "connect never shortens");
    server
        .api("POST", &connect, json!({ "timeout": 900 }))
        .await;
    assert!(end(server.get(&id).await) > later);

    assert_eq!(
        server
            .api("POST", &set, json!({ "timeout": 60 }))
            .await
            .status,
        204
    );
    assert!(
        end(server.get(&id).await) < first,
        "set_timeout may shorten"
    );
    let refresh = format!("/sandboxes/{id}/refreshes");
    assert_eq!(
        server
            .api("POST", &refresh, json!({ "duration": 20 }))
            .await
            .status,
        204
    );
    assert!(
        end(server.get(&id).await) < first,
        "a refresh never shortens"
    );
    for bad in [
        json!({ "timeout": -1 }),
        json!({ "timeout": 1_000_000 }),
        json!({}),
    ] {
        assert_eq!(server.api("POST", &set, bad).await.status, 400);
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn what_is_not_built_yet_says_so_and_a_killed_sandbox_is_gone() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let answer = server.api("POST", "/v3/templates", json!({})).await;
    assert_eq!((answer.status, &answer.json()["code"]), (501, &json!(501)));
    let network = format!("/sandboxes/{id}/network");
    for (rules, status) in [
        (
            json!({ "denyOut": ["0.0.0.0/0"], "allowOut": ["example.com"] }),
            204,
        ),
        (json!({ "allow_internet_access": false }), 204),
        (json!({}), 204),
        (json!({ "denyOut": ["example.com"] }), 400),
        (json!({ "rules": { "example.com": [1] } }), 400),
        (json!({ "egressProxy": { "address": "x:1" } }), 501),
    ] {
        let answer = server.api("PUT", &network, rules).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let closed = [
        ("e2b-sandbox-id", id.as_str()),
        ("e2b-sandbox-port", "8080"),
    ];
    let closed = server.send("GET", "/", &closed, "").await;
    let message = &closed.json()["message"];
    assert_eq!(
        (closed.status, message),
        (502, &json!("The sandbox is running but port is not open"))
    );

    let path = format!("/sandboxes/{id}");
    assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
    assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 404);
    assert!(server.stop().await);
}

#[tokio::test]
async fn metrics_are_of_now() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let one = server
        .api("GET", &format!("/sandboxes/{id}/metrics"), Value::Null)
        .await
        .json();
    let sample = &one[0];
    assert!(sample["memTotal"].as_u64().unwrap() > 0, "{one}");
    assert!(sample["cpuCount"].as_u64().unwrap() > 0, "{one}");
    let used = sample["cpuUsedPct"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&used), "{one}");
    let many = format!("/sandboxes/metrics?sandbox_ids={id},inone");
    let many = server.api("GET", &many, Value::Null).await.json();
    assert_eq!(
        many["sandboxes"]
            .as_object()
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        [&id]
    );
    let past = format!("/sandboxes/{id}/metrics?start=1&end=2");
    assert_eq!(
        server.api("GET", &past, Value::Null).await.json(),
        json!([])
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn only_a_secure_v1_sandbox_has_a_token() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let open = server
        .api("POST", "/sandboxes", json!({ "templateID": "base" }))
        .await;
    assert!(open.json().get("envdAccessToken").is_none(), "{open:?}");
    let secure = json!({ "templateID": "base", "secure": true });
    let secure = server.api("POST", "/sandboxes", secure).await;
    assert!(secure.json()["envdAccessToken"].is_string(), "{secure:?}");
    assert!(server.stop().await);
}

#[tokio::test]
async fn lists_have_pages_in_both_orders() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(server.create(json!({})).await.id());
    }
    for (order, wanted) in [
        ("asc", ids.clone()),
        ("desc", ids.iter().rev().cloned().collect()),
    ] {
        let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let path = format!("/v2/sandboxes?limit=2&order={order}&nextToken={token}");
            let page = server.api("GET", &path, Value::Null).await;
            assert_eq!(page.header("x-total-running"), Some("5"));
            seen.extend(list_ids(&page.json()));
            pages += 1;
            match page.header("x-next-token") {
                Some(next) => token = next.to_owned(),
                None => break,
            }
        }
        assert_eq!((seen, pages), (wanted, 3), "{order}");
    }
    let all = server.api("GET", "/sandboxes", Value::Null).await;
    assert_eq!(
        (
            all.json().as_array().unwrap().len(),
            all.header("x-next-token")
        ),
        (5, None)
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn the_deadline_kills() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let short = server.create(json!({ "timeout": 1 })).await.id();
    let expired = server.create(json!({})).await.id();
    let path = format!("/sandboxes/{expired}/timeout");
    assert_eq!(
        server
            .api("POST", &path, json!({ "timeout": 0 }))
            .await
            .status,
        204
    );
    server.idle().await;
    for id in [short, expired] {
        let path = format!("/sandboxes/{id}");
        assert_eq!(server.api("GET", &path, Value::Null).await.status, 404);
        let routing = [
            ("e2b-sandbox-id", id.as_str()),
            ("e2b-sandbox-port", "49983"),
        ];
        let health = server.send("GET", "/health", &routing, "").await;
        assert_eq!(
            (health.status, &health.json()["message"]),
            (502, &json!("The sandbox was not found"))
        );
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn the_limit_is_429_and_a_kill_makes_room_at_once() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let limits = LimitsFile {
        max_sandboxes: Some(2),
        ..LimitsFile::default()
    };
    let server = Server::start_with("", limits).await;
    let first = server.create(json!({})).await.id();
    server.create(json!({})).await.id();
    let full = server.create(json!({})).await;
    assert_eq!(
        (full.status, full.header("should-retry")),
        (429, Some("false"))
    );
    assert_eq!(full.json()["code"], 429);
    let path = format!("/sandboxes/{first}");
    assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
    server.create(json!({})).await.id();
    assert!(server.stop().await);
}

#[tokio::test]
async fn the_same_idempotency_key_gives_the_same_sandbox() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let headers = [("x-api-key", KEY), ("idempotency-key", "a-1")];
    let body = r#"{"templateID":"base"}"#;
    let post = || server.send("POST", "/v2/sandboxes", &headers, body);
    let (one, two) = tokio::join!(post(), post());
    assert_eq!(one.id(), two.id());
    assert_eq!(one.json(), two.json());
    let other = r#"{"templateID":"base","timeout":20}"#;
    let misuse = server.send("POST", "/v2/sandboxes", &headers, other).await;
    assert_eq!(misuse.status, 409);
    assert_eq!(server.registry.in_use(), 1);
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_vm_process_that_is_killed_takes_only_its_sandbox() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let doomed = server.create(json!({})).await.id();
    let vm = children();
    let other = server.create(json!({})).await.id();
    assert_eq!(vm.len(), 1, "{vm:?}");
    let pid: i32 = vm[0].split_whitespace().next().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let begin = Instant::now();
    while server
        .api("GET", &format!("/sandboxes/{doomed}"), Value::Null)
        .await
        .status
        != 404
    {
        assert!(begin.elapsed() < Duration::from_secs(5), "still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let path = format!("/sandboxes/{other}");
    assert_eq!(server.api("GET", &path, Value::Null).await.status, 200);
    assert!(server.stop().await);
}

/// With what the host saw, unlike a request that comes later.
#[tokio::test]
async fn a_request_under_way_is_told_how_its_sandbox_ended() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let made = server.create(json!({})).await;
    let (id, made) = (made.id(), made.json());
    let first = |text: &str| text.split_whitespace().next().unwrap().parse().unwrap();
    let vm: i32 = first(&children()[0]);
    let agent = std::fs::read_to_string(format!("/proc/{vm}/task/{vm}/children"));
    let kill = |pid, signal| {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    // It does not answer.
    kill(first(&agent.unwrap()), rustix::process::Signal::STOP);
    let headers = [
        ("e2b-sandbox-id", id.as_str()),
        ("e2b-sandbox-port", "49983"),
        ("x-access-token", made["envdAccessToken"].as_str().unwrap()),
    ];
    let asked = server.send("GET", "/files?path=/etc/passwd", &headers, "");
    let killed = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill(vm, rustix::process::Signal::KILL);
    };
    let (answer, ()) = tokio::join!(asked, killed);
    assert_eq!(answer.status, 502, "{answer:?}");
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    let words = ["was not found", "signal 9"];
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
    let later = server.send("GET", "/health", &headers, "").await;
    assert_eq!(later.json()["message"], "The sandbox was not found");
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_vm_process_that_ignores_stop_is_killed() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start_with("stubborn", LimitsFile::default()).await;
    let id = server.create(json!({})).await.id();
    let begin = Instant::now();
    let path = format!("/sandboxes/{id}");
    assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "kill answers at once"
    );
    server.idle().await;
    assert!(server.stop().await);
}

#[tokio::test]
async fn fifty_sandboxes_leave_nothing_behind() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let warm = server.create(json!({})).await.id();
    server
        .api("DELETE", &format!("/sandboxes/{warm}"), Value::Null)
        .await;
    server.idle().await;
    let before = open_files();
    for _ in 0..50 {
        let id = server.create(json!({})).await.id();
        let path = format!("/sandboxes/{id}");
        assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
    }
    server.idle().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(children(), Vec::<String>::new());
    let layers = std::fs::read_dir(server.dir.path().join("data/layers"))
        .unwrap()
        .count();
    assert_eq!(layers, 0);
    let after = open_files();
    println!("descriptors before {before}, after {after}");
    // Connections of this client may still be closing.
    assert!(
        after <= before + 4,
        "{before} descriptors before, {after} after"
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn shutdown_ends_all_sandboxes() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    for _ in 0..3 {
        server.create(json!({})).await.id();
    }
    assert_eq!(children().len(), 3);
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

/// Many at once, some of which give up at a random moment: what is left is nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_with_deserters_leaves_nothing_behind() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let limits = LimitsFile {
        max_sandboxes: Some(6),
        ..LimitsFile::default()
    };
    let server = std::sync::Arc::new(Server::start_with("", limits).await);
    let before = open_files();
    let client = |n: u64| {
        let server = std::sync::Arc::clone(&server);
        async move {
            // Spread over the whole of a creation, which takes some ten milliseconds.
            let patience = Duration::from_millis((n * 7) % 120);
            if n.is_multiple_of(3) {
                let _ = tokio::time::timeout(patience, server.create(json!({}))).await;
                return 0;
            }
            let mut answer = server.create(json!({})).await;
            while answer.status == 429 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                answer = server.create(json!({})).await;
            }
            let id = answer.id();
            assert_eq!(server.get(&id).await.status, 200);
            let path = format!("/sandboxes/{id}");
            assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
            1
        }
    };
    let made: u64 = futures_util::future::join_all((0..60).map(client))
        .await
        .into_iter()
        .sum();
    assert_eq!(made, 40, "all who stay get one");
    // Deserters whose sandbox was ready just before they left have left it running.
    let left = server.api("GET", "/v2/sandboxes", Value::Null).await.json();
    for id in list_ids(&left) {
        server
            .api("DELETE", &format!("/sandboxes/{id}"), Value::Null)
            .await;
    }
    server.idle().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(children(), Vec::<String>::new());
    for folder in ["data/layers", "data/machines"] {
        assert_eq!(
            std::fs::read_dir(server.dir.path().join(folder))
                .unwrap()
                .count(),
            0
        );
    }
    let after = open_files();
    println!("{made} made; descriptors before {before}, after {after}");
    assert!(
        after <= before + 6,
        "{before} descriptors before, {after} after"
    );
}
