//! Deaths at bad moments, a full disk and storms, with stand-ins: what is lost is told, nothing
//! else is lost, and nothing stays behind.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::told::{
    connect, in_use, kill, pause, paused, post, refused, server, snapshot, start,
    start_without_reserve, state, stored, stores_nothing, tell, works,
};
use support::{children, no_more_files_than, open_files};

/// These tests count processes of this one, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// How an identity is not taken, and the words for it.
const NOBODIES: [(&str, &str); 4] = [
    ("mute", "did not accept its identity within 2 s"),
    ("wrong", "generation"),
    ("agentdies", "the guest agent died"),
    ("vanish", "signal 9"),
];

/// Creation, child, sandbox of a snapshot, resumption, reset: none is delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_become_somebody_is_not_delivered() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server(None).await;
    let parent = server.create(json!({})).await.id();
    let asleep = paused(&server).await;
    assert_eq!(snapshot(&server, &parent, "one").await.status, 201);
    in_use(&server, 1).await;
    let before = open_files();
    for (mode, words) in NOBODIES {
        tell(&server, mode);
        refused(&server.create(json!({})).await, words);
        let of_snapshot = json!({ "templateID": "one" });
        refused(&server.create(of_snapshot).await, words);
        refused(&connect(&server, &asleep).await, words);
        assert_eq!(state(&server, &asleep).await, "paused");
        refused(&post(&server, &parent, "reset", json!({})).await, words);
        let forked = post(&server, &parent, "fork", json!({ "count": 2 })).await;
        assert_eq!(forked.status, 201, "{forked:?}");
        for child in forked.json().as_array().unwrap() {
            let said = child["error"]["message"].as_str().unwrap_or_default();
            assert!(said.contains(words), "{mode}: {forked:?}");
        }
        in_use(&server, 1).await;
        no_more_files_than(before + 4).await;
        works(&server, &parent).await;
        let list = server.api("GET", "/v2/sandboxes", Value::Null).await.json();
        assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    }
    tell(&server, "");
    assert_eq!(connect(&server, &asleep).await.status, 201);
    assert_eq!(post(&server, &parent, "reset", json!({})).await.status, 204);
    for id in [&parent, &asleep] {
        works(&server, id).await;
    }
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

/// Copies made ahead and on the spot: the creation tries another, then a boot, and delivers none of
/// them if none becomes somebody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_does_not_become_somebody_is_not_delivered() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for warm_vms in [0, 2] {
        for (mode, words) in NOBODIES {
            let dir = tempfile::tempdir().unwrap();
            // From the beginning, so that the warm VMs are of this mode; template VMs take no
            // identity.
            std::fs::write(dir.path().join("fake-vmm-told.mode"), mode).unwrap();
            let server = start(dir, Some(warm_vms)).await;
            let answer = server.create(json!({})).await;
            refused(&answer, words);
            let list = server.api("GET", "/v2/sandboxes", Value::Null).await.json();
            assert_eq!(list, json!([]));
            assert_eq!(server.registry.in_use(), 0);
            tell(&server, "");
            let made = server.create(json!({})).await;
            works(&server, &made.id()).await;
            assert!(server.stop().await);
            assert_eq!(children(), Vec::<String>::new());
        }
    }
}

/// The machine goes while it is saved: it is told, nothing half is stored, others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_dies_while_it_is_saved_is_gone_and_said_to_be() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server(None).await;
    let other = server.create(json!({})).await.id();
    let before = open_files();
    for what in ["pause", "snapshots", "fork"] {
        tell(&server, "savedies");
        let doomed = server.create(json!({})).await.id();
        tell(&server, "");
        let answer = post(&server, &doomed, what, json!({})).await;
        match answer.status {
            404 => {}
            _ => refused(&answer, "ended while it was being saved"),
        }
        let begin = Instant::now();
        while state(&server, &doomed).await != "gone" {
            assert!(begin.elapsed() < Duration::from_secs(5), "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        in_use(&server, 1).await;
        no_more_files_than(before + 4).await;
        stores_nothing(&server).await;
        works(&server, &other).await;
    }
    assert!(server.stop().await);
}

/// A tmpfs of 4 MiB as the data folder.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=4m", "small"])
            .arg(at);
        assert!(mount.status().unwrap().success());
        Self(at.to_owned())
    }

    /// Leaves no byte free.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let _ = umount.arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a small file system needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let disk = SmallDisk::mount(&dir.path().join("data"));
    let server = start_without_reserve(dir).await;
    let id = server.create(json!({})).await.id();
    let asleep = paused(&server).await;
    assert_eq!(snapshot(&server, &id, "one").await.status, 201);
    in_use(&server, 1).await;
    let (files, blobs) = (open_files(), stored(&server, "blobs"));
    for _ in 0..3 {
        disk.fill();
        let full = "No space left on device";
        refused(&pause(&server, &id).await, full);
        assert_eq!(state(&server, &id).await, "running");
        refused(&snapshot(&server, &id, "one").await, full);
        refused(&snapshot(&server, &id, "other").await, full);
        refused(&post(&server, &id, "fork", json!({})).await, full);
        works(&server, &id).await;
        let list = server.api("GET", "/snapshots", Value::Null).await.json();
        assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
        // What has to be unpacked does not fit, and stays. What failed before has given back its
        // room.
        in_use(&server, 1).await;
        no_more_files_than(files + 4).await;
        disk.fill();
        let resumed = connect(&server, &asleep).await;
        refused(&resumed, full);
        assert_eq!(state(&server, &asleep).await, "paused");
        disk.empty();
        in_use(&server, 1).await;
        no_more_files_than(files + 4).await;
        assert_eq!(stored(&server, "blobs"), blobs);
        assert_eq!(stored(&server, "tmp"), Vec::<PathBuf>::new());
        let made = server.create(json!({ "templateID": "one" })).await.id();
        works(&server, &made).await;
        assert_eq!(kill(&server, &made).await, 204);
    }
    assert_eq!(connect(&server, &asleep).await.status, 201);
    for id in [&asleep, &id] {
        works(&server, id).await;
        assert_eq!(pause(&server, id).await.status, 204);
    }
    let (dir, clean) = server.close().await;
    assert!(clean);
    drop(disk);
    drop(dir);
}

/// Far more at once than there is room for: who gets one has a whole one, the others are told to
/// come again, and nobody is half-made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_beyond_capacity_makes_no_half_sandbox() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for warm_vms in [None, Some(3)] {
        let server = server(warm_vms).await;
        let warm = server.create(json!({})).await.id();
        assert_eq!(kill(&server, &warm).await, 204);
        let storm = (0..200).map(|_| server.create(json!({})));
        let answers = futures_util::future::join_all(storm).await;
        let mut made = Vec::new();
        for answer in &answers {
            match answer.status {
                201 => made.push(answer.id()),
                429 => {
                    let after = answer.header("retry-after");
                    let retry = (answer.header("should-retry"), after);
                    assert_eq!(retry, (Some("false"), Some("1")), "{answer:?}");
                    let message = answer.json()["message"].to_string();
                    assert!(message.contains("12"), "it names the limit: {message}");
                }
                _ => panic!("{answer:?}"),
            }
        }
        assert!((1..=12).contains(&made.len()), "{} made", made.len());
        assert_eq!(server.registry.in_use(), made.len());
        for id in &made {
            works(&server, id).await;
            assert_eq!(kill(&server, id).await, 204);
        }
        let list = server.api("GET", "/v2/sandboxes", Value::Null).await.json();
        assert_eq!(list, json!([]));
        assert!(server.stop().await);
        assert_eq!(children(), Vec::<String>::new());
    }
}
