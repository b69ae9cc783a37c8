//! Sandboxes whose stand-ins a test tells what to do, and what is asked of them.

use super::{Answer, Server, children, until};
use hatchery::config::{ConfigFile, LimitsFile};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// A server whose stand-ins do what [`tell`] says when they start.
pub(crate) async fn server(warm_vms: Option<usize>) -> Server {
    start(tempfile::tempdir().unwrap(), warm_vms).await
}

/// The same in a folder that may be another server's, which has stopped.
pub(crate) async fn start(dir: tempfile::TempDir, warm_vms: Option<usize>) -> Server {
    Server::start_in(dir, "told", limits(), warm_vms).await
}

/// The same, and its disk may be filled to the end.
pub(crate) async fn start_without_reserve(dir: tempfile::TempDir) -> Server {
    let change = |file: &mut ConfigFile| file.resources.disk_reserve_mb = Some(0);
    Server::start_changed(dir, "told", limits(), None, change).await
}

fn limits() -> LimitsFile {
    LimitsFile {
        max_sandboxes: Some(12),
        boot_timeout: Some(2),
        ..LimitsFile::default()
    }
}

/// From now on machines start in this mode.
pub(crate) fn tell(server: &Server, mode: &str) {
    std::fs::write(server.dir.path().join("fake-vmm-told.mode"), mode).unwrap();
}

/// Asks for something that is done to a sandbox.
pub(crate) async fn post(server: &Server, id: &str, what: &str, body: Value) -> Answer {
    let path = format!("/sandboxes/{id}/{what}");
    server.api("POST", &path, body).await
}

/// Pauses.
pub(crate) async fn pause(server: &Server, id: &str) -> Answer {
    post(server, id, "pause", json!({})).await
}

/// Resumes what is paused.
pub(crate) async fn connect(server: &Server, id: &str) -> Answer {
    post(server, id, "connect", json!({ "timeout": 300 })).await
}

/// Takes a snapshot with this name.
pub(crate) async fn snapshot(server: &Server, id: &str, name: &str) -> Answer {
    post(server, id, "snapshots", json!({ "name": name })).await
}

/// Ends a sandbox; the status.
pub(crate) async fn kill(server: &Server, id: &str) -> u16 {
    let path = format!("/sandboxes/{id}");
    server.api("DELETE", &path, Value::Null).await.status
}

/// A sandbox that is paused.
pub(crate) async fn paused(server: &Server) -> String {
    let id = server.create(json!({})).await.id();
    assert_eq!(pause(server, &id).await.status, 204);
    id
}

/// As the API tells it, or "gone".
pub(crate) async fn state(server: &Server, id: &str) -> String {
    let answer = server.get(id).await;
    match answer.status {
        404 => "gone".into(),
        _ => answer.json()["state"].as_str().unwrap().to_owned(),
    }
}

/// Says something that only a sandbox whose agent works can say.
pub(crate) async fn works(server: &Server, id: &str) {
    let metrics = format!("/sandboxes/{id}/metrics");
    let metrics = server.api("GET", &metrics, Value::Null).await.json();
    assert!(metrics[0]["memTotal"].as_u64().unwrap() > 0, "{metrics}");
}

/// The answer is an error that says this, and no sandbox.
pub(crate) fn refused(answer: &Answer, words: &str) {
    assert_eq!(answer.status, 500, "{words}: {answer:?}");
    let said = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(said.contains(words), "{said:?} does not say {words:?}");
}

/// Waits until so many machines are in use, and that no other process is there.
pub(crate) async fn in_use(server: &Server, count: usize) {
    let other = until(Duration::from_secs(10), || {
        let (used, now) = (server.registry.in_use(), children());
        (used != count || now.len() != count).then_some((used, now))
    });
    assert_eq!(other.await, None, "{count} wanted");
}

/// The files in a folder of the store.
pub(crate) fn stored(server: &Server, folder: &str) -> Vec<PathBuf> {
    let folder = server.dir.path().join("data/snapshots").join(folder);
    let entries = std::fs::read_dir(folder).unwrap();
    let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// Waits until the store has nothing.
pub(crate) async fn stores_nothing(server: &Server) {
    let left = until(Duration::from_secs(10), || {
        let left = ["manifests", "blobs", "tmp"].map(|folder| stored(server, folder));
        Some(left.concat()).filter(|left| !left.is_empty())
    });
    assert_eq!(left.await, None);
}
