//! Pausing and resuming with stand-ins: a resumed one runs a fresh agent, but everything on the
//! host's side goes the way that a real one goes.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{Answer, Server, children, no_more_files_than, open_files, until};

/// These tests count processes of this one, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn post(server: &Server, id: &str, what: &str, body: Value) -> Answer {
    server
        .api("POST", &format!("/sandboxes/{id}/{what}"), body)
        .await
}

async fn pause(server: &Server, id: &str) -> u16 {
    post(server, id, "pause", json!({})).await.status
}

async fn connect(server: &Server, id: &str) -> Answer {
    post(server, id, "connect", json!({ "timeout": 60 })).await
}

async fn kill(server: &Server, id: &str) -> u16 {
    let path = format!("/sandboxes/{id}");
    server.api("DELETE", &path, Value::Null).await.status
}

/// The state that clients see; "gone" for a 404.
async fn state(server: &Server, id: &str) -> String {
    let answer = server.get(id).await;
    match answer.status {
        404 => "gone".into(),
        _ => answer.json()["state"].as_str().unwrap().to_owned(),
    }
}

async fn reaches(server: &Server, id: &str, wanted: &str) {
    let begin = Instant::now();
    while state(server, id).await != wanted {
        assert!(begin.elapsed() < Duration::from_secs(10), "never {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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

/// Waits until the store has nothing.
async fn stores_nothing(server: &Server) {
    let left = until(Duration::from_secs(10), || {
        let left = [files(server, "manifests"), files(server, "blobs")].concat();
        Some(left).filter(|left| !left.is_empty())
    });
    assert_eq!(left.await, None);
}

#[tokio::test]
async fn a_paused_sandbox_has_no_machine_and_comes_back_as_it_was() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let made = server.create(json!({ "metadata": { "a": "b" } })).await;
    let id = made.id();
    for _ in 0..3 {
        assert_eq!(pause(&server, &id).await, 204);
        assert_eq!(pause(&server, &id).await, 409, "it is paused already");
        server.idle().await;
        assert_eq!(children(), Vec::<String>::new());
        assert_eq!(state(&server, &id).await, "paused");
        let list = "/v2/sandboxes?state=paused&metadata=a%3Db";
        let list = server.api("GET", list, Value::Null).await.json();
        assert_eq!(list[0]["sandboxID"], json!(id), "{list}");
        for (method, what, status) in [
            ("GET", "metrics", 200),
            ("GET", "logs", 200),
            ("PUT", "network", 409),
        ] {
            let path = format!("/sandboxes/{id}/{what}");
            let there = server.api(method, &path, Value::Null).await;
            assert_eq!(there.status, status, "it is there: {there:?}");
        }
        let resumed = connect(&server, &id).await;
        assert_eq!(resumed.status, 201, "{resumed:?}");
        assert_eq!(resumed.json(), made.json(), "the token too");
        works(&server, &id).await;
        assert_eq!(connect(&server, &id).await.status, 200, "it runs");
        let resume = post(&server, &id, "resume", json!({})).await;
        assert_eq!(resume.status, 409, "it runs");
        assert_eq!(files(&server, "manifests"), Vec::<PathBuf>::new());
    }
    assert_eq!(kill(&server, &id).await, 204);
    stores_nothing(&server).await;
    for what in ["pause", "connect"] {
        let answer = post(&server, &id, what, json!({ "timeout": 1 })).await;
        assert_eq!(answer.status, 404, "{what}");
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_paused_sandbox_outlives_the_server() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let made = server.create(json!({ "envVars": { "A": "1" } })).await;
    let (id, running) = (made.id(), server.create(json!({})).await.id());
    assert_eq!(pause(&server, &id).await, 204);
    let server = server.again("", LimitsFile::default()).await;
    let server = server.again("", LimitsFile::default()).await;
    assert_eq!(state(&server, &running).await, "gone");
    assert_eq!(state(&server, &id).await, "paused");
    assert_eq!(connect(&server, &id).await.json(), made.json());
    works(&server, &id).await;
    assert_eq!(pause(&server, &id).await, 204);
    let server = server.again("", LimitsFile::default()).await;
    assert_eq!(kill(&server, &id).await, 204);
    stores_nothing(&server).await;
    let server = server.again("", LimitsFile::default()).await;
    assert_eq!(state(&server, &id).await, "gone");
    assert!(server.stop().await);
}

#[tokio::test]
async fn without_its_memory_it_boots() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let made = server.create(json!({})).await;
    let id = made.id();
    let paused = post(&server, &id, "pause", json!({ "memory": false })).await;
    assert_eq!(paused.status, 204, "{paused:?}");
    let detail = server.get(&id).await.json();
    assert_eq!(detail["pauseMode"], json!("filesystem"), "{detail}");
    assert_eq!(connect(&server, &id).await.json(), made.json());
    works(&server, &id).await;
    assert!(server.stop().await);
}

#[tokio::test]
async fn what_is_damaged_or_does_not_fit_stays_paused_and_says_why() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    assert_eq!(pause(&server, &id).await, 204);
    let base = server.dir.path().join("base.ext4");
    let base = std::fs::File::options().write(true).open(base).unwrap();
    let modified = base.metadata().unwrap().modified().unwrap();
    base.set_modified(modified + Duration::from_secs(1))
        .unwrap();
    let refused = connect(&server, &id).await;
    assert_eq!(refused.status, 500);
    let text = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(text.contains("has changed since"), "{text}");
    base.set_modified(modified).unwrap();

    let mut damaged = 0;
    for blob in files(&server, "blobs") {
        // The record is read at the start only.
        if std::fs::read(&blob).unwrap().starts_with(b"{") {
            continue;
        }
        let blob = std::fs::File::options().read(true).write(true).open(blob);
        let (blob, mut byte) = (blob.unwrap(), [0]);
        let middle = blob.metadata().unwrap().len() / 2;
        blob.read_exact_at(&mut byte, middle).unwrap();
        blob.write_all_at(&[byte[0] ^ 1], middle).unwrap();
        let refused = connect(&server, &id).await;
        assert_eq!(refused.status, 500, "{refused:?}");
        assert_eq!(state(&server, &id).await, "paused");
        blob.write_all_at(&byte, middle).unwrap();
        damaged += 1;
    }
    assert_eq!(damaged, 3, "memory, machine and disk");
    assert_eq!(connect(&server, &id).await.status, 201);
    server
        .api("DELETE", &format!("/sandboxes/{id}"), Value::Null)
        .await;
    server.idle().await;
    assert!(server.stop().await);
}

#[tokio::test]
async fn the_deadline_pauses_and_traffic_resumes() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let auto = json!({ "timeout": 1, "autoPause": true, "autoResume": { "enabled": true } });
    let made = server.create(auto).await;
    let shut = server
        .create(json!({ "timeout": 1, "autoPause": true }))
        .await;
    for made in [&made, &shut] {
        reaches(&server, &made.id(), "paused").await;
    }
    let health = |made: &Answer| {
        let token = made.json()["envdAccessToken"].as_str().unwrap().to_owned();
        let (id, server) = (made.id(), &server);
        async move {
            let headers = [
                ("e2b-sandbox-id", id.as_str()),
                ("e2b-sandbox-port", "49983"),
                ("x-access-token", token.as_str()),
            ];
            server.send("GET", "/metrics", &headers, "").await.status
        }
    };
    assert_eq!(health(&made).await, 200);
    assert_eq!(state(&server, &made.id()).await, "running");
    // The list has it as paused as soon as that has begun.
    while health(&shut).await == 409 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(health(&shut).await, 502);
    assert_eq!(state(&server, &shut.id()).await, "paused");
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connects_make_one_machine() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let id = server.create(json!({})).await.id();
    assert_eq!(pause(&server, &id).await, 204);
    let all = futures_util::future::join_all((0..10).map(|_| connect(&server, &id))).await;
    let mut statuses: Vec<_> = all.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses[..9], [200; 9]);
    assert_eq!(statuses[9], 201);
    assert_eq!(children().len(), 1);
    works(&server, &id).await;
    assert!(server.stop().await);
}

/// Pauses, resumptions and kills at every moment of one another: what is left is nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_wins_over_everything() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start().await;
    let before = open_files();
    for n in 0..40 {
        let id = server.create(json!({})).await.id();
        let moment = tokio::time::sleep(Duration::from_millis(n % 20));
        if n % 2 == 0 {
            assert_eq!(pause(&server, &id).await, 204);
            let (resumed, killed) = tokio::join!(connect(&server, &id), async {
                moment.await;
                kill(&server, &id).await
            });
            assert!([201, 404].contains(&resumed.status), "{resumed:?}");
            assert_eq!(killed, 204);
        } else {
            let (paused, killed) = tokio::join!(pause(&server, &id), async {
                moment.await;
                kill(&server, &id).await
            });
            assert!([204, 404].contains(&paused), "{paused}");
            assert_eq!(killed, 204);
        }
        assert_eq!(state(&server, &id).await, "gone");
    }
    server.idle().await;
    stores_nothing(&server).await;
    no_more_files_than(before + 6).await;
    assert_eq!(children(), Vec::<String>::new());
    assert!(server.stop().await);
}

#[tokio::test]
async fn what_cannot_be_saved_runs_on() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = Server::start_with("nosave", LimitsFile::default()).await;
    let id = server.create(json!({})).await.id();
    let refused = post(&server, &id, "pause", json!({})).await;
    assert_eq!(refused.status, 500, "{refused:?}");
    assert_eq!(state(&server, &id).await, "running");
    works(&server, &id).await;
    stores_nothing(&server).await;
    assert!(server.stop().await);
}
