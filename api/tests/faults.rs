//! Damage, and deaths at bad moments, with stand-ins: what is lost is told, nothing else is lost, and
//! nothing stays behind.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use api::config::{ClonesFile, LimitsFile};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{Answer, Server, children, no_more_files_than, open_files, until};

/// These tests count processes of this one, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A server whose stand-ins do what [`tell`] says when they start.
async fn server(husks: Option<usize>) -> Server {
    start(tempfile::tempdir().unwrap(), husks).await
}

async fn start(dir: tempfile::TempDir, husks: Option<usize>) -> Server {
    let limits = LimitsFile {
        max_sandboxes: Some(12),
        boot_timeout: Some(2),
        ..LimitsFile::default()
    };
    let clones = ClonesFile {
        enabled: Some(husks.is_some()),
        husks,
        lazy: None,
    };
    Server::start_in(dir, "told", limits, clones).await
}

/// From now on machines start in this mode.
fn tell(server: &Server, mode: &str) {
    std::fs::write(server.dir.path().join("fake-vmm-told.mode"), mode).unwrap();
}

async fn post(server: &Server, id: &str, what: &str, body: Value) -> Answer {
    let path = format!("/sandboxes/{id}/{what}");
    server.api("POST", &path, body).await
}

async fn pause(server: &Server, id: &str) -> Answer {
    post(server, id, "pause", json!({})).await
}

async fn connect(server: &Server, id: &str) -> Answer {
    post(server, id, "connect", json!({ "timeout": 300 })).await
}

async fn snapshot(server: &Server, id: &str, name: &str) -> Answer {
    post(server, id, "snapshots", json!({ "name": name })).await
}

async fn kill(server: &Server, id: &str) -> u16 {
    let path = format!("/sandboxes/{id}");
    server.api("DELETE", &path, Value::Null).await.status
}

async fn paused(server: &Server) -> String {
    let id = server.create(json!({})).await.id();
    assert_eq!(pause(server, &id).await.status, 204);
    id
}

async fn state(server: &Server, id: &str) -> String {
    let answer = server.get(id).await;
    match answer.status {
        404 => "gone".into(),
        _ => answer.json()["state"].as_str().unwrap().to_owned(),
    }
}

/// Says something that only a sandbox whose agent works can say.
async fn works(server: &Server, id: &str) {
    let metrics = format!("/sandboxes/{id}/metrics");
    let metrics = server.api("GET", &metrics, Value::Null).await.json();
    assert!(metrics[0]["memTotal"].as_u64().unwrap() > 0, "{metrics}");
}

/// The answer is an error that says this, and no sandbox.
fn refused(answer: &Answer, words: &str) {
    assert_eq!(answer.status, 500, "{words}: {answer:?}");
    let said = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(said.contains(words), "{said:?} does not say {words:?}");
}

/// Waits until so many machines are in use, and that no other process is there.
async fn in_use(server: &Server, count: usize) {
    let other = until(Duration::from_secs(10), || {
        let (used, now) = (server.registry.in_use(), children());
        (used != count || now.len() != count).then_some((used, now))
    });
    assert_eq!(other.await, None, "{count} wanted");
}

fn stored(server: &Server, folder: &str) -> Vec<PathBuf> {
    let folder = server.dir.path().join("data/snapshots").join(folder);
    let entries = std::fs::read_dir(folder).unwrap();
    let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// Waits until the store has nothing.
async fn stores_nothing(server: &Server) {
    let left = until(Duration::from_secs(10), || {
        let left = ["manifests", "blobs", "tmp"].map(|folder| stored(server, folder));
        Some(left.concat()).filter(|left| !left.is_empty())
    });
    assert_eq!(left.await, None);
}

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

/// Copies made ahead and on the spot: the creation tries another, then a boot, and delivers none of them
/// if none becomes somebody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_does_not_become_somebody_is_not_delivered() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for husks in [0, 2] {
        for (mode, words) in NOBODIES {
            let dir = tempfile::tempdir().unwrap();
            // From the beginning, so that the husks are of this mode; golden machines take no identity.
            std::fs::write(dir.path().join("fake-vmm-told.mode"), mode).unwrap();
            let server = start(dir, Some(husks)).await;
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
    let server = start(dir, None).await;
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
        // What has to be unpacked does not fit, and stays. What failed before has given back its room.
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

/// Far more at once than there is room for: who gets one has a whole one, the others are told to come
/// again, and nobody is half-made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_beyond_capacity_makes_no_half_sandbox() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for husks in [None, Some(3)] {
        let server = server(husks).await;
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
