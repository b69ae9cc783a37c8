//! What one key may have, and all together: refused with words before anything is begun, and had
//! again when something goes.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::{ConfigFile, KeyFile, LimitsFile};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;
use support::{Answer, KEY, Server};

/// The key of a team that has limits.
const TEAM: &str = "e2b_1111111111111111111111111111111111111111";
/// The key of whoever sees all.
const ADMIN: &str = "e2b_2222222222222222222222222222222222222222";

fn named(name: &str, key: &str) -> KeyFile {
    KeyFile {
        name: name.into(),
        hashes: vec![
            Sha256::digest(key)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
        ],
        ..KeyFile::default()
    }
}

/// A server with the only key, a team's, and an admin's.
async fn server_in(dir: tempfile::TempDir, team: KeyFile, limits: LimitsFile) -> Server {
    let admin = KeyFile {
        admin: Some(true),
        ..named("ops", ADMIN)
    };
    let file = ConfigFile {
        api_keys: vec![KEY.into()],
        keys: vec![team, admin],
        limits,
        ..ConfigFile::default()
    };
    Server::start_file(dir, "", file).await
}

async fn server(team: KeyFile, limits: LimitsFile) -> Server {
    server_in(tempfile::tempdir().unwrap(), team, limits).await
}

async fn create(server: &Server, key: &str) -> Answer {
    let body = json!({ "templateID": "base", "timeout": 60 });
    server.api_as(key, "POST", "/v2/sandboxes", body).await
}

async fn post(server: &Server, key: &str, id: &str, what: &str, body: Value) -> Answer {
    let path = format!("/sandboxes/{id}/{what}");
    server.api_as(key, "POST", &path, body).await
}

async fn pause(server: &Server, key: &str, id: &str) -> Answer {
    post(server, key, id, "pause", json!({})).await
}

async fn delete(server: &Server, key: &str, path: &str) -> u16 {
    server.api_as(key, "DELETE", path, Value::Null).await.status
}

/// 429 in E2B's words' place: a code that is a number, one for programs, and the setting.
#[track_caller]
fn refused(answer: &Answer, code: &str, words: &[&str]) {
    assert_eq!(answer.status, 429, "{answer:?}");
    let body = answer.json();
    assert_eq!(
        (&body["code"], &body["error_code"]),
        (&json!(429), &json!(code))
    );
    let message = body["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

#[tokio::test]
async fn a_key_has_as_many_machines_as_it_may() {
    let team = KeyFile {
        max_running: Some(2),
        ..named("team", TEAM)
    };
    let server = server(team, LimitsFile::default()).await;
    let (first, second) = (
        create(&server, TEAM).await.id(),
        create(&server, TEAM).await.id(),
    );
    let words = ["max_running", "(2)", "concurrent E2B sandboxes"];
    refused(
        &create(&server, TEAM).await,
        "sandbox_limit_reached",
        &words,
    );
    let batch = json!({ "templateID": "base", "timeout": 60, "count": 1 });
    let many = server.api_as(TEAM, "POST", "/sandboxes:batch", batch).await;
    refused(&many, "sandbox_limit_reached", &words);
    let fork = post(&server, TEAM, &first, "fork", json!({ "timeout": 60 })).await;
    refused(&fork, "sandbox_limit_reached", &words);
    // What is paused has no machine; what is resumed would have.
    assert_eq!(pause(&server, TEAM, &first).await.status, 204);
    let third = create(&server, TEAM).await.id();
    let resumed = post(&server, TEAM, &first, "connect", json!({ "timeout": 60 })).await;
    refused(&resumed, "sandbox_limit_reached", &words);
    assert_eq!(
        create(&server, KEY).await.status,
        201,
        "another key has its own"
    );
    for id in [&second, &third] {
        assert_eq!(
            delete(&server, TEAM, &format!("/sandboxes/{id}")).await,
            204
        );
    }
    let resumed = post(&server, TEAM, &first, "connect", json!({ "timeout": 60 })).await;
    assert_eq!(resumed.status, 201, "{resumed:?}");
    // As many as fit, and the others told why.
    let batch = json!({ "templateID": "base", "timeout": 60, "count": 3, "mode": "any" });
    let many = server.api_as(TEAM, "POST", "/sandboxes:batch", batch).await;
    let text = String::from_utf8(many.body.to_vec()).unwrap();
    assert_eq!(text.matches("max_running").count(), 2, "{text}");
    assert!(text.contains("\"created\":1"), "{text}");
    assert!(server.stop().await);
}

#[tokio::test]
async fn paused_sandboxes_are_counted_for_a_key_and_in_all() {
    let team = KeyFile {
        max_paused: Some(1),
        ..named("team", TEAM)
    };
    let limits = || LimitsFile {
        max_paused: Some(2),
        ..LimitsFile::default()
    };
    let server = server(team.clone(), limits()).await;
    let (first, second) = (
        create(&server, TEAM).await.id(),
        create(&server, TEAM).await.id(),
    );
    assert_eq!(pause(&server, TEAM, &first).await.status, 204);
    let no = pause(&server, TEAM, &second).await;
    refused(
        &no,
        "paused_limit_reached",
        &["max_paused", "[[keys]]", " 1 "],
    );
    assert_eq!(server.get(&second).await.status, 404);
    let view = server
        .api_as(TEAM, "GET", &format!("/sandboxes/{second}"), Value::Null)
        .await;
    assert_eq!(view.json()["state"], "running", "nothing was begun");
    let (third, fourth) = (
        create(&server, KEY).await.id(),
        create(&server, KEY).await.id(),
    );
    assert_eq!(pause(&server, KEY, &third).await.status, 204);
    let no = pause(&server, KEY, &fourth).await;
    refused(&no, "paused_limit_reached", &["limits.max_paused", " 2 "]);
    // Also when the server has been started again.
    let (dir, clean) = server.close().await;
    assert!(clean);
    let server = server_in(dir, team, limits()).await;
    let second = create(&server, TEAM).await.id();
    refused(
        &pause(&server, TEAM, &second).await,
        "paused_limit_reached",
        &["[[keys]]"],
    );
    assert_eq!(
        delete(&server, TEAM, &format!("/sandboxes/{first}")).await,
        204
    );
    assert_eq!(pause(&server, TEAM, &second).await.status, 204);
    assert!(server.stop().await);
}

/// It is not lost, and nobody is told that it is paused.
#[tokio::test]
async fn what_cannot_be_paused_at_its_deadline_runs_on() {
    let team = KeyFile {
        max_paused: Some(0),
        ..named("team", TEAM)
    };
    let server = server(team, LimitsFile::default()).await;
    let body = json!({ "templateID": "base", "timeout": 1, "autoPause": true });
    let made = server.api_as(TEAM, "POST", "/v2/sandboxes", body).await;
    let id = made.id();
    let path = format!("/sandboxes/{id}");
    let end = async || {
        let view = server.api_as(TEAM, "GET", &path, Value::Null).await.json();
        assert_eq!(view["state"], "running");
        view["endAt"].as_str().unwrap().to_owned()
    };
    let first = end().await;
    let begin = std::time::Instant::now();
    while end().await == first {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "it was not tried"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let later: jiff::Timestamp = end().await.parse().unwrap();
    let gained = later.as_second() - first.parse::<jiff::Timestamp>().unwrap().as_second();
    assert!(
        (50..70).contains(&gained),
        "tried again in a minute: {gained}"
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn snapshots_are_counted_for_a_key_and_in_all() {
    let team = KeyFile {
        max_snapshots: Some(1),
        ..named("team", TEAM)
    };
    let limits = LimitsFile {
        max_snapshots: Some(2),
        ..LimitsFile::default()
    };
    let server = server(team, limits).await;
    let take = async |key: &str, id: &str, name: &str| {
        post(&server, key, id, "snapshots", json!({ "name": name })).await
    };
    let (team, other) = (
        create(&server, TEAM).await.id(),
        create(&server, KEY).await.id(),
    );
    assert_eq!(take(TEAM, &team, "a").await.status, 201);
    let no = take(TEAM, &team, "b").await;
    refused(
        &no,
        "snapshot_limit_reached",
        &["max_snapshots", "[[keys]]"],
    );
    assert_eq!(take(TEAM, &team, "a").await.status, 201, "in its own place");
    assert_eq!(take(KEY, &other, "a").await.status, 201);
    let no = take(KEY, &other, "b").await;
    refused(&no, "snapshot_limit_reached", &["limits.max_snapshots"]);
    assert_eq!(delete(&server, TEAM, "/templates/a").await, 204);
    assert_eq!(take(KEY, &other, "b").await.status, 201);
    assert!(server.stop().await);
}

#[tokio::test]
async fn stored_bytes_are_counted_and_had_again() {
    let team = KeyFile {
        max_stored_bytes: Some(1),
        ..named("team", TEAM)
    };
    let server = server(team.clone(), LimitsFile::default()).await;
    let (first, second) = (
        create(&server, TEAM).await.id(),
        create(&server, TEAM).await.id(),
    );
    assert_eq!(
        pause(&server, TEAM, &first).await.status,
        204,
        "begun below the limit"
    );
    let words = ["max_stored_bytes", "[[keys]]"];
    let code = "stored_bytes_limit_reached";
    let everything = async |server: &Server, id: &str| {
        refused(&pause(server, TEAM, id).await, code, &words);
        for what in ["snapshots", "checkpoints"] {
            refused(&post(server, TEAM, id, what, json!({})).await, code, &words);
        }
    };
    everything(&server, &second).await;
    // A fork stores nothing.
    let forked = post(&server, TEAM, &second, "fork", json!({ "timeout": 60 })).await;
    assert_eq!(forked.status, 201, "{forked:?}");
    let (dir, clean) = server.close().await;
    assert!(clean);
    let server = server_in(dir, team, LimitsFile::default()).await;
    let second = create(&server, TEAM).await.id();
    everything(&server, &second).await;
    assert_eq!(
        delete(&server, TEAM, &format!("/sandboxes/{first}")).await,
        204
    );
    assert_eq!(pause(&server, TEAM, &second).await.status, 204);
    assert!(server.stop().await);
}

#[tokio::test]
async fn stored_bytes_are_bounded_for_all_together() {
    let limits = LimitsFile {
        max_stored_bytes: Some(0),
        ..LimitsFile::default()
    };
    let server = server(named("team", TEAM), limits).await;
    let id = create(&server, KEY).await.id();
    let words = ["limits.max_stored_bytes"];
    refused(
        &pause(&server, KEY, &id).await,
        "stored_bytes_limit_reached",
        &words,
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_key_creates_as_fast_as_it_may() {
    let team = KeyFile {
        max_creates_per_second: Some(1),
        ..named("team", TEAM)
    };
    let server = server(team, LimitsFile::default()).await;
    let batch = json!({ "templateID": "base", "timeout": 60, "count": 5 });
    let many = server.api_as(TEAM, "POST", "/sandboxes:batch", batch).await;
    assert_eq!(many.status, 200, "{many:?}");
    let no = create(&server, TEAM).await;
    refused(
        &no,
        "creation_rate_limit_reached",
        &["max_creates_per_second"],
    );
    assert_eq!(no.header("should-retry"), Some("true"), "time alone helps");
    let wait: u64 = no.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    assert_eq!(
        create(&server, KEY).await.status,
        201,
        "another key is as fast as it is"
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn an_admin_sees_all_and_what_it_makes_of_anothers_is_the_others() {
    let server = server(named("team", TEAM), LimitsFile::default()).await;
    let (team, other) = (
        create(&server, TEAM).await.id(),
        create(&server, KEY).await.id(),
    );
    let list = async |key: &str| {
        let all = server
            .api_as(key, "GET", "/v2/sandboxes", Value::Null)
            .await;
        all.json().as_array().unwrap().len()
    };
    assert_eq!(
        (list(ADMIN).await, list(TEAM).await, list(KEY).await),
        (2, 1, 1)
    );
    let forked = post(&server, ADMIN, &team, "fork", json!({ "timeout": 60 })).await;
    assert_eq!(forked.status, 201, "{forked:?}");
    assert_eq!(
        (list(ADMIN).await, list(TEAM).await, list(KEY).await),
        (3, 2, 1)
    );
    let taken = post(&server, ADMIN, &team, "snapshots", json!({ "name": "s" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    let shots = server.api_as(TEAM, "GET", "/snapshots", Value::Null).await;
    assert_eq!(shots.json()[0]["snapshotID"], "s:default");
    assert_eq!(
        delete(&server, ADMIN, &format!("/sandboxes/{other}")).await,
        204
    );
    assert_eq!(list(KEY).await, 0);
    // Two have one of this name: which is meant is not guessed.
    let own = create(&server, KEY).await.id();
    let taken = post(&server, KEY, &own, "snapshots", json!({ "name": "s" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    assert_eq!(delete(&server, ADMIN, "/templates/s").await, 409);
    assert_eq!(delete(&server, TEAM, "/templates/s").await, 204);
    assert_eq!(delete(&server, ADMIN, "/templates/s").await, 204);
    assert!(server.stop().await);
}

/// A key that gets a name is who it was: nothing that it stored is lost.
#[tokio::test]
async fn what_a_key_stored_is_there_when_it_has_a_name() {
    let file = || ConfigFile {
        api_keys: vec![TEAM.into(), KEY.into()],
        ..ConfigFile::default()
    };
    let server = Server::start_file(tempfile::tempdir().unwrap(), "", file()).await;
    let id = create(&server, TEAM).await.id();
    let taken = post(&server, TEAM, &id, "snapshots", json!({ "name": "s" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    assert_eq!(pause(&server, TEAM, &id).await.status, 204);
    let (dir, clean) = server.close().await;
    assert!(clean);
    let server = server_in(dir, named("team", TEAM), LimitsFile::default()).await;
    let resumed = post(&server, TEAM, &id, "connect", json!({ "timeout": 60 })).await;
    assert_eq!(resumed.status, 201, "{resumed:?}");
    // Replaced under its owner's new name, the old one is gone from the disk as well.
    let stored = |server: &Server| {
        let all = std::fs::read_dir(server.dir.path().join("data/snapshots/manifests"));
        let names = all
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("snapshot-")).count()
    };
    assert_eq!(stored(&server), 1);
    let taken = post(&server, TEAM, &id, "snapshots", json!({ "name": "s" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    assert_eq!(stored(&server), 1);
    assert!(server.stop().await);
}

#[tokio::test]
async fn metadata_has_a_size() {
    let server = Server::start().await;
    let many = |bytes: usize| json!({ "metadata": { "k": "x".repeat(bytes - 1) } });
    let made = server.create(many(64 << 10)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let over = server.create(many((64 << 10) + 1)).await;
    assert_eq!(over.status, 400, "{over:?}");
    let words = over.json()["message"].as_str().unwrap().to_owned();
    assert!(
        words.contains("65537") && words.contains("65536"),
        "{words}"
    );
    assert!(server.stop().await);
}
