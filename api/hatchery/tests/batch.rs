//! Many sandboxes by one request, with stand-ins.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::LimitsFile;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use support::{Answer, KEY, Server, children, no_more_files_than, open_files};

/// These tests count processes of this one, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn batch(server: &Server, body: Value, key: Option<&str>) -> Answer {
    let mut wanted = json!({ "templateID": "base", "timeout": 300 });
    for (field, value) in body.as_object().unwrap() {
        wanted[field] = value.clone();
    }
    let mut headers = vec![("x-api-key", KEY)];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    let body = wanted.to_string().into_bytes();
    server
        .send("POST", "/sandboxes:batch", &headers, body)
        .await
}

/// The lines before the last one, and the summary.
fn lines(answer: &Answer) -> (Vec<Value>, Value) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let text = std::str::from_utf8(&answer.body).unwrap();
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let summary = lines.pop().unwrap()["summary"].clone();
    assert!(summary.is_object(), "{text}");
    (lines, summary)
}

fn ids(lines: &[Value]) -> BTreeSet<String> {
    let ids = lines
        .iter()
        .filter_map(|line| line["sandbox"]["sandboxID"].as_str());
    ids.map(str::to_owned).collect()
}

async fn running(server: &Server) -> BTreeSet<String> {
    let list = "/v2/sandboxes?limit=100";
    let list = server.api("GET", list, Value::Null).await.json();
    let ids = list.as_array().unwrap().iter();
    let ids = ids.map(|one| one["sandboxID"].as_str().unwrap().to_owned());
    ids.collect()
}

async fn kill(server: &Server, ids: &BTreeSet<String>) {
    for id in ids {
        let path = format!("/sandboxes/{id}");
        assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
    }
}

/// Says something that only a sandbox whose agent works can say.
async fn works(server: &Server, id: &str) {
    let metrics = format!("/sandboxes/{id}/metrics");
    let metrics = server.api("GET", &metrics, Value::Null).await.json();
    assert!(metrics[0]["memTotal"].as_u64().unwrap() > 0, "{metrics}");
}

fn at_most(max: usize) -> LimitsFile {
    LimitsFile {
        max_sandboxes: Some(max),
        ..LimitsFile::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_told_of_and_all_work() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let before = open_files();
    for (clones, mode) in [(true, "all"), (false, "any")] {
        let clones = clones.then_some(3);
        let server = Server::start_clones("", at_most(20), clones).await;
        let wanted = json!({ "count": 20, "mode": mode, "metadata": { "a": "b" } });
        let (all, summary) = lines(&batch(&server, wanted, None).await);
        assert_eq!(summary, json!({ "count": 20, "created": 20, "failed": 0 }));
        let indices: BTreeSet<_> = all.iter().map(|line| line["index"].as_u64()).collect();
        assert_eq!(indices, (0..20).map(Some).collect());
        let tokens = all
            .iter()
            .map(|line| line["sandbox"]["envdAccessToken"].to_string());
        assert_eq!(tokens.collect::<BTreeSet<_>>().len(), 20);
        let ids = ids(&all);
        assert_eq!(ids, running(&server).await);
        for id in &ids {
            works(&server, id).await;
            let detail = server.get(id).await.json();
            assert_eq!(detail["metadata"], json!({ "a": "b" }));
        }
        kill(&server, &ids).await;
        server.idle().await;
        assert!(server.stop().await);
        assert_eq!(children(), Vec::<String>::new());
    }
    no_more_files_than(before + 6).await;
}

#[tokio::test]
async fn without_room_there_is_none_or_what_fits() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start_with("", at_most(5)).await;
    let full = batch(&server, json!({ "count": 6 }), None).await;
    assert_eq!(full.status, 429, "{full:?}");
    assert_eq!(full.header("should-retry"), Some("false"));
    assert_eq!(full.header("retry-after"), Some("1"));
    assert_eq!(full.json()["error_code"], "sandbox_limit_reached");
    assert_eq!(running(&server).await.len(), 0);
    assert_eq!(server.registry.in_use(), 0);

    let some = batch(&server, json!({ "count": 8, "mode": "any" }), None).await;
    let (all, summary) = lines(&some);
    assert_eq!(summary, json!({ "count": 8, "created": 5, "failed": 3 }));
    let refused = all
        .iter()
        .filter(|line| line["error"]["code"] == json!(429));
    assert_eq!((all.len(), refused.count()), (8, 3));
    let ids = ids(&all);
    assert_eq!(ids, running(&server).await);
    let none = batch(&server, json!({ "count": 1, "mode": "any" }), None).await;
    assert_eq!(none.status, 429, "{none:?}");
    kill(&server, &ids).await;
    // Slots that are about to be given back are waited for.
    let (_, summary) = lines(&batch(&server, json!({ "count": 5 }), None).await);
    assert_eq!(summary["created"], 5);
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

#[tokio::test]
async fn bad_batches_are_told_what_is_wrong() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    for (body, status) in [
        (json!({}), 400),
        (json!({ "count": 0 }), 400),
        (json!({ "count": 1001 }), 400),
        (json!({ "count": -1 }), 400),
        (json!({ "count": 2, "mode": "some" }), 400),
        (json!({ "count": 2, "timeout": 0 }), 400),
        (json!({ "count": 2, "templateID": "none" }), 404),
        (json!({ "count": 1000 }), 429),
    ] {
        let refused = batch(&server, body.clone(), None).await;
        assert_eq!(refused.status, status, "{body}: {refused:?}");
    }
    let get = server.api("GET", "/sandboxes:batch", Value::Null).await;
    assert_eq!(get.status, 405);
    assert_eq!(server.registry.in_use(), 0);
    assert!(server.stop().await);
}

/// One of four stand-ins fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_takes_all_along_or_only_itself() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start_with("unlucky", at_most(24)).await;
    let mut rolled_back = false;
    for _ in 0..30 {
        let (all, summary) = lines(&batch(&server, json!({ "count": 6 }), None).await);
        let ids = ids(&all);
        if summary["error"].is_null() {
            assert_eq!((ids.len(), ids.clone()), (6, running(&server).await));
            kill(&server, &ids).await;
            continue;
        }
        assert_eq!(summary["created"], 0, "{summary}");
        assert_eq!(summary["error"]["code"], 500, "{summary}");
        assert_eq!(summary["rolledBack"].as_u64().unwrap(), ids.len() as u64);
        rolled_back |= !ids.is_empty();
        // Before the last line is there.
        assert_eq!(running(&server).await.len(), 0);
        server.idle().await;
        if rolled_back {
            break;
        }
    }
    assert!(rolled_back, "none ever failed after others had come");
    let (all, summary) = lines(&batch(&server, json!({ "count": 24, "mode": "any" }), None).await);
    let ids = ids(&all);
    assert_eq!(all.len(), 24);
    assert_eq!(summary["created"].as_u64().unwrap(), ids.len() as u64);
    assert_eq!(ids, running(&server).await);
    kill(&server, &ids).await;
    server.idle().await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

/// Reads lines until `most` are there, then goes away.
async fn leave_after(server: &Server, mode: &str, most: usize) -> Vec<Value> {
    let wanted = json!({ "templateID": "base", "timeout": 300, "count": 40, "mode": mode });
    let body = wanted.to_string().into_bytes();
    let response = server.open("POST", "/sandboxes:batch", &[("x-api-key", KEY)], body);
    let mut body = response.await.unwrap().into_body();
    let mut text = Vec::new();
    while text.iter().filter(|byte| **byte == b'\n').count() < most {
        let frame = body.frame().await.unwrap().unwrap();
        text.extend_from_slice(frame.data_ref().unwrap());
    }
    drop(body);
    let lines = text.split(|byte| *byte == b'\n').take(most);
    lines
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// Waits until nothing is made or ended any more; who runs then.
async fn settled(server: &Server) -> BTreeSet<String> {
    let (mut since, mut last) = (Instant::now(), usize::MAX);
    while since.elapsed() < Duration::from_millis(500) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = server.registry.in_use();
        if now != last {
            (since, last) = (Instant::now(), now);
        }
    }
    let running = running(server).await;
    assert_eq!(running.len(), last, "nothing is half-made");
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_keeps_what_it_was_told_of() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start_with("", at_most(60)).await;
    let told = ids(&leave_after(&server, "any", 3).await);
    let kept = settled(&server).await;
    assert!(told.is_subset(&kept), "{told:?} {kept:?}");
    assert!(kept.len() < 40, "the rest is not made");
    for id in &kept {
        works(&server, id).await;
    }
    kill(&server, &kept).await;
    assert_eq!(leave_after(&server, "all", 3).await.len(), 3);
    assert_eq!(settled(&server).await, BTreeSet::new());
    server.idle().await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_again_it_gives_the_same() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start_with("", at_most(9)).await;
    let wanted = json!({ "count": 4 });
    let key = Some("k1");
    let (first, second) = tokio::join!(
        batch(&server, wanted.clone(), key),
        batch(&server, wanted.clone(), key)
    );
    let third = batch(&server, wanted, key).await;
    let of = |answer: &Answer| {
        let (mut all, summary) = lines(answer);
        assert_eq!(summary["created"], 4, "{summary}");
        all.sort_by_key(|line| line["index"].as_u64());
        all
    };
    assert_eq!(of(&first), of(&second));
    assert_eq!(of(&first), of(&third));
    assert_eq!(running(&server).await, ids(&of(&first)));
    let other = batch(&server, json!({ "count": 5 }), key).await;
    assert_eq!(other.status, 409, "{other:?}");
    let one = ids(&of(&first)).pop_first().unwrap();
    kill(&server, &BTreeSet::from([one])).await;
    let (all, summary) = lines(&batch(&server, json!({ "count": 4 }), key).await);
    assert_eq!(summary, json!({ "count": 4, "created": 3, "failed": 1 }));
    let gone = all
        .iter()
        .filter(|line| line["error"]["code"] == json!(404));
    assert_eq!(gone.count(), 1);
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_leaves_no_part_of_it() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for mode in ["all", "any"] {
        for wait in [0, 20, 60, 150] {
            let server = Server::start_with("", at_most(60)).await;
            let wanted = json!({ "templateID": "base", "count": 30, "mode": mode });
            let body = wanted.to_string().into_bytes();
            let headers = [("x-api-key", KEY)];
            let asked = server.open("POST", "/sandboxes:batch", &headers, body);
            let moment = tokio::time::sleep(Duration::from_millis(wait));
            let (answer, ()) = tokio::join!(asked, moment);
            let (answer, clean) = tokio::join!(
                async { answer.unwrap().into_body().collect().await },
                server.stop()
            );
            assert!(clean, "{mode} {wait}");
            // The connection may have been cut; if not, the last line is true.
            if let Ok(answer) = answer {
                let text = String::from_utf8(answer.to_bytes().to_vec()).unwrap();
                assert!(text.lines().last().unwrap().contains("summary"), "{text}");
            }
            assert_eq!(children(), Vec::<String>::new());
        }
    }
}
