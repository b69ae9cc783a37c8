//! The server as a process: signals, crashes, and the start after one.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{KEY, agent};

/// A server of its own process.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    fn start(dir: &Path) -> Self {
        for (name, size) in [("base.ext4", 1 << 20), ("vmlinux", 4096)] {
            // Not again: what is stored belongs to the very image.
            if let Ok(file) = std::fs::File::create_new(dir.join(name)) {
                file.set_len(size).unwrap();
            }
        }
        let config = dir.join("hatchery.toml");
        std::fs::write(&config, "[clones]\nenabled = false\n").unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_hatchery"))
            .env("HATCHERY_CONFIG", config)
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--vmm",
                env!("CARGO_BIN_EXE_fake-vmm"),
            ])
            .arg("--agent")
            .arg(agent())
            .arg("--image-dir")
            .arg(dir)
            .arg("--data-dir")
            .arg(dir.join("data"))
            .env("HATCHERY_API_KEYS", KEY)
            .env("HATCHERY_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .find_map(|line| Some(line.ok()?.split_once("listen=")?.1.trim().parse().unwrap()))
            .expect("the server says where it listens");
        // Its log must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// A request of few words; the whole answer.
    fn ask(&self, head: &str, body: &str) -> String {
        ask(self.address, head, body).unwrap()
    }

    /// A new sandbox's id.
    fn create(&self) -> String {
        let answer = self.ask("POST /v2/sandboxes", CREATE);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        id(&answer)
    }

    /// What clients see of a sandbox: its state, or nothing.
    fn state(&self, id: &str) -> Option<String> {
        let answer = self.ask(&format!("GET /sandboxes/{id}"), "");
        if answer.starts_with("HTTP/1.1 404") {
            return None;
        }
        Some(json(&answer)["state"].as_str().unwrap().to_owned())
    }

    fn good(&self, head: &str, body: &str) {
        let answer = self.ask(head, body);
        assert!(answer.starts_with("HTTP/1.1 20"), "{head}: {answer}");
    }

    fn die(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    fn files(&self) -> usize {
        let fds = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(fds).unwrap().count()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

const CREATE: &str = r#"{"templateID":"base"}"#;

fn ask(address: SocketAddr, head: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let length = body.len();
    let rest = format!("Host: x\r\nX-API-KEY: {KEY}\r\nConnection: close\r\n");
    write!(
        stream,
        "{head} HTTP/1.1\r\n{rest}Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn json(answer: &str) -> serde_json::Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

fn id(answer: &str) -> String {
    json(answer)["sandboxID"].as_str().unwrap().to_owned()
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes whose command line names a path in `dir` or that descend from such: found by the
/// notes that the server keeps.
fn machines(dir: &Path) -> Vec<i32> {
    let notes = std::fs::read_dir(dir.join("data/machines")).unwrap();
    notes
        .map(|note| note.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn gone_within(pids: &[i32], bound: Duration) -> bool {
    let begin = Instant::now();
    while pids.iter().any(|pid| runs(*pid)) {
        if begin.elapsed() > bound {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn a_signal_ends_everything_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Program::start(dir.path());
        server.create();
        server.create();
        let pids = machines(dir.path());
        assert_eq!(pids.len(), 2);
        server.signal(signal);
        assert!(server.child.wait().unwrap().success(), "{signal:?}");
        assert!(pids.iter().all(|pid| !runs(*pid)), "no process is left");
        assert_eq!(machines(dir.path()), Vec::<i32>::new());
        assert_eq!(
            std::fs::read_dir(dir.path().join("data/layers"))
                .unwrap()
                .count(),
            0
        );
    }
}

#[test]
fn a_crash_leaves_no_machine_and_the_next_start_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Program::start(dir.path());
    server.create();
    let pids = machines(dir.path());
    assert_eq!(pids.len(), 1);
    server.signal(Signal::KILL);
    assert!(!server.child.wait().unwrap().success());
    assert!(
        gone_within(&pids, Duration::from_secs(10)),
        "the machine outlives its server"
    );

    let next = Program::start(dir.path());
    assert_eq!(machines(dir.path()), Vec::<i32>::new());
    let list = next.ask("GET /v2/sandboxes", "");
    assert!(list.trim_end().ends_with("[]"), "{list}");
    next.create();
}

#[test]
fn two_servers_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Program::start(dir.path());
    let second = Command::new(env!("CARGO_BIN_EXE_hatchery"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path().join("data"))
        .env("HATCHERY_API_KEYS", KEY)
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("is used by another server"), "{said}");
}

/// Files below a folder of the store.
fn stored(dir: &Path, folder: &str) -> Vec<String> {
    let folder = dir.join("data/snapshots").join(folder);
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Waits until the store has exactly these blobs, and nothing half-written.
fn stores_only(dir: &Path, wanted: &[String]) {
    let begin = Instant::now();
    loop {
        let blobs = stored(dir, "blobs");
        if blobs == wanted && stored(dir, "tmp").is_empty() {
            return;
        }
        let late = begin.elapsed() > Duration::from_secs(10);
        assert!(!late, "{blobs:?}, not {wanted:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sandboxes can be made of all snapshots in the list.
fn snapshots_work(server: &Program, list: &str) {
    for listed in json(list).as_array().unwrap() {
        let name = listed["snapshotID"].as_str().unwrap();
        let made = server.ask("POST /v2/sandboxes", &CREATE.replace("base", name));
        assert!(made.starts_with("HTTP/1.1 201"), "{name}: {made}");
        server.good(&format!("DELETE /sandboxes/{}", id(&made)), "");
    }
}

/// Milliseconds after which the server is killed: a saving with stand-ins takes about ten.
const MOMENTS: [u64; 10] = [0, 1, 2, 3, 5, 7, 9, 12, 16, 25];

/// Killed at any moment of a pause, snapshot, creation, fork or resumption, and started again: what
/// was stored before is there, what was answered is true, and nothing half-made stays.
#[test]
fn a_server_killed_at_any_moment_loses_nothing_that_it_has_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Program::start(dir.path());
    let asleep = server.create();
    server.good(&format!("POST /sandboxes/{asleep}/pause"), "{}");
    let source = server.create();
    server.good(
        &format!("POST /sandboxes/{source}/snapshots"),
        r#"{"name":"one"}"#,
    );
    server.good(&format!("DELETE /sandboxes/{source}"), "");
    let (blobs, manifests) = (stored(dir.path(), "blobs"), stored(dir.path(), "manifests"));
    for (what, body) in [
        ("pause", "{}"),
        ("snapshots", r#"{"name":"two"}"#),
        ("fork", r#"{"count":2}"#),
        ("connect", r#"{"timeout":60}"#),
        ("create", CREATE),
        // The last, because it replaces what the others are compared with.
        ("snapshots", r#"{"name":"one"}"#),
    ] {
        for moment in MOMENTS {
            let own = server.create();
            if what == "connect" {
                server.good(&format!("POST /sandboxes/{own}/pause"), "{}");
            }
            let (address, head) = match what {
                "create" => (server.address, "POST /v2/sandboxes".to_owned()),
                _ => (server.address, format!("POST /sandboxes/{own}/{what}")),
            };
            let pids = machines(dir.path());
            let asked = std::thread::spawn(move || ask(address, &head, body).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(moment));
            server.die();
            let answered = asked.join().unwrap().starts_with("HTTP/1.1 20");
            assert!(gone_within(&pids, Duration::from_secs(10)), "{what}");
            server = Program::start(dir.path());
            assert_eq!(machines(dir.path()), Vec::<i32>::new());
            let state = server.state(&own);
            match what {
                "pause" if answered => assert_eq!(state.as_deref(), Some("paused")),
                // It was paused; it is so still, or went with the server like all that run.
                "pause" | "connect" => {}
                _ => assert_eq!(state, None, "{what} after {moment} ms"),
            }
            if state.is_some() {
                server.good(
                    &format!("POST /sandboxes/{own}/connect"),
                    r#"{"timeout":60}"#,
                );
                server.good(&format!("DELETE /sandboxes/{own}"), "");
            }
            assert_eq!(server.state(&asleep).as_deref(), Some("paused"));
            let list = server.ask("GET /snapshots", "");
            let listed = |name: &str| list.contains(&format!("\"{name}:default\""));
            assert!(listed("one"), "{what} after {moment} ms: {list}");
            assert!(
                listed("two") || !(answered && body.contains("two")),
                "{list}"
            );
            snapshots_work(&server, &list);
            if listed("two") {
                server.good("DELETE /templates/two", "");
            }
            if !body.contains("one") {
                stores_only(dir.path(), &blobs);
            }
            assert_eq!(stored(dir.path(), "manifests"), manifests);
        }
    }
    server.good("DELETE /templates/one", "");
    server.good(&format!("DELETE /sandboxes/{asleep}"), "");
    stores_only(dir.path(), &[]);
}

/// Out of descriptors at every step of a creation: it fails in words and leaves nothing.
#[test]
fn a_server_without_descriptors_says_so_and_recovers() {
    use rustix::process::{Resource, Rlimit, prlimit};
    let dir = tempfile::tempdir().unwrap();
    let server = Program::start(dir.path());
    server.good(&format!("DELETE /sandboxes/{}", server.create()), "");
    assert!(gone_within(&machines(dir.path()), Duration::from_secs(10)));
    let pid = Pid::from_child(&server.child);
    let limit = |soft: usize| {
        let wanted = Rlimit {
            current: Some(soft as u64),
            maximum: Some(4096),
        };
        prlimit(Some(pid), Resource::Nofile, wanted).unwrap();
    };
    limit(4096);
    std::thread::sleep(Duration::from_millis(200));
    let before = server.files();
    let (mut refused, mut made) = (0, 0);
    for more in 2..20 {
        limit(before + more);
        let answer = server.ask("POST /v2/sandboxes", CREATE);
        limit(4096);
        if answer.starts_with("HTTP/1.1 201") {
            server.good(&format!("DELETE /sandboxes/{}", id(&answer)), "");
            made += 1;
        } else {
            assert!(answer.starts_with("HTTP/1.1 500"), "{more}: {answer}");
            assert!(answer.contains("oo many open files"), "{more}: {answer}");
            refused += 1;
        }
        let begin = Instant::now();
        while server.files() > before || !machines(dir.path()).is_empty() {
            let (now, left) = (server.files(), machines(dir.path()));
            let late = begin.elapsed() > Duration::from_secs(10);
            assert!(
                !late,
                "{more}: {before} descriptors before, {now} now, machines {left:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(refused > 0 && made > 0, "{refused} refused, {made} made");
    server.create();
}
