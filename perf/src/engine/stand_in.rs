//! For tests: a process that does nothing, and this program answering in its place: the engine's
//! HTTP API, and a guest's agent that greets when the guest would run.

use crate::engine::GuestSpec;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use wire::{Hello, MAX_FRAME, Message, PROTOCOL_VERSION};

/// A request as it came: method, path, body.
pub(super) type Asked = (String, String, Value);

/// An engine that is not there.
pub(super) struct StandIn {
    /// Everything of it is in here.
    pub(super) folder: tempfile::TempDir,
    /// What to start in its place.
    pub(super) program: PathBuf,
    asked: Receiver<Asked>,
}

impl StandIn {
    /// Answers every request with 204, and has the guest run after one that `runs` says.
    pub(super) fn new(runs: fn(&Asked) -> bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        // The socket is bound here when the process has been started, as the process would do it.
        let script = "#!/bin/sh\ntouch \"$2.started\"\nexec sleep 60\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(folder.path().join("base.ext4"), [1; 4096]).unwrap();
        let (sender, asked) = channel();
        let place = folder.path().join("place");
        std::fs::create_dir(&place).unwrap();
        std::thread::spawn(move || serve(&place, runs, &sender));
        Self {
            folder,
            program,
            asked,
        }
    }

    /// Where the engine is told to have its files.
    pub(super) fn place(&self) -> PathBuf {
        self.folder.path().join("place")
    }

    /// A guest of 128 MiB.
    pub(super) fn guest(&self) -> GuestSpec {
        GuestSpec {
            dist: self.folder.path().into(),
            vcpus: 1,
            memory_mib: 128,
            network: false,
        }
    }

    /// What was asked since the last time.
    pub(super) fn asked(&self) -> Vec<Asked> {
        let wait = Duration::from_millis(200);
        std::iter::from_fn(|| self.asked.recv_timeout(wait).ok()).collect()
    }
}

/// Serves one process after the other, each with any number of connections.
fn serve(place: &Path, runs: fn(&Asked) -> bool, sender: &Sender<Asked>) {
    let mark = place.join("api.started");
    loop {
        while std::fs::remove_file(&mark).is_err() {
            if !place.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let listener = UnixListener::bind(place.join("api")).unwrap();
        listener.set_nonblocking(true).unwrap();
        while !mark.exists() && place.exists() {
            match listener.accept() {
                Ok((stream, _)) => {
                    let (place, sender) = (place.to_owned(), sender.clone());
                    std::thread::spawn(move || answer(&place, runs, &sender, stream));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

fn answer(place: &Path, runs: fn(&Asked) -> bool, sender: &Sender<Asked>, stream: UnixStream) {
    stream.set_nonblocking(false).unwrap();
    let mut stream = BufReader::new(stream);
    while let Some(asked) = request(&mut stream) {
        let run = runs(&asked);
        if sender.send(asked).is_err() {
            return;
        }
        let none = b"HTTP/1.1 204 \r\nServer: stand-in\r\n\r\n";
        stream.get_mut().write_all(none).unwrap();
        if run {
            let path = format!("vsock_{}", wire::AGENT_PORT);
            let link = UnixStream::connect(place.join(path)).unwrap();
            std::thread::spawn(move || greet(link));
        }
    }
}

fn request(stream: &mut BufReader<UnixStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut field = String::new();
        stream.read_line(&mut field).ok()?;
        match field.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some((method, path, body))
}

/// Says what the agent says first, and stays until the other side goes.
fn greet(mut link: UnixStream) {
    let hello = Message::Hello(Hello {
        version: PROTOCOL_VERSION,
        agent: "stand-in",
        generation: 0,
        flags: 0,
        agent_start_ns: 1,
        ready_ns: 2,
    });
    let mut frame = [0; MAX_FRAME];
    let length = hello.encode(0, &mut frame).unwrap();
    link.write_all(&frame[..length]).unwrap();
    let mut rest = Vec::new();
    let _ = link.read_to_end(&mut rest);
}
