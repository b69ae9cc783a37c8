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
            std::fs::File::create(dir.join(name))
                .unwrap()
                .set_len(size)
                .unwrap();
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
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let rest = format!("Host: x\r\nX-API-KEY: {KEY}\r\nConnection: close\r\n");
        write!(
            stream,
            "{head} HTTP/1.1\r\n{rest}Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn create(&self) {
        let answer = self.ask("POST /v2/sandboxes", r#"{"templateID":"base"}"#);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
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
