//! Damage to what is stored: it is refused in words, costs nothing else, and comes back when
//! mended.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::told::{
    connect, kill, pause, paused, refused, server, snapshot, start, state, stored, stores_nothing,
    works,
};
use support::{Server, no_more_files_than, open_files};

/// These tests count descriptors of this process, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// One way to damage a file, and the words for it.
struct Damage {
    name: &'static str,
    words: &'static str,
    make: fn(&Path, &Path),
}

fn change(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    edit(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn swap(one: &Path, other: &Path) {
    let (a, b) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    std::fs::write(one, b).unwrap();
    std::fs::write(other, a).unwrap();
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Of a blob; the second path is the same part of another machine.
const TO_BLOBS: [Damage; 5] = [
    Damage {
        name: "truncated",
        words: "bytes long",
        make: |path, _| change(path, |bytes| bytes.truncate(bytes.len() / 2)),
    },
    Damage {
        name: "longer",
        words: "bytes long",
        make: |path, _| change(path, |bytes| bytes.push(0)),
    },
    Damage {
        name: "bit-flipped",
        words: "damaged",
        make: |path, _| {
            change(path, |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            });
        },
    },
    Damage {
        name: "swapped",
        words: "damaged",
        make: swap,
    },
    Damage {
        name: "missing",
        words: "missing",
        make: |path, _| std::fs::remove_file(path).unwrap(),
    },
];

/// Of a manifest; the second path is another machine's.
const TO_MANIFESTS: [Damage; 7] = [
    Damage {
        name: "truncated",
        words: "does not decode",
        make: |path, _| change(path, |bytes| bytes.truncate(bytes.len() / 2)),
    },
    Damage {
        name: "empty",
        words: "does not decode",
        make: |path, _| change(path, Vec::clear),
    },
    Damage {
        name: "swapped",
        words: "id",
        make: swap,
    },
    Damage {
        name: "newer",
        words: "update this program",
        make: |path, _| {
            replace(
                path,
                "\"manifest_version\": 2",
                "\"manifest_version\": 99, \"x\": 1",
            );
        },
    },
    Damage {
        name: "older",
        words: "an older program wrote it",
        make: |path, _| replace(path, "\"manifest_version\": 2", "\"manifest_version\": 1"),
    },
    Damage {
        name: "of another agent",
        words: "wire version",
        make: |path, _| replace(path, "\"wire_version\": ", "\"wire_version\": 7"),
    },
    Damage {
        name: "too large",
        words: "at most",
        make: |path, _| change(path, |bytes| bytes.resize(64 << 20, b' ')),
    },
];

/// A sandbox and a snapshot that are going to be damaged, and others that are not.
struct Stored {
    asleep: String,
    healthy: String,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl Stored {
    async fn new(server: &Server) -> Self {
        let (asleep, healthy) = (paused(server).await, paused(server).await);
        let source = server.create(json!({})).await.id();
        for name in ["one", "two"] {
            assert_eq!(snapshot(server, &source, name).await.status, 201);
        }
        assert_eq!(kill(server, &source).await, 204);
        let files = [stored(server, "manifests"), stored(server, "blobs")].concat();
        let read = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
        Self {
            asleep,
            healthy,
            before: files.into_iter().map(read).collect(),
        }
    }

    /// Nothing was lost. Removes all.
    async fn are_there(&self, server: &Server) {
        for id in [&self.asleep, &self.healthy] {
            let resumed = connect(server, id).await;
            assert_eq!(resumed.status, 201, "{resumed:?}");
            works(server, id).await;
            assert_eq!(kill(server, id).await, 204);
        }
        for name in ["one", "two"] {
            let made = server.create(json!({ "templateID": name })).await.id();
            works(server, &made).await;
            assert_eq!(kill(server, &made).await, 204);
            let path = format!("/templates/{name}");
            assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
        }
        stores_nothing(server).await;
    }

    fn restore(&self) {
        for (path, bytes) in &self.before {
            if std::fs::read(path).ok().as_ref() != Some(bytes) {
                std::fs::write(path, bytes).unwrap();
            }
        }
    }

    /// The manifest of the one, of the snapshot, and of others that are swapped with them.
    fn manifests(&self, server: &Server) -> [(PathBuf, PathBuf); 2] {
        let all = stored(server, "manifests");
        let named = |part: &str| {
            let is = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().contains(part);
            all.iter().filter(is).cloned().collect::<Vec<_>>()
        };
        let snapshots = named("snapshot-");
        // Which of the two is "one" says the record.
        let one = snapshots.iter().position(|path| {
            let manifest: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let record = blob(server, &manifest["record"]);
            std::fs::read_to_string(record)
                .unwrap()
                .contains("\"one:default\"")
        });
        let one = one.unwrap();
        [
            (
                named(&self.asleep)[0].clone(),
                named(&self.healthy)[0].clone(),
            ),
            (snapshots[one].clone(), snapshots[1 - one].clone()),
        ]
    }
}

fn blob(server: &Server, reference: &Value) -> PathBuf {
    let digest = reference["digest"].as_str().unwrap();
    server.dir.path().join("data/snapshots/blobs").join(digest)
}

/// The blobs of a manifest beside those of another.
fn blobs(server: &Server, (own, other): &(PathBuf, PathBuf)) -> Vec<(PathBuf, PathBuf)> {
    let parse = |path: &PathBuf| -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let (own, other) = (parse(own), parse(other));
    let parts = ["/machine", "/memory/0", "/disk/0", "/record"];
    let pair = |part: &str| {
        let at = |manifest: &Value| blob(server, manifest.pointer(part).unwrap());
        (at(&own), at(&other))
    };
    parts.map(pair).into()
}

/// Both are refused with these words, and the others are as good as before.
async fn both_are_refused(server: &Server, stored: &Stored, words: &str) {
    refused(&connect(server, &stored.asleep).await, words);
    assert_eq!(server.registry.in_use(), 0, "no half of it is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_refused_in_words_and_comes_back_when_mended() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server(None).await;
    let all = Stored::new(&server).await;
    let before = open_files();
    let [sleeper, snapshot] = all.manifests(&server);
    let mut cases = Vec::new();
    for damage in &TO_BLOBS {
        for (own, other) in blobs(&server, &sleeper) {
            // What both have in common is stored once.
            if own != other || damage.name != "swapped" {
                cases.push((damage, own, other));
            }
        }
    }
    for damage in &TO_MANIFESTS {
        cases.push((damage, sleeper.0.clone(), sleeper.1.clone()));
    }
    for (damage, own, other) in &cases {
        println!("{} {}", damage.name, own.display());
        (damage.make)(own, other);
        both_are_refused(&server, &all, damage.words).await;
        assert_eq!(state(&server, &all.asleep).await, "paused");
        all.restore();
    }
    no_more_files_than(before + 4).await;
    // The same for a snapshot, which the server has not read before.
    for damage in &TO_MANIFESTS {
        println!("{} snapshot", damage.name);
        (damage.make)(&snapshot.0, &snapshot.1);
        let answer = server.create(json!({ "templateID": "one" })).await;
        refused(&answer, damage.words);
        all.restore();
    }
    all.are_there(&server).await;
    assert!(server.stop().await);
}

/// By a server that starts: what it cannot read is not listed, and says why when it is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_is_found_at_the_start_costs_only_what_is_damaged() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut server = server(None).await;
    let all = Stored::new(&server).await;
    let [sleeper, snapshot] = all.manifests(&server);
    for damage in &TO_MANIFESTS {
        println!("{} at the start", damage.name);
        let (dir, clean) = server.close().await;
        assert!(clean);
        // Not before: what the server sweeps while two manifests are swapped is truly nobody's.
        (damage.make)(&sleeper.0, &sleeper.1);
        (damage.make)(&snapshot.0, &snapshot.1);
        server = start(dir, None).await;
        refused(&connect(&server, &all.asleep).await, damage.words);
        let answer = server.create(json!({ "templateID": "one" })).await;
        refused(&answer, damage.words);
        if damage.name != "swapped" {
            let answer = connect(&server, &all.healthy).await;
            assert_eq!(answer.status, 201, "{}: {answer:?}", damage.name);
            works(&server, &all.healthy).await;
            assert_eq!(pause(&server, &all.healthy).await.status, 204);
            let made = server.create(json!({ "templateID": "two" })).await.id();
            assert_eq!(kill(&server, &made).await, 204);
        }
        let (dir, clean) = server.close().await;
        assert!(clean);
        let healthy = dir.path().join("data/snapshots/manifests");
        let healthy = healthy.join(format!("paused-{}", all.healthy));
        let kept = std::fs::read(&healthy).unwrap();
        all.restore();
        if damage.name != "swapped" {
            std::fs::write(&healthy, kept).unwrap();
        }
        server = start(dir, None).await;
    }
    all.are_there(&server).await;
    assert!(server.stop().await);
}

#[tokio::test]
async fn what_cannot_be_read_goes_when_it_is_killed() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server(None).await;
    let all = Stored::new(&server).await;
    let [sleeper, snapshot] = all.manifests(&server);
    for path in [&sleeper.0, &snapshot.0] {
        replace(path, "\"manifest_version\": 2", "\"manifest_version\": 3");
    }
    let (dir, _) = server.close().await;
    let server = start(dir, None).await;
    assert_eq!(state(&server, &all.asleep).await, "gone", "in no list");
    assert_eq!(kill(&server, &all.asleep).await, 204);
    assert_eq!(kill(&server, &all.asleep).await, 404);
    assert_eq!(connect(&server, &all.asleep).await.status, 404);
    for (name, status) in [("one", 204), ("one", 404), ("two", 204)] {
        let path = format!("/templates/{name}");
        assert_eq!(
            server.api("DELETE", &path, Value::Null).await.status,
            status
        );
    }
    assert_eq!(kill(&server, &all.healthy).await, 204);
    stores_nothing(&server).await;
    assert!(server.stop().await);
}

/// No single bit of a manifest can change unnoticed.
#[tokio::test]
async fn every_bit_of_a_manifest_counts() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server(None).await;
    let asleep = paused(&server).await;
    let path = stored(&server, "manifests").remove(0);
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            std::fs::write(&path, &bad).unwrap();
            let answer = connect(&server, &asleep).await;
            let text = String::from_utf8_lossy(&bad);
            assert_eq!(answer.status, 500, "byte {at}, bit {bit}: {text}");
        }
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(connect(&server, &asleep).await.status, 201);
    assert!(server.stop().await);
}
