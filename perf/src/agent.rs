//! A blocking client of the guest agent: the same for every engine, so that engines differ only
//! in what carries its bytes.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use wire::{
    DataChannel, Frame, FrameBuffer, Hello, MAX_FRAME, Message, PROTOCOL_VERSION, ProcessEnd,
    ProcessExit, ProcessLimits, ReadFile, RecvWindow, Reply, Request, RequestPart, StartProcess,
    Stdin, StringList,
};

/// Room for several frames, so that one read can bring many.
const BUFFER: usize = 256 * 1024;

/// What the agent said of its own start, nanoseconds of the guest's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AgentReady {
    /// Its first instruction.
    pub(crate) agent_start_ns: u64,
    /// When it greeted.
    pub(crate) ready_ns: u64,
}

/// The outcome of one process; the verification of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunOutcome {
    /// Bytes on standard output.
    pub(crate) bytes: u64,
    /// The exit status.
    pub(crate) status: u8,
}

/// How a request ended.
enum StreamEnd {
    Exited(u8),
    Done,
    /// The agent's word for it.
    Refused(String),
}

/// A connection to a guest agent.
pub(crate) struct AgentClient<S> {
    stream: S,
    frames: Box<FrameBuffer<BUFFER>>,
    next_stream: u32,
}

impl<S: Read + Write> AgentClient<S> {
    /// Waits for the agent's greeting and answers it.
    pub(crate) fn greet(stream: S) -> Result<(Self, AgentReady)> {
        let mut agent = Self {
            stream,
            frames: Box::new(FrameBuffer::new()),
            next_stream: 1,
        };
        let ready = agent.next(|_, message| match message {
            Message::Hello(h) => Ok(Some(AgentReady {
                agent_start_ns: h.agent_start_ns,
                ready_ns: h.ready_ns,
            })),
            other => bail!("The agent began with {:?}, not a greeting", other.kind()),
        })?;
        agent.send(
            0,
            &Message::Hello(Hello {
                version: PROTOCOL_VERSION,
                agent: "hatchery-bench",
                generation: 0,
                flags: 0,
                agent_start_ns: 0,
                ready_ns: 0,
            }),
        )?;
        Ok((agent, ready))
    }

    /// Goes on where another connection stood when its machine was saved: greeted, nothing under
    /// way.
    pub(crate) fn resume(stream: S, next_stream: u32) -> Self {
        Self {
            stream,
            frames: Box::new(FrameBuffer::new()),
            next_stream,
        }
    }

    /// The stream that the next request will have.
    pub(crate) fn next_stream(&self) -> u32 {
        self.next_stream
    }

    /// Makes the guest another one; returns when it has said so.
    pub(crate) fn set_identity(&mut self, generation: u64, entropy: &[u8; 32]) -> Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let hostname = format!("clone{generation}");
        let identity = Request::SetIdentity(wire::SetIdentity {
            wall_clock_ns: u64::try_from(now.as_nanos())?,
            generation,
            hostname: hostname.as_bytes(),
            entropy,
            env: StringList::EMPTY,
        });
        let stream = self.open(&identity)?;
        self.next(|from, message| match message {
            _ if from != stream => Ok(None),
            Message::Reply(Reply::Done(_)) => Ok(Some(())),
            other => bail!("The agent answered a new identity with {other:?}"),
        })
    }

    /// Runs a program as root to its end, consuming its output as it comes.
    pub(crate) fn run(&mut self, argv: &[&[u8]]) -> Result<RunOutcome> {
        let start = Request::Start(StartProcess {
            argv: StringList::Slices(argv),
            env: StringList::EMPTY,
            cwd: b"/",
            user: b"",
            stdin: Stdin::Null,
            pty: None,
            tag: b"",
            limits: ProcessLimits::default(),
        });
        let (bytes, end) = self.stream_of(&start)?;
        match end {
            StreamEnd::Exited(status) => Ok(RunOutcome { bytes, status }),
            StreamEnd::Refused(why) => bail!("The agent refused to start a program: {why}"),
            StreamEnd::Done => bail!("The agent ended a program without its exit status"),
        }
    }

    /// Has the files that programs begin with come to lie together, as a service does
    /// ([`wire::PRIMED_FILES`]).
    pub(crate) fn read_first(&mut self) -> Result<()> {
        for (path, len) in wire::PRIMED_FILES {
            let file = Request::ReadFile(ReadFile {
                path: path.as_bytes(),
                offset: 0,
                len,
            });
            self.stream_of(&file)
                .with_context(|| format!("Reading {path}"))?;
        }
        Ok(())
    }

    /// Makes a request and consumes what comes of it, to its end: bytes, without those of standard
    /// error.
    fn stream_of(&mut self, request: &Request<'_>) -> Result<(u64, StreamEnd)> {
        let stream = self.open(request)?;
        let mut window = RecvWindow::new(wire::OUTPUT_WINDOW);
        let mut bytes = 0u64;
        loop {
            let mut grant = None;
            let end = self.next(|from, message| {
                if from != stream {
                    return Ok(Some(None));
                }
                match message {
                    Message::Event(_) => {}
                    Message::Data {
                        channel,
                        bytes: data,
                    } => {
                        let len = u32::try_from(data.len()).context("A frame over 4 GiB")?;
                        window
                            .receive(len)
                            .ok()
                            .context("The agent overran its window")?;
                        window.consume(len);
                        grant = window.take_grant();
                        if channel != DataChannel::Stderr {
                            bytes += u64::from(len);
                        }
                    }
                    Message::Reply(Reply::Exited(ProcessEnd {
                        exit: ProcessExit::Code(status),
                        ..
                    })) => {
                        return Ok(Some(Some(StreamEnd::Exited(status))));
                    }
                    Message::Reply(Reply::Done(_)) => return Ok(Some(Some(StreamEnd::Done))),
                    Message::Reply(Reply::Error(why)) => {
                        return Ok(Some(Some(StreamEnd::Refused(format!("{why:?}")))));
                    }
                    other => bail!("The agent answered a request with {other:?}"),
                }
                Ok(Some(None))
            })?;
            if let Some(end) = end {
                return Ok((bytes, end));
            }
            if let Some(grant) = grant {
                self.send(stream, &Message::Credit(grant))?;
            }
        }
    }

    /// Makes a request; its stream.
    fn open(&mut self, request: &Request<'_>) -> Result<u32> {
        let stream = self.next_stream;
        self.next_stream += 1;
        let mut bytes = vec![0; 4096];
        let len = request.encode(&mut bytes).ok();
        let len = len.context("Encoding a request")?;
        for part in RequestPart::parts(&bytes[..len]) {
            self.send(stream, &Message::Open(part))?;
        }
        Ok(stream)
    }

    fn send(&mut self, stream: u32, message: &Message<'_>) -> Result<()> {
        let mut frame = [0; MAX_FRAME];
        let len = message
            .encode(stream, &mut frame)
            .ok()
            .context("Encoding a frame")?;
        self.stream
            .write_all(&frame[..len])
            .context("Writing to the agent")
    }

    /// Hands frames to `take` until it gives a value.
    fn next<T>(
        &mut self,
        mut take: impl FnMut(u32, Message<'_>) -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            let decoded = self
                .frames
                .next_frame()
                .ok()
                .context("Not a frame from the agent")?;
            if let Some(Frame { header, .. }) = &decoded {
                let stream = header.stream;
                let frame = decoded.as_ref().context("No frame")?;
                let message = Message::decode(frame).ok().context("Not a message")?;
                if let Some(value) = take(stream, message)? {
                    return Ok(value);
                }
                continue;
            }
            let n = self
                .stream
                .read(self.frames.space())
                .context("Reading from the agent")?;
            if n == 0 {
                bail!("The agent's connection ended");
            }
            self.frames.commit(n);
        }
    }
}
