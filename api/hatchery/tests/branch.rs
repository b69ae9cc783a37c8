//! Forks, snapshots and resets with stand-ins: a machine that goes on elsewhere runs a fresh agent,
//! but everything on the host's side goes the way that a real one goes.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::{Answer, Server, children, no_more_files_than, open_files};

/// These tests count processes of this one, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn post(server: &Server, id: &str, what: &str, body: Value) -> Answer {
    server
        .api("POST", &format!("/sandboxes/{id}/{what}"), body)
        .await
}

async fn delete(server: &Server, path: &str) -> u16 {
    server.api("DELETE", path, Value::Null).await.status
}

async fn kill(server: &Server, id: &str) -> u16 {
    delete(server, &format!("/sandboxes/{id}")).await
}

/// Says something that only a sandbox whose agent works can say.
async fn works(server: &Server, id: &str) {
    let metrics = format!("/sandboxes/{id}/metrics");
    let metrics = server.api("GET", &metrics, Value::Null).await.json();
    assert!(metrics[0]["memTotal"].as_u64().unwrap() > 0, "{metrics}");
}

async fn listed(server: &Server, query: &str) -> Vec<String> {
    let path = format!("/snapshots{query}");
    let answer = server.api("GET", &path, Value::Null).await.json();
    let id = |entry: &Value| entry["snapshotID"].as_str().unwrap().to_owned();
    answer.as_array().unwrap().iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_are_somebody_else_and_the_parent_goes_on() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let before = open_files();
    let made = server.create(json!({ "metadata": { "a": "b" } })).await;
    let id = made.id();
    // How it was copied, as the benchmark suite reads it.
    let timing = post(&server, &id, "fork", json!({ "timeout": 1 })).await;
    let timing = timing.header("server-timing").unwrap();
    for step in ["ahead;dur=", "quiesced;dur=", "quiesced-pages;desc=\""] {
        assert!(timing.contains(step), "{timing}");
    }
    for count in [1, 5] {
        let forked = post(
            &server,
            &id,
            "fork",
            json!({ "count": count, "timeout": 60 }),
        )
        .await;
        assert_eq!(forked.status, 201, "{forked:?}");
        let forked = forked.json();
        let all = forked.as_array().unwrap().iter();
        let of = |name: &str| -> BTreeSet<String> {
            let text = |child: &Value| child["sandbox"][name].as_str().unwrap().to_owned();
            all.clone().map(text).collect()
        };
        let (ids, tokens) = (of("sandboxID"), of("envdAccessToken"));
        assert_eq!((ids.len(), tokens.len()), (count, count), "{forked}");
        assert!(!ids.contains(&id));
        for child in &ids {
            works(&server, child).await;
            let detail = server.get(child).await.json();
            assert_eq!(detail["metadata"], json!({ "a": "b" }));
            assert_eq!(detail["templateID"], json!("base"));
            // A child of a child.
            let again = post(&server, child, "fork", json!({})).await.json();
            let grandchild = again[0]["sandbox"]["sandboxID"].as_str().unwrap();
            works(&server, grandchild).await;
            assert_eq!(kill(&server, grandchild).await, 204);
            assert_eq!(kill(&server, child).await, 204);
        }
    }
    works(&server, &id).await;
    for bad in [0, 101] {
        let refused = post(&server, &id, "fork", json!({ "count": bad })).await;
        assert_eq!(refused.status, 400);
    }
    assert_eq!(post(&server, "inone", "fork", json!({})).await.status, 404);
    assert_eq!(kill(&server, &id).await, 204);
    server.idle().await;
    no_more_files_than(before + 6).await;
    assert_eq!(children(), Vec::<String>::new());
    assert!(server.stop().await);
}

#[tokio::test]
async fn children_beyond_the_limit_are_errors_and_the_others_live() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let limits = LimitsFile {
        max_sandboxes: Some(3),
        ..LimitsFile::default()
    };
    let server = Server::start_with("", limits).await;
    let id = server.create(json!({})).await.id();
    let forked = post(&server, &id, "fork", json!({ "count": 4 })).await;
    let forked = forked.json();
    let all = forked.as_array().unwrap();
    let errors = all.iter().filter(|c| c["error"]["code"] == json!(429));
    let coded = errors.filter(|c| c["error"]["error_code"] == "sandbox_limit_reached");
    assert_eq!((all.len(), coded.count()), (4, 2), "{forked}");
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_snapshot_outlives_its_sandbox_and_the_server() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let taken = post(&server, &id, "snapshots", json!({ "name": "one" })).await;
    assert_eq!(
        (taken.status, taken.json()),
        (
            201,
            json!({ "snapshotID": "one:default", "names": ["one:default"] })
        )
    );
    let other = post(&server, &id, "snapshots", json!({ "memory": false })).await;
    let other = other.json()["snapshotID"].as_str().unwrap().to_owned();
    assert_eq!(listed(&server, "").await, [other.as_str(), "one:default"]);
    assert_eq!(listed(&server, "?name=one").await, ["one:default"]);
    assert_eq!(listed(&server, "?sandboxID=inone").await, [""; 0]);
    assert_eq!(listed(&server, "?limit=1").await, [other.as_str()]);
    let next = format!("?limit=1&nextToken={}", other.replace(':', "%3A"));
    assert_eq!(listed(&server, &next).await, ["one:default"]);
    works(&server, &id).await;
    assert_eq!(kill(&server, &id).await, 204);

    let server = server.again("", LimitsFile::default()).await;
    for name in ["one", "one:default", "team/one", &other] {
        let made = server.create(json!({ "templateID": name })).await;
        works(&server, &made.id()).await;
        let shown = made.json()["templateID"].as_str().unwrap().to_owned();
        assert!([other.as_str(), "one:default"].contains(&shown.as_str()));
        // What is made from a snapshot can be paused and snapshot again.
        let again = post(&server, &made.id(), "snapshots", json!({ "name": "two:x" })).await;
        assert_eq!(again.status, 201, "{again:?}");
        assert_eq!(
            post(&server, &made.id(), "pause", json!({})).await.status,
            204
        );
        let resumed = post(&server, &made.id(), "connect", json!({ "timeout": 60 })).await;
        assert_eq!(resumed.json(), made.json());
        works(&server, &made.id()).await;
    }
    for name in ["none", "one:other"] {
        assert_eq!(
            server.create(json!({ "templateID": name })).await.status,
            404
        );
    }
    for (name, status) in [("base", 409), ("A b", 400), ("x:", 400)] {
        let id = server.create(json!({})).await.id();
        let refused = post(&server, &id, "snapshots", json!({ "name": name })).await;
        assert_eq!(refused.status, status, "{name}");
    }
    for name in ["one%3Adefault", "two:x", &other] {
        assert_eq!(delete(&server, &format!("/templates/{name}")).await, 204);
        assert_eq!(delete(&server, &format!("/templates/{name}")).await, 404);
    }
    assert_eq!(delete(&server, "/templates/base").await, 501);
    assert_eq!(listed(&server, "").await, [""; 0]);
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_reset_sandbox_keeps_its_name_and_its_machine() {
    let _alone = ONE_AT_A_TIME.lock().await;
    reset_goes("", true).await;
}

/// What cannot be reset in place runs on until another machine is there; what dies of it makes room
/// first.
#[tokio::test]
async fn what_cannot_be_reset_in_place_gets_another_machine() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for mode in ["noreset", "resetdies"] {
        reset_goes(mode, false).await;
    }
}

/// What did not begin as a copy has no memory to go back to.
#[tokio::test]
async fn a_machine_that_booted_is_replaced_by_a_reset() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let before = children();
    assert_eq!(post(&server, &id, "reset", json!({})).await.status, 204);
    works(&server, &id).await;
    server.down_to(1).await;
    let after = children();
    assert!(before.len() == 1 && after.len() == 1 && before != after);
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

/// Resets a sandbox whose machine behaves so, and one that was forked from it; whether the machine
/// stays the same.
async fn reset_goes(mode: &str, same: bool) {
    let copies = Some(0);
    let server = Server::start_clones(mode, LimitsFile::default(), copies).await;
    let made = server.create(json!({})).await;
    let id = made.id();
    let end = server.get(&id).await.json()["endAt"].clone();
    let before = children();
    assert_eq!(post(&server, &id, "reset", json!({})).await.status, 204);
    assert_eq!(server.get(&id).await.json()["endAt"], end);
    assert_eq!(
        server.get(&id).await.json()["envdAccessToken"],
        made.json()["envdAccessToken"]
    );
    works(&server, &id).await;
    server.down_to(1).await;
    let after = children();
    assert_eq!((before.len(), after.len()), (1, 1));
    let pid = |all: &[String]| all[0].split_whitespace().next().unwrap().to_owned();
    assert_eq!(pid(&before) == pid(&after), same, "{mode:?}");

    let forked = post(&server, &id, "fork", json!({ "timeout": 60 }))
        .await
        .json();
    let child = forked[0]["sandbox"]["sandboxID"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(post(&server, &child, "reset", json!({})).await.status, 204);
    works(&server, &child).await;
    assert_eq!(post(&server, "inone", "reset", json!({})).await.status, 404);
    assert_eq!(post(&server, &id, "pause", json!({})).await.status, 204);
    assert_eq!(post(&server, &id, "reset", json!({})).await.status, 409);
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

/// Everything at once, over and over: every answer is one that the state of the moment allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn branches_pauses_and_kills_race_without_loss() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for (enabled, mode) in [(false, ""), (true, ""), (true, "resetdies")] {
        race(enabled, mode).await;
    }
}

async fn race(copies: bool, mode: &str) {
    let copies = copies.then_some(0);
    let server = Server::start_clones(mode, LimitsFile::default(), copies).await;
    for n in 0..12 {
        let id = server.create(json!({})).await.id();
        let (forked, reset, paused, killed) = tokio::join!(
            post(&server, &id, "fork", json!({ "count": 2, "timeout": 60 })),
            post(&server, &id, "reset", json!({})),
            post(&server, &id, "pause", json!({})),
            async {
                tokio::time::sleep(std::time::Duration::from_millis(n * 3)).await;
                kill(&server, &id).await
            }
        );
        assert_eq!(killed, 204);
        for (answer, good) in [(&forked, 201), (&reset, 204), (&paused, 204)] {
            assert!([good, 404, 409].contains(&answer.status), "{answer:?}");
        }
        if forked.status == 201 {
            for child in forked.json().as_array().unwrap() {
                let child = child["sandbox"]["sandboxID"].as_str().unwrap();
                assert_eq!(kill(&server, child).await, 204);
            }
        }
        assert_eq!(server.get(&id).await.status, 404);
    }
    server.idle().await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}
