//! A creation is checked, claimed by its key and admitted before anything is loaded for it. A
//! damaged snapshot shows the order: its damage is told to nobody who is refused for another
//! reason.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::{ConfigFile, LimitsFile};
use serde_json::{Value, json};
use std::path::PathBuf;
use support::told::{post, stored};
use support::{Answer, KEY, Server};

/// What no host has, MiB.
const MORE_THAN_THERE_IS: u64 = 1 << 24;

/// Creates from the snapshot `shot`, with a key.
async fn keyed(server: &Server, key: &str, body: &Value) -> Answer {
    let headers = [("x-api-key", KEY), ("idempotency-key", key)];
    let path = "/v2/sandboxes";
    server.send("POST", path, &headers, body.to_string()).await
}

async fn delete(server: &Server, path: &str) -> u16 {
    server.api("DELETE", path, Value::Null).await.status
}

fn few(max_sandboxes: usize) -> LimitsFile {
    LimitsFile {
        max_sandboxes: Some(max_sandboxes),
        ..LimitsFile::default()
    }
}

fn short_of_memory() -> LimitsFile {
    LimitsFile {
        min_memory_mb: Some(MORE_THAN_THERE_IS),
        ..LimitsFile::default()
    }
}

/// The memory of a stored machine.
fn memory(server: &Server, name: &str) -> PathBuf {
    let manifests = stored(server, "manifests");
    let named = |path: &&PathBuf| path.to_str().unwrap().contains(name);
    let manifest = std::fs::read(manifests.iter().find(named).unwrap()).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let digest = manifest["memory"][0]["digest"].as_str().unwrap().to_owned();
    let blobs = stored(server, "blobs");
    let has = |path: &&PathBuf| path.to_str().unwrap().contains(&digest);
    blobs.iter().find(has).unwrap().clone()
}

/// Changes a byte in the middle; twice, and nothing is changed.
fn damage(path: &PathBuf) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// A server whose only sandbox is the snapshot `shot`.
async fn with_snapshot(mode: &str) -> Server {
    let server = Server::start_with(mode, LimitsFile::default()).await;
    let id = server.create(json!({})).await.id();
    let taken = post(&server, &id, "snapshots", json!({ "name": "shot" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    assert_eq!(delete(&server, &format!("/sandboxes/{id}")).await, 204);
    server
}

#[tokio::test]
async fn a_snapshot_is_loaded_after_everything_else() {
    let server = with_snapshot("").await.again("", few(1)).await;
    let file = memory(&server, "snapshot-");
    damage(&file);
    let shot = json!({ "templateID": "shot", "timeout": 60 });
    let with = |key: &str, value: Value| {
        let mut body = shot.clone();
        body[key] = value;
        body
    };
    // Checked.
    for (body, status) in [
        (with("timeout", json!(0)), 400),
        (with("envVars", json!({ "A=B": "1" })), 400),
        (with("autoPauseMemory", json!(false)), 400),
        (with("iam", json!({ "tokens": { "a": {"x": "y"} } })), 501),
    ] {
        let refused = server.api("POST", "/v2/sandboxes", body.clone()).await;
        assert_eq!(refused.status, status, "{body}: {refused:?}");
        let many = server.api("POST", "/sandboxes:batch", {
            let mut many = body.clone();
            many["count"] = json!(2);
            many
        });
        assert_eq!(many.await.status, status, "{body}");
    }
    // Admitted.
    let other = server.create(json!({})).await.id();
    let full = server.api("POST", "/v2/sandboxes", shot.clone()).await;
    assert_eq!(full.status, 429, "{full:?}");
    let many = with("count", json!(1));
    let full = server.api("POST", "/sandboxes:batch", many.clone()).await;
    assert_eq!(full.status, 429, "{full:?}");
    assert_eq!(delete(&server, &format!("/sandboxes/{other}")).await, 204);
    server.idle().await;
    // Loaded: only now the damage is noticed. Nothing is left, and the key is free.
    let broken = keyed(&server, "k", &shot).await;
    assert_eq!(broken.status, 500, "{broken:?}");
    assert!(
        broken.json()["message"]
            .as_str()
            .unwrap()
            .contains("damaged")
    );
    let broken = server.api("POST", "/sandboxes:batch", many).await;
    assert_eq!(broken.status, 500, "before the first line: {broken:?}");
    server.idle().await;
    damage(&file);
    assert_eq!(keyed(&server, "k", &shot).await.status, 201);
    assert!(server.stop().await);
}

/// The key names a sandbox, whatever has become of it and of what it was made from.
#[tokio::test]
async fn a_known_key_gives_its_sandbox_without_its_snapshot() {
    let server = with_snapshot("").await;
    let shot = json!({ "templateID": "shot", "timeout": 60 });
    let first = keyed(&server, "k", &shot).await;
    let id = first.id();
    assert_eq!(delete(&server, "/templates/shot").await, 204);
    assert_eq!(keyed(&server, "k", &shot).await.json(), first.json());
    assert_eq!(post(&server, &id, "pause", json!({})).await.status, 204);
    assert_eq!(keyed(&server, "k", &shot).await.json(), first.json());
    assert_eq!(server.get(&id).await.json()["state"], "paused");
    let other = json!({ "templateID": "shot", "timeout": 61 });
    assert_eq!(keyed(&server, "k", &other).await.status, 409);
    assert_eq!(keyed(&server, "other", &shot).await.status, 404);
    // A batch's key, too.
    let batch = || async {
        let body = json!({ "templateID": "base", "count": 1 }).to_string();
        let headers = [("x-api-key", KEY), ("idempotency-key", "many")];
        let answer = server.send("POST", "/sandboxes:batch", &headers, body);
        let text = String::from_utf8(answer.await.body.to_vec()).unwrap();
        let line = text.lines().next().unwrap().to_owned();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let made = batch().await;
    let id = made["sandbox"]["sandboxID"].as_str().unwrap();
    assert_eq!(post(&server, id, "pause", json!({})).await.status, 204);
    assert_eq!(batch().await, made);
    assert!(server.stop().await);
}

/// Nothing of a machine is loaded when there is no memory for it, and how much is missing is told.
#[tokio::test]
async fn what_is_loaded_is_weighed() {
    let server = with_snapshot("heavy").await;
    let id = server.create(json!({})).await.id();
    let taken = post(&server, &id, "checkpoints", json!({ "name": "c" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    assert_eq!(post(&server, &id, "pause", json!({})).await.status, 204);
    let server = server.again("heavy", short_of_memory()).await;
    for name in ["snapshot-", "paused-", "checkpoint-"] {
        damage(&memory(&server, name));
    }
    let connect = format!("/sandboxes/{id}/connect");
    let fork = format!("/sandboxes/{id}/fork");
    for (path, body) in [
        ("/v2/sandboxes", json!({ "templateID": "shot" })),
        (&connect, json!({ "timeout": 60 })),
        (&fork, json!({ "checkpoint": "c" })),
    ] {
        let refused = server.api("POST", path, body).await;
        assert_eq!(refused.status, 503, "{path}: {refused:?}");
        let refused = refused.json();
        assert_eq!(refused["error_code"], "host_memory_low", "{path}");
        // 2 MiB more than what always has to be left.
        let needed = format!("{} have to be", MORE_THAN_THERE_IS + 2);
        let words = refused["message"].as_str().unwrap();
        assert!(words.contains(&needed), "{path}: {words}");
    }
    let many = json!({ "templateID": "shot", "count": 2 });
    let refused = server.api("POST", "/sandboxes:batch", many).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    // Its files alone take no memory of that kind: a boot is weighed as any other.
    let boot = json!({ "timeout": 60, "memory": false });
    let refused = server.api("POST", &connect, boot).await.json();
    let words = refused["message"].as_str().unwrap();
    let needed = format!("{MORE_THAN_THERE_IS} have to be");
    assert!(words.contains(&needed), "{words}");
    assert_eq!(server.registry.in_use(), 0);
    assert!(server.stop().await);
}

/// Children are weighed with what each has of its own, before the first is made.
#[tokio::test]
async fn a_fork_is_weighed_with_its_children() {
    let limits = LimitsFile {
        min_memory_mb: Some(1),
        ..LimitsFile::default()
    };
    let server = Server::start_clones("vast", limits, Some(0)).await;
    let id = server.create(json!({})).await.id();
    let taken = post(&server, &id, "checkpoints", json!({ "name": "c" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    for body in [
        json!({ "count": 1 }),
        json!({ "count": 5 }),
        json!({ "count": 1, "checkpoint": "c" }),
    ] {
        let refused = post(&server, &id, "fork", body.clone()).await;
        assert_eq!(refused.status, 503, "{body}: {refused:?}");
        assert_eq!(refused.json()["error_code"], "host_memory_low");
        assert_eq!(server.registry.in_use(), 1, "no child was made");
    }
    // What is reset has its own memory back.
    for body in [json!({}), json!({ "checkpoint": "c" })] {
        assert_eq!(post(&server, &id, "reset", body).await.status, 204);
    }
    assert!(server.stop().await);
}

/// Neither is anything begun nor stored; what runs, runs on.
#[tokio::test]
async fn a_disk_without_room_to_spare_begins_and_stores_nothing() {
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let paused = server.create(json!({})).await.id();
    let pause = format!("/sandboxes/{paused}/pause");
    let answer = server.api("POST", &pause, json!({})).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(
        server
            .api("DELETE", &format!("/sandboxes/{id}"), Value::Null)
            .await
            .status,
        204
    );
    let (dir, clean) = server.close().await;
    assert!(clean);
    let reserve = |file: &mut ConfigFile| file.resources.disk_reserve_mb = Some(1 << 30);
    let server = Server::start_changed(dir, "", LimitsFile::default(), None, reserve).await;
    let connect = format!("/sandboxes/{paused}/connect");
    for (path, body) in [
        ("/sandboxes", json!({ "templateID": "base" })),
        (
            "/sandboxes:batch",
            json!({ "templateID": "base", "count": 3 }),
        ),
        (connect.as_str(), json!({ "timeout": 60 })),
    ] {
        let answer = server.api("POST", path, body).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        let retry = ["should-retry", "retry-after"].map(|name| answer.header(name));
        assert_eq!(retry, [Some("false"), Some("30")], "{path}");
        let said = answer.json();
        assert_eq!(said["error_code"], "host_disk_low", "{path}");
        let message = said["message"].as_str().unwrap();
        assert!(message.contains("resources.disk_reserve_mb"), "{message}");
    }
    assert_eq!(server.registry.in_use(), 0);
    assert!(server.stop().await);
}
