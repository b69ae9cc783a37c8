//! Checkpoints with stand-ins: each writes into what it saves which machines it was copied from, so
//! that what is stored tells where a sandbox went on.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::told::{self, tell};
use support::{Answer, Server, children, no_more_files_than, open_files, until};

/// These tests count processes of this one, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn post(server: &Server, id: &str, what: &str, body: Value) -> Answer {
    let path = format!("/sandboxes/{id}/{what}");
    server.api("POST", &path, body).await
}

async fn kill(server: &Server, id: &str) -> u16 {
    let path = format!("/sandboxes/{id}");
    server.api("DELETE", &path, Value::Null).await.status
}

/// A checkpoint's id.
async fn take(server: &Server, id: &str, name: &str) -> String {
    let taken = post(server, id, "checkpoints", json!({ "name": name })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    let taken = taken.json();
    assert_eq!(taken["name"], json!(name));
    taken["checkpointID"].as_str().unwrap().to_owned()
}

async fn reset(server: &Server, id: &str, to: &str) -> u16 {
    let body = json!({ "checkpoint": to });
    post(server, id, "reset", body).await.status
}

async fn listing(server: &Server, id: &str) -> Value {
    let path = format!("/sandboxes/{id}/checkpoints");
    let answer = server.api("GET", &path, Value::Null).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Names and parents' names, in order; "" for none.
async fn tree(server: &Server, id: &str) -> Vec<(String, String)> {
    let list = listing(server, id).await;
    let all = list["checkpoints"].as_array().unwrap();
    let name = |of: &Value| {
        let found = all.iter().find(|node| node["checkpointID"] == *of);
        let name = found.and_then(|node| node["name"].as_str());
        name.unwrap_or_default().to_owned()
    };
    let pair = |node: &Value| (name(&node["checkpointID"]), name(&node["parentID"]));
    all.iter().map(pair).collect()
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    all.iter().map(owned).collect()
}

async fn delete(server: &Server, id: &str, checkpoint: &str) -> u16 {
    let path = format!("/sandboxes/{id}/checkpoints/{checkpoint}");
    server.api("DELETE", &path, Value::Null).await.status
}

/// Says something that only a sandbox whose agent works can say.
async fn works(server: &Server, id: &str) {
    let metrics = format!("/sandboxes/{id}/metrics");
    let metrics = server.api("GET", &metrics, Value::Null).await.json();
    assert!(metrics[0]["memTotal"].as_u64().unwrap() > 0, "{metrics}");
}

fn files(server: &Server, folder: &str) -> Vec<PathBuf> {
    let folder = server.dir.path().join("data/snapshots").join(folder);
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Waits until the store has so many manifests, and if that is none, no blob but what template VMs
/// are made of.
async fn stores(server: &Server, manifests: usize) {
    let left = until(Duration::from_secs(10), || {
        let (left, blobs) = (files(server, "manifests"), files(server, "blobs"));
        let settled = left.len() == manifests && (manifests > 0 || blobs.len() <= 1);
        (!settled).then_some((left, blobs))
    });
    assert_eq!(left.await, None, "{manifests} manifests are to be left");
}

/// The first child of a fork.
async fn child_works_and_goes(server: &Server, forked: &Answer) {
    let forked = forked.json();
    let child = forked[0]["sandbox"]["sandboxID"].as_str().unwrap();
    works(server, child).await;
    assert_eq!(kill(server, child).await, 204);
}

fn blob(server: &Server, digest: &Value) -> PathBuf {
    let name = digest["digest"].as_str().unwrap();
    let blobs = files(server, "blobs");
    let has = |path: &&PathBuf| path.to_str().unwrap().contains(name);
    blobs.iter().find(has).unwrap().clone()
}

fn manifest(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What the stand-in that was saved at a checkpoint says about its past: machines, and how often
/// each was saved by then.
fn history(server: &Server, checkpoint: &str) -> Vec<String> {
    let all = files(server, "manifests");
    let has = |path: &&PathBuf| path.to_str().unwrap().contains(checkpoint);
    let manifest = manifest(all.iter().find(has).unwrap());
    let layer = std::fs::File::open(blob(server, &manifest["memory"][0])).unwrap();
    let mut page = vec![0; 4096];
    layer.read_exact_at(&mut page, 4096).unwrap();
    let text = String::from_utf8(page).unwrap();
    let lines = text.trim_end_matches('\0').lines().skip(1);
    lines.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_goes_back_to_any_moment_and_its_tree_grows_there() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for clones in [false, true] {
        let clones = clones.then_some(1);
        let server = Server::start_clones("", LimitsFile::default(), clones).await;
        let made = server.create(json!({})).await;
        let id = made.id();
        assert_eq!(listing(&server, &id).await["current"], Value::Null);
        let c1 = take(&server, &id, "c1").await;
        let c2 = take(&server, &id, "c2").await;
        assert_eq!(tree(&server, &id).await, pairs(&[("c1", ""), ("c2", "c1")]));
        let end = server.get(&id).await.json()["endAt"].clone();
        assert_eq!(reset(&server, &id, "c1").await, 204);
        works(&server, &id).await;
        assert_eq!(listing(&server, &id).await["current"], json!(c1));
        let c3 = take(&server, &id, "c3").await;
        assert_eq!(reset(&server, &id, &c2).await, 204);
        let c4 = take(&server, &id, "c4").await;
        assert_eq!(
            post(&server, &id, "reset", json!({})).await.status,
            204,
            "to the beginning"
        );
        let c5 = take(&server, &id, "c5").await;
        let grown = [
            ("c1", ""),
            ("c2", "c1"),
            ("c3", "c1"),
            ("c4", "c2"),
            ("c5", ""),
        ];
        assert_eq!(tree(&server, &id).await, pairs(&grown));
        // Whatever was saved at c1 and c2 was there in the machines that went on from them.
        let [h1, h2, h3, h4, h5] = [&c1, &c2, &c3, &c4, &c5].map(|c| history(&server, c));
        assert_ne!(h1, h2);
        assert_eq!((&h3[..h1.len()], h3.len()), (&h1[..], h1.len() + 1));
        assert_eq!((&h4[..h2.len()], h4.len()), (&h2[..], h2.len() + 1));
        assert_eq!(h5.len(), h1.len());
        // Same name, token and deadline.
        let now = server.get(&id).await.json();
        assert_eq!(now["endAt"], end);
        assert_eq!(now["envdAccessToken"], made.json()["envdAccessToken"]);
        let list = listing(&server, &id).await;
        assert_eq!(list["limit"], json!(64));
        for node in list["checkpoints"].as_array().unwrap() {
            assert_eq!((&node["pages"], &node["blocks"]), (&json!(1), &json!(1)));
            assert!(node["bytes"].as_u64().unwrap() > 4096, "{node}");
        }
        assert!(list["bytes"].as_u64().unwrap() > 5 * 4096, "{list}");
        assert_eq!(kill(&server, &id).await, 204);
        let gone = format!("/sandboxes/{id}/checkpoints");
        assert_eq!(server.api("GET", &gone, Value::Null).await.status, 404);
        stores(&server, 0).await;
        assert!(server.stop().await);
        assert_eq!(children(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_deleted_checkpoint_leaves_its_children_and_no_bytes() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    for name in ["c1", "c2", "c3"] {
        take(&server, &id, name).await;
    }
    let blobs = files(&server, "blobs").len();
    assert_eq!(delete(&server, &id, "c2").await, 204);
    assert_eq!(delete(&server, &id, "c2").await, 404);
    assert_eq!(tree(&server, &id).await, pairs(&[("c1", ""), ("c3", "c1")]));
    stores(&server, 2).await;
    let kept = until(Duration::from_secs(10), || {
        Some(files(&server, "blobs").len()).filter(|now| *now >= blobs)
    });
    assert_eq!(kept.await, None, "bytes are freed");
    assert_eq!(reset(&server, &id, "c2").await, 404);
    assert_eq!(reset(&server, &id, "c3").await, 204);
    works(&server, &id).await;
    // Where it stands goes, too: the next one is a child of the one above.
    assert_eq!(delete(&server, &id, "c3").await, 204);
    let c1 = listing(&server, &id).await["checkpoints"][0]["checkpointID"].clone();
    assert_eq!(listing(&server, &id).await["current"], c1);
    // The name is free again.
    take(&server, &id, "c3").await;
    assert_eq!(tree(&server, &id).await, pairs(&[("c1", ""), ("c3", "c1")]));
    assert!(server.stop().await);
}

#[tokio::test]
async fn refusals_have_words() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let limits = LimitsFile {
        max_checkpoints: Some(2),
        ..LimitsFile::default()
    };
    let server = Server::start_with("", limits).await;
    let id = server.create(json!({})).await.id();
    take(&server, &id, "one").await;
    let word = |answer: &Answer| answer.json()["error_code"].clone();
    let taken = post(&server, &id, "checkpoints", json!({ "name": "one" })).await;
    assert_eq!(taken.status, 409, "{taken:?}");
    for name in [json!("a b"), json!(""), json!(1)] {
        let bad = post(&server, &id, "checkpoints", json!({ "name": name })).await;
        assert_eq!(bad.status, 400, "{bad:?}");
    }
    take(&server, &id, "two").await;
    let full = post(&server, &id, "checkpoints", json!({})).await;
    assert_eq!(full.status, 409, "{full:?}");
    assert_eq!(word(&full), "checkpoint_limit_reached");
    let none = post(&server, &id, "reset", json!({ "checkpoint": "none" })).await;
    assert_eq!(
        (none.status, word(&none)),
        (404, json!("checkpoint_not_found"))
    );
    let none = post(&server, &id, "fork", json!({ "checkpoint": "none" })).await;
    assert_eq!(
        (none.status, word(&none)),
        (404, json!("checkpoint_not_found"))
    );
    works(&server, &id).await;
    for (method, path) in [
        ("POST", "/sandboxes/inone/checkpoints"),
        ("GET", "/sandboxes/inone/checkpoints"),
        ("DELETE", "/sandboxes/inone/checkpoints/one"),
    ] {
        assert_eq!(
            server.api(method, path, Value::Null).await.status,
            404,
            "{path}"
        );
    }
    assert_eq!(post(&server, &id, "pause", json!({})).await.status, 204);
    let paused = post(&server, &id, "checkpoints", json!({})).await;
    assert_eq!(paused.status, 409, "full or paused: {paused:?}");
    assert_eq!(
        delete(&server, &id, "two").await,
        204,
        "also while it is paused"
    );
    let paused = post(&server, &id, "checkpoints", json!({})).await;
    assert!(
        paused.json()["message"]
            .as_str()
            .unwrap()
            .contains("paused")
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn what_cannot_be_saved_makes_no_checkpoint() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start_with("nosave", LimitsFile::default()).await;
    let id = server.create(json!({})).await.id();
    let refused = post(&server, &id, "checkpoints", json!({ "name": "c1" })).await;
    assert_eq!(refused.status, 500, "{refused:?}");
    assert_eq!(tree(&server, &id).await, pairs(&[]));
    works(&server, &id).await;
    stores(&server, 0).await;
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_begin_at_any_checkpoint() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    take(&server, &id, "c1").await;
    take(&server, &id, "c2").await;
    let before = open_files();
    let body = json!({ "checkpoint": "c1", "count": 4, "timeout": 60 });
    for paused in [false, true] {
        if paused {
            assert_eq!(post(&server, &id, "pause", json!({})).await.status, 204);
        }
        let forked = post(&server, &id, "fork", body.clone()).await;
        assert_eq!(forked.status, 201, "{forked:?}");
        for child in forked.json().as_array().unwrap() {
            let child = child["sandbox"]["sandboxID"].as_str().unwrap();
            works(&server, child).await;
            assert_eq!(tree(&server, child).await, pairs(&[]), "a tree of its own");
            // Its first moment is the checkpoint.
            assert_eq!(post(&server, child, "reset", json!({})).await.status, 204);
            let own = take(&server, child, "own").await;
            let c1 = listing(&server, &id).await["checkpoints"][0]["checkpointID"].clone();
            let parent = history(&server, c1.as_str().unwrap());
            assert_eq!(history(&server, &own)[..parent.len()], parent[..]);
            assert_eq!(kill(&server, child).await, 204);
        }
    }
    assert_eq!(kill(&server, &id).await, 204);
    server.idle().await;
    stores(&server, 0).await;
    no_more_files_than(before + 6).await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

#[tokio::test]
async fn a_tree_survives_its_sandbox_s_sleep_and_the_server() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    for name in ["c1", "c2", "c3"] {
        take(&server, &id, name).await;
    }
    assert_eq!(delete(&server, &id, "c2").await, 204);
    assert_eq!(reset(&server, &id, "c1").await, 204);
    take(&server, &id, "c4").await;
    let (before, shape) = (listing(&server, &id).await, tree(&server, &id).await);
    assert_eq!(shape, pairs(&[("c1", ""), ("c3", "c1"), ("c4", "c1")]));
    // One that runs when the server ends is gone, and its checkpoints with it.
    let other = server.create(json!({})).await.id();
    take(&server, &other, "x").await;
    assert_eq!(post(&server, &id, "pause", json!({})).await.status, 204);
    assert_eq!(listing(&server, &id).await, before);

    let server = server.again("", LimitsFile::default()).await;
    stores(&server, 4).await;
    assert_eq!(listing(&server, &id).await, before);
    let resumed = post(&server, &id, "connect", json!({ "timeout": 60 })).await;
    assert_eq!(resumed.status, 201, "{resumed:?}");
    assert_eq!(listing(&server, &id).await, before);
    for to in ["c3", "c1"] {
        assert_eq!(reset(&server, &id, to).await, 204);
        works(&server, &id).await;
    }
    take(&server, &id, "c5").await;
    assert_eq!(tree(&server, &id).await[3], pairs(&[("c5", "c1")])[0]);
    assert_eq!(post(&server, &id, "pause", json!({})).await.status, 204);
    let few = LimitsFile {
        max_checkpoints: Some(1),
        ..LimitsFile::default()
    };
    let server = server.again("", few).await;
    assert_eq!(
        tree(&server, &id).await.len(),
        4,
        "a smaller limit takes nothing away"
    );
    assert_eq!(kill(&server, &id).await, 204);
    stores(&server, 0).await;
    assert!(server.stop().await);
}

#[tokio::test]
async fn damage_is_told_and_the_sandbox_runs_on() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let c1 = take(&server, &id, "c1").await;
    let stored = files(&server, "manifests");
    let state = blob(&server, &manifest(&stored[0])["machine"]);
    let file = std::fs::OpenOptions::new().write(true).open(&state);
    file.unwrap().write_all_at(b"X", 20).unwrap();
    let refused = post(&server, &id, "reset", json!({ "checkpoint": c1 })).await;
    assert_eq!(refused.status, 500, "{refused:?}");
    works(&server, &id).await;
    std::fs::remove_file(&state).unwrap();
    assert_eq!(reset(&server, &id, "c1").await, 500);
    works(&server, &id).await;
    assert_eq!(delete(&server, &id, "c1").await, 204);
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_child_goes_back_to_its_first_moment_after_a_restart() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    let taken = post(&server, &id, "snapshots", json!({ "name": "shot" })).await;
    assert_eq!(taken.status, 201);
    let made = server.create(json!({ "templateID": "shot" })).await.id();
    let forked = post(&server, &id, "fork", json!({ "timeout": 60 })).await;
    let child = forked.json()[0]["sandbox"]["sandboxID"]
        .as_str()
        .unwrap()
        .to_owned();
    for id in [&made, &child] {
        assert_eq!(post(&server, id, "pause", json!({})).await.status, 204);
    }
    let path = "/templates/shot";
    assert_eq!(server.api("DELETE", path, Value::Null).await.status, 204);
    let server = server.again("", LimitsFile::default()).await;
    for id in [&made, &child] {
        for _ in 0..2 {
            let resumed = post(&server, id, "connect", json!({ "timeout": 60 })).await;
            assert_eq!(resumed.status, 201, "{resumed:?}");
            let back = post(&server, id, "reset", json!({})).await;
            assert_eq!(back.status, 204, "{back:?}");
            works(&server, id).await;
            assert_eq!(tree(&server, id).await, pairs(&[]), "it is no checkpoint");
            assert_eq!(post(&server, id, "pause", json!({})).await.status, 204);
        }
        assert_eq!(kill(&server, id).await, 204);
    }
    stores(&server, 0).await;
    assert!(server.stop().await);
}

/// Who comes while somebody else is at it waits, and is answered for what the sandbox then is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_after_the_other() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    for n in 0..6 {
        let id = server.create(json!({})).await.id();
        let (forked, taken, again, paused) = tokio::join!(
            post(&server, &id, "fork", json!({ "timeout": 60 })),
            post(&server, &id, "checkpoints", json!({ "name": "a" })),
            post(&server, &id, "checkpoints", json!({ "name": "b" })),
            async {
                tokio::time::sleep(Duration::from_millis(n)).await;
                post(&server, &id, "pause", json!({})).await
            }
        );
        assert_eq!(paused.status, 204, "it was running: {paused:?}");
        // Whatever came before the pause was done, whatever after is told so.
        let done = [&forked, &taken, &again].map(|answer| answer.status);
        assert!(done.iter().all(|s| [201, 409].contains(s)), "{done:?}");
        let there = done[1..].iter().filter(|status| **status == 201).count();
        assert_eq!(tree(&server, &id).await.len(), there);
        let resumed = post(&server, &id, "connect", json!({ "timeout": 60 })).await;
        assert_eq!(resumed.status, 201);
        works(&server, &id).await;
        if forked.status == 201 {
            child_works_and_goes(&server, &forked).await;
        }
        assert_eq!(kill(&server, &id).await, 204);
    }
    server.idle().await;
    stores(&server, 0).await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

/// A checkpoint that is deleted while it is reset to, forked from and deleted again: each either
/// has it or is told that it is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_there_or_it_is_not() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    take(&server, &id, "base").await;
    for n in 0..12 {
        let name = format!("c{n}");
        take(&server, &id, &name).await;
        let late = Duration::from_millis(n * 2);
        let fork = json!({ "checkpoint": name, "timeout": 60 });
        let (back, forked, deleted, twice) = tokio::join!(
            reset(&server, &id, &name),
            post(&server, &id, "fork", fork),
            async {
                tokio::time::sleep(late).await;
                delete(&server, &id, &name).await
            },
            async {
                tokio::time::sleep(late).await;
                delete(&server, &id, &name).await
            }
        );
        assert!([204, 404].contains(&back), "{back}");
        assert!([201, 404].contains(&forked.status), "{forked:?}");
        let mut both = [deleted, twice];
        both.sort_unstable();
        assert_eq!(both, [204, 404]);
        works(&server, &id).await;
        assert_eq!(tree(&server, &id).await, pairs(&[("base", "")]));
        let base = listing(&server, &id).await;
        assert_eq!(base["current"], base["checkpoints"][0]["checkpointID"]);
        if forked.status == 201 {
            child_works_and_goes(&server, &forked).await;
        }
    }
    assert_eq!(kill(&server, &id).await, 204);
    server.idle().await;
    stores(&server, 0).await;
    assert!(server.stop().await);
}

/// Checkpoints and resets while the sandbox is killed, at every moment of one another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_takes_what_is_being_stored() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    for n in 0..20 {
        let id = server.create(json!({})).await.id();
        take(&server, &id, "a").await;
        let (taken, back, killed) = tokio::join!(
            post(&server, &id, "checkpoints", json!({})),
            reset(&server, &id, "a"),
            async {
                tokio::time::sleep(Duration::from_millis(n * 2)).await;
                kill(&server, &id).await
            }
        );
        assert!([201, 404].contains(&taken.status), "{taken:?}");
        assert!([204, 404].contains(&back), "{back}");
        assert_eq!(killed, 204);
    }
    server.idle().await;
    stores(&server, 0).await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

/// Whatever memory was kept, it begins anew over its files; what is stored stays until that is
/// done.
#[tokio::test]
async fn a_paused_one_boots_over_its_files_if_that_is_asked_for() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = told::server(None).await;
    let made = server.create(json!({})).await;
    let id = made.id();
    let past = |checkpoint: String| history(&server, &checkpoint).len();
    take(&server, &id, "c1").await;
    let reboot = |memory: bool| {
        let body = json!({ "timeout": 60, "memory": memory });
        post(&server, &id, "connect", body)
    };
    let pause = |memory: bool| post(&server, &id, "pause", json!({ "memory": memory }));
    // Its machine goes on with what it was copied from, until it boots.
    let mut expected = 1;
    for (kept, wanted) in [(true, true), (true, false), (true, true), (false, false)] {
        assert_eq!(pause(kept).await.status, 204);
        tell(&server, "refuse");
        let refused = reboot(wanted).await;
        assert_eq!(refused.status, 500, "{refused:?}");
        assert_eq!(server.get(&id).await.json()["state"], "paused");
        tell(&server, "");
        let resumed = reboot(wanted).await;
        assert_eq!((resumed.status, resumed.json()), (201, made.json()));
        works(&server, &id).await;
        expected = if wanted { expected + 1 } else { 1 };
        assert_eq!(
            past(take(&server, &id, &format!("{kept}-{expected}")).await),
            expected
        );
        let names: Vec<_> = tree(&server, &id).await;
        assert_eq!(names[0], pairs(&[("c1", "")])[0], "its checkpoints stay");
        assert_eq!(
            delete(&server, &id, &format!("{kept}-{expected}")).await,
            204
        );
    }
    // One that runs is not booted anew.
    let before = children();
    let there = reboot(false).await;
    assert_eq!((there.status, there.json()), (200, made.json()));
    assert_eq!(children(), before);
    // The older request knows the field, too.
    assert_eq!(pause(true).await.status, 204);
    let resumed = post(&server, &id, "resume", json!({ "memory": false })).await;
    assert_eq!(resumed.status, 201, "{resumed:?}");
    assert_eq!(past(take(&server, &id, "last").await), 1);
    assert_eq!(reset(&server, &id, "c1").await, 204);
    works(&server, &id).await;
    assert!(server.stop().await);
}
