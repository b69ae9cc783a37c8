//! A small host for the real agent: blocking, one thread, everything it receives kept by stream.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "a module of tests"
)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Duration;
use wire::{
    DataChannel, EntryInfo, ErrorCode, FileKind, FrameBuffer, Hello, MAX_FRAME, MAX_REQUEST,
    Message, PROTOCOL_VERSION, ProcessExit, ProcessLimits, ReadFile, Records, Reply, Request,
    RequestPart, StartProcess, Stdin, StreamEvent, StringList, WriteFile,
};

/// No answer of the agent takes longer, even on a busy machine.
pub const WAIT: Duration = Duration::from_secs(30);

/// An entry, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: String,
    pub kind: FileKind,
    pub target_kind: FileKind,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub owner: String,
    pub target: String,
}

impl Entry {
    fn of(e: &EntryInfo<'_>) -> Self {
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        Self {
            path: text(e.path),
            kind: e.kind,
            target_kind: e.target_kind,
            size: e.size,
            mode: e.mode,
            uid: e.uid,
            owner: text(e.owner),
            target: text(e.symlink_target),
        }
    }
}

/// What arrived on a stream, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    Started(u32),
    Opened(Entry),
    Connected,
    End,
    Data(DataChannel, Vec<u8>),
    Credit(u32),
    Done(u64),
    Exited(ProcessExit),
    Entry(Entry),
    Error(ErrorCode, i32, String),
    /// A user or figures, for people.
    Other(String),
    Reset,
}

/// The agent and a connection to it.
pub struct Host {
    pub agent: Child,
    pub link: UnixStream,
    buffer: Box<FrameBuffer<{ 4 * MAX_FRAME }>>,
    inbox: HashMap<u32, VecDeque<Got>>,
    next: u32,
    /// Streams whose data is not granted for.
    pub stalled: Vec<u32>,
    pub hello: Option<(u16, u32)>,
    pub farewell: Option<String>,
    pub pongs: u32,
    closed: bool,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.link.shutdown(std::net::Shutdown::Both);
        let _ = self.agent.wait();
    }
}

impl Host {
    /// Starts the agent and exchanges greetings.
    pub fn new() -> Self {
        let mut host = Self::silent();
        host.greet(PROTOCOL_VERSION);
        host
    }

    /// Starts the agent without a greeting of the host.
    pub fn silent() -> Self {
        let (link, theirs) = UnixStream::pair().unwrap();
        link.set_read_timeout(Some(WAIT)).unwrap();
        link.set_write_timeout(Some(WAIT)).unwrap();
        let agent = Command::new("/bin/sh")
            .args(["-c", "exec \"$0\" --fd 3 3<&0 </dev/null"])
            .arg(env!("CARGO_BIN_EXE_hatchery-agent"))
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        Self {
            agent,
            link,
            buffer: Box::default(),
            inbox: HashMap::new(),
            next: 1,
            stalled: Vec::new(),
            hello: None,
            farewell: None,
            pongs: 0,
            closed: false,
        }
    }

    pub fn greet(&mut self, version: u16) {
        self.send(
            0,
            &Message::Hello(Hello {
                version,
                agent: "test",
                generation: 0,
                flags: 0,
                agent_start_ns: 0,
                ready_ns: 0,
            }),
        );
    }

    pub fn send(&mut self, stream: u32, message: &Message<'_>) {
        let mut out = vec![0; MAX_FRAME];
        let n = message.encode(stream, &mut out).unwrap();
        self.link.write_all(&out[..n]).unwrap();
    }

    pub fn open(&mut self, request: &Request<'_>) -> u32 {
        let mut bytes = vec![0; MAX_REQUEST];
        let n = request.encode(&mut bytes).unwrap();
        let stream = self.next;
        self.next += 1;
        for part in RequestPart::parts(&bytes[..n]) {
            self.send(stream, &Message::Open(part));
        }
        stream
    }

    /// Starts a process as root in `/tmp`.
    pub fn start(&mut self, argv: &[&str], stdin: Stdin) -> u32 {
        let argv: Vec<&[u8]> = argv.iter().map(|a| a.as_bytes()).collect();
        self.open(&Request::Start(plain_start(&argv, stdin)))
    }

    pub fn data(&mut self, stream: u32, channel: DataChannel, bytes: &[u8]) {
        self.send(stream, &Message::Data { channel, bytes });
    }

    /// Reads once and sorts what came; false at the end.
    pub fn receive(&mut self) -> bool {
        if self.closed {
            return false;
        }
        let n = match self.link.read(self.buffer.space()) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(e) => panic!("nothing from the agent: {e}"),
        };
        if n == 0 {
            self.closed = true;
            return false;
        }
        self.buffer.commit(n);
        let mut grants = Vec::new();
        while let Some(frame) = self.buffer.next_frame().unwrap() {
            let stream = frame.header.stream;
            let got = match Message::decode(&frame).unwrap() {
                Message::Hello(h) => {
                    self.hello = Some((h.version, h.flags));
                    assert!(h.ready_ns >= h.agent_start_ns && h.agent_start_ns > 0);
                    continue;
                }
                Message::Pong(_) => {
                    self.pongs += 1;
                    continue;
                }
                Message::GoAway { message, .. } => {
                    self.farewell = Some(message.to_owned());
                    continue;
                }
                Message::Data { channel, bytes } => {
                    if !self.stalled.contains(&stream) {
                        grants.push((stream, u32::try_from(bytes.len()).unwrap()));
                    }
                    Got::Data(channel, bytes.to_vec())
                }
                Message::Credit(n) => Got::Credit(n),
                Message::Reset { .. } => Got::Reset,
                Message::End => Got::End,
                Message::Event(StreamEvent::Connected) => Got::Connected,
                Message::Event(StreamEvent::Started { pid }) => Got::Started(pid),
                Message::Event(StreamEvent::Opened(e)) => Got::Opened(Entry::of(&e)),
                Message::Reply(Reply::Done(n)) => Got::Done(n),
                Message::Reply(Reply::Exited(end)) => Got::Exited(end.exit),
                Message::Reply(Reply::Entry(e)) => Got::Entry(Entry::of(&e)),
                Message::Reply(Reply::Error(e)) => {
                    Got::Error(e.code, e.errno, e.message.to_owned())
                }
                Message::Reply(other) => Got::Other(format!("{other:?}")),
                other => panic!("the agent sent {other:?}"),
            };
            self.inbox.entry(stream).or_default().push_back(got);
        }
        for (stream, bytes) in grants {
            let mut out = [0; 64];
            let n = Message::Credit(bytes).encode(stream, &mut out).unwrap();
            // The agent may have gone meanwhile; the next read says so.
            let _ = self.link.write_all(&out[..n]);
        }
        true
    }

    /// The next thing on a stream.
    pub fn next(&mut self, stream: u32) -> Got {
        loop {
            if let Some(got) = self.inbox.get_mut(&stream).and_then(VecDeque::pop_front) {
                return got;
            }
            assert!(
                self.receive(),
                "the agent closed; farewell {:?}",
                self.farewell
            );
        }
    }

    /// What has come of credit on a stream, when nothing else has.
    pub fn credit(&mut self, stream: u32) -> usize {
        let inbox = self.inbox.entry(stream).or_default();
        let credit = inbox.drain(..).map(|got| match got {
            Got::Credit(bytes) => bytes as usize,
            other => panic!("{other:?} where only credit was expected"),
        });
        credit.sum()
    }

    /// Everything of a stream up to its end; `Credit` left out.
    pub fn all(&mut self, stream: u32) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            match self.next(stream) {
                Got::Data(channel, bytes) => {
                    outcome
                        .data
                        .entry(channel.to_u8())
                        .or_default()
                        .extend(bytes);
                }
                Got::Started(pid) => outcome.pid = pid,
                Got::Opened(entry) => outcome.opened = Some(entry),
                Got::Credit(n) => outcome.credit += n,
                end => {
                    outcome.end = Some(end);
                    return outcome;
                }
            }
        }
    }

    /// Runs a command line to its end.
    pub fn run(&mut self, script: &str) -> Outcome {
        let stream = self.start(&["/bin/sh", "-c", script], Stdin::Null);
        self.all(stream)
    }

    /// Asks, and takes the whole answer.
    pub fn ask(&mut self, request: &Request<'_>) -> Outcome {
        let stream = self.open(request);
        self.all(stream)
    }

    /// Writes a file within the credit the agent gives.
    pub fn upload(&mut self, path: &str, bytes: &[u8]) -> Got {
        let stream = self.open(&Request::WriteFile(WriteFile {
            path: path.as_bytes(),
            user: b"",
            mode: 0o666,
            truncate: true,
            parents: true,
        }));
        let mut window = wire::INPUT_WINDOW as usize;
        for piece in bytes.chunks(wire::MAX_PAYLOAD) {
            while window < piece.len() {
                match self.next(stream) {
                    Got::Credit(n) => window += n as usize,
                    end => return end,
                }
            }
            window -= piece.len();
            self.data(stream, DataChannel::File, piece);
        }
        self.send(stream, &Message::End);
        self.all(stream).end.unwrap()
    }

    pub fn download(&mut self, path: &str) -> Outcome {
        self.ask(&Request::ReadFile(ReadFile {
            path: path.as_bytes(),
            offset: 0,
            len: u64::MAX,
        }))
    }

    /// The entries of a directory, sorted by path.
    pub fn list(&mut self, path: &str, depth: u32) -> Vec<Entry> {
        let stream = self.open(&Request::ListDir {
            path: path.as_bytes(),
            depth,
        });
        let mut entries = Vec::new();
        loop {
            match self.next(stream) {
                Got::Data(DataChannel::Records, bytes) => entries
                    .extend(Records::<EntryInfo<'_>>::new(&bytes).map(|e| Entry::of(&e.unwrap()))),
                Got::Done(n) => {
                    assert_eq!(n, entries.len() as u64);
                    entries.sort_by(|a, b| a.path.cmp(&b.path));
                    return entries;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits for the agent to close the connection.
    pub fn until_closed(&mut self) {
        while self.receive() {}
    }
}

/// A process as root in `/tmp` without extras.
pub fn plain_start<'a>(argv: &'a [&'a [u8]], stdin: Stdin) -> StartProcess<'a> {
    StartProcess {
        argv: StringList::Slices(argv),
        env: StringList::EMPTY,
        cwd: b"/tmp",
        user: b"",
        stdin,
        pty: None,
        tag: b"",
        limits: ProcessLimits::default(),
    }
}

/// A stream from its first to its last frame.
#[derive(Debug, Default)]
pub struct Outcome {
    pub pid: u32,
    pub opened: Option<Entry>,
    pub data: HashMap<u8, Vec<u8>>,
    pub credit: u32,
    pub end: Option<Got>,
}

impl Outcome {
    pub fn bytes(&self, channel: DataChannel) -> &[u8] {
        self.data.get(&channel.to_u8()).map_or(&[], Vec::as_slice)
    }

    pub fn text(&self, channel: DataChannel) -> &str {
        std::str::from_utf8(self.bytes(channel)).unwrap()
    }

    pub fn stdout(&self) -> &str {
        self.text(DataChannel::Stdout)
    }

    pub fn exit(&self) -> ProcessExit {
        match self.end {
            Some(Got::Exited(exit)) => exit,
            ref other => panic!("not an exit: {other:?}"),
        }
    }

    pub fn error(&self) -> ErrorCode {
        match self.end {
            Some(Got::Error(code, ..)) => code,
            ref other => panic!("not an error: {other:?}"),
        }
    }
}
