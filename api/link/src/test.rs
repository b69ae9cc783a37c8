//! The link against an agent that misbehaves. The real agent is met in `tests/envd.rs`.

mod ports;

use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use wire::{
    DataChannel, ErrorCode, FrameBuffer, FrameKind, INPUT_WINDOW, MAX_PAYLOAD, Message,
    OUTPUT_WINDOW, PROTOCOL_VERSION, ProcessExit, Reply, ReplyError, RequestPart, ResetCode,
    StreamEvent,
};

/// The agent's end of a link, frame by frame.
struct Agent {
    socket: UnixStream,
    buffer: Box<FrameBuffer<{ 2 * MAX_FRAME }>>,
}

/// What the host said, owned.
#[derive(Debug, PartialEq)]
enum Said {
    Hello,
    Request { stream: u32, bytes: Vec<u8> },
    Data { stream: u32, bytes: Vec<u8> },
    Credit { stream: u32, bytes: u32 },
    End { stream: u32 },
    Reset { stream: u32, code: ResetCode },
    Other(FrameKind),
}

impl Agent {
    async fn tell(&mut self, stream: u32, message: &Message<'_>) {
        let mut out = vec![0; MAX_FRAME];
        let length = message.encode(stream, &mut out).unwrap();
        self.socket.write_all(&out[..length]).await.unwrap();
    }

    async fn heard(&mut self) -> Option<Said> {
        loop {
            if let Some(frame) = self.buffer.next_frame().unwrap() {
                let stream = frame.header.stream;
                return Some(match Message::decode(&frame).unwrap() {
                    Message::Hello(_) => Said::Hello,
                    Message::Open(RequestPart { part, .. }) => Said::Request {
                        stream,
                        bytes: part.to_vec(),
                    },
                    Message::Data { bytes, .. } => Said::Data {
                        stream,
                        bytes: bytes.to_vec(),
                    },
                    Message::Credit(bytes) => Said::Credit { stream, bytes },
                    Message::End => Said::End { stream },
                    Message::Reset { code, .. } => Said::Reset { stream, code },
                    other => Said::Other(other.kind()),
                });
            }
            let got = self.socket.read(self.buffer.space()).await.unwrap_or(0);
            if got == 0 {
                return None;
            }
            self.buffer.commit(got);
        }
    }

    /// The next request on any stream, when the end of an earlier one may be told first.
    async fn next_open(&mut self) -> (u32, Vec<u8>) {
        loop {
            match self.heard().await {
                Some(Said::Request { stream, bytes }) => return (stream, bytes),
                Some(Said::Reset { .. }) => {}
                other => panic!("{other:?} where a request was expected"),
            }
        }
    }

    /// The stream of the next request.
    async fn request(&mut self) -> u32 {
        match self.heard().await {
            Some(Said::Request { stream, .. }) => stream,
            other => panic!("{other:?} where a request was expected"),
        }
    }
}

fn hello(version: u16) -> Message<'static> {
    hello_with(version, wire::boot_flags::FREEZER)
}

fn hello_with(version: u16, flags: u32) -> Message<'static> {
    Message::Hello(wire::Hello {
        version,
        agent: "fake",
        generation: 0,
        flags,
        agent_start_ns: 1,
        ready_ns: 2,
    })
}

async fn pair() -> (Link, Agent) {
    pair_with(wire::boot_flags::FREEZER | wire::boot_flags::PORTS).await
}

async fn pair_with(flags: u32) -> (Link, Agent) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut agent = Agent {
        socket: theirs,
        buffer: Box::default(),
    };
    agent.tell(0, &hello_with(PROTOCOL_VERSION, flags)).await;
    let (link, said) = Link::connect(ours).await.unwrap();
    assert_eq!((said.agent.as_str(), said.ready_ns), ("fake", 2));
    assert_eq!(agent.heard().await, Some(Said::Hello));
    (link, agent)
}

fn stdout(bytes: &[u8]) -> Message<'_> {
    Message::Data {
        channel: DataChannel::Stdout,
        bytes,
    }
}

async fn started(link: &Link, agent: &mut Agent, pid: u32) -> (ProcessStream, u32) {
    let command = ProcessCommand {
        argv: vec!["x".into()],
        stdin: true,
        ..ProcessCommand::default()
    };
    let start = {
        let link = link.clone();
        tokio::spawn(async move { link.start(&command).await })
    };
    let id = agent.request().await;
    agent
        .tell(id, &Message::Event(StreamEvent::Started { pid }))
        .await;
    (start.await.unwrap().unwrap(), id)
}

#[tokio::test]
async fn a_start_waits_while_processes_are_stopped_and_a_freeze_for_starts_under_way() {
    let (link, mut agent) = pair().await;
    let done = Message::Reply(Reply::Done(0));
    let begin = |link: &Link| {
        let link = link.clone();
        tokio::spawn(async move {
            let argv = vec!["x".into()];
            let command = ProcessCommand {
                argv,
                ..ProcessCommand::default()
            };
            link.start(&command).await.map(|_| ())
        })
    };
    let silence = Duration::from_millis(50);

    let first = begin(&link);
    let start = agent.request().await;
    let freeze = {
        let link = link.clone();
        tokio::spawn(async move { link.freeze().await })
    };
    assert!(timeout(silence, agent.heard()).await.is_err(), "too early");
    let event = Message::Event(StreamEvent::Started { pid: 7 });
    agent.tell(start, &event).await;
    first.await.unwrap().unwrap();
    let asked = agent.next_open().await;
    assert_eq!(asked.1, [18], "a freeze");
    agent.tell(asked.0, &done).await;
    freeze.await.unwrap().unwrap();

    let second = begin(&link);
    assert!(timeout(silence, agent.heard()).await.is_err(), "too early");
    let thaw = {
        let link = link.clone();
        tokio::spawn(async move { link.thaw().await })
    };
    let asked = agent.next_open().await;
    assert_eq!(asked.1, [19], "a thaw");
    agent.tell(asked.0, &done).await;
    thaw.await.unwrap().unwrap();
    let start = agent.next_open().await.0;
    agent.tell(start, &event).await;
    second.await.unwrap().unwrap();
    // Nothing is stopped, so nothing is asked.
    link.thaw().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_cannot_stop_processes_is_not_asked_to() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut agent = Agent {
        socket: theirs,
        buffer: Box::default(),
    };
    agent.tell(0, &hello_with(PROTOCOL_VERSION, 0)).await;
    let (link, _) = Link::connect(ours).await.unwrap();
    link.freeze().await.unwrap();
    link.thaw().await.unwrap();
    assert_eq!(agent.heard().await, Some(Said::Hello));
    drop(link);
    assert_eq!(agent.heard().await, None);
}

#[tokio::test]
async fn another_version_is_refused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut agent = Agent {
        socket: theirs,
        buffer: Box::default(),
    };
    agent.tell(0, &hello(PROTOCOL_VERSION + 1)).await;
    let error = Link::connect(ours).await.unwrap_err();
    assert!(matches!(error, LinkError::Version { .. }), "{error}");
    assert_eq!(agent.heard().await, Some(Said::Other(FrameKind::GoAway)));
}

#[tokio::test]
async fn garbage_instead_of_a_hello_is_refused() {
    for garbage in [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[0xff; 64], b""] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(garbage).await.unwrap();
        drop(theirs);
        Link::connect(ours).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_lost_link_ends_every_call() {
    let (link, mut agent) = pair().await;
    let (mut process, _) = started(&link, &mut agent, 7).await;
    let stat = {
        let link = link.clone();
        tokio::spawn(async move { link.stat(b"/").await })
    };
    agent.request().await;
    drop(agent);
    assert!(stat.await.unwrap().unwrap_err().is_closed());
    assert!(process.next().await.unwrap_err().is_closed());
    assert_eq!(process.input().write("x".into()).await, Err(StreamEnded));
    timeout(Duration::from_secs(5), link.closed())
        .await
        .unwrap();
    assert!(link.sysinfo().await.unwrap_err().is_closed());
}

#[tokio::test]
async fn garbage_on_a_link_ends_it() {
    let cases: [&[u8]; 4] = [
        &[0xff; 12],
        // A reply on a stream that was never opened.
        &[
            9, 0, 0, 0, 9, 0, 0, 0, 17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        // A request, which only a host sends; and a Hello too many.
        &[1, 0, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0, 14],
        &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    ];
    for garbage in cases {
        let (link, mut agent) = pair().await;
        let (mut process, _) = started(&link, &mut agent, 7).await;
        agent.socket.write_all(garbage).await.unwrap();
        timeout(Duration::from_secs(5), link.closed())
            .await
            .unwrap();
        assert!(process.next().await.unwrap_err().is_closed());
    }
}

#[tokio::test]
async fn what_was_written_before_the_end_is_read_before_the_end() {
    let (link, mut agent) = pair().await;
    let (mut process, id) = started(&link, &mut agent, 7).await;
    agent.tell(id, &stdout(b"one ")).await;
    agent.tell(id, &stdout(b"two")).await;
    agent
        .tell(
            id,
            &Message::Reply(Reply::Exited(ProcessExit::Code(3).into())),
        )
        .await;
    // The end is known to this side before the first byte is read.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let first = process.next().await.unwrap();
    assert_eq!(
        first,
        ProcessEvent::Output(OutputChannel::Stdout, "one two".into())
    );
    assert_eq!(
        process.next().await.unwrap(),
        ProcessEvent::Exited(ProcessExit::Code(3).into())
    );
    drop(process);
    link.close();
    assert_eq!(
        agent.heard().await,
        None,
        "no reset for a stream that has ended"
    );
}

#[tokio::test]
async fn a_slow_reader_stalls_nobody_and_is_granted_what_it_reads() {
    let (link, mut agent) = pair().await;
    let (mut slow, slow_id) = started(&link, &mut agent, 1).await;
    let (mut quick, quick_id) = started(&link, &mut agent, 2).await;
    let piece = vec![b'x'; MAX_PAYLOAD];
    for _ in 0..OUTPUT_WINDOW / u32::try_from(MAX_PAYLOAD).unwrap() {
        agent.tell(slow_id, &stdout(&piece)).await;
    }
    agent.tell(quick_id, &stdout(b"through")).await;
    let event = timeout(Duration::from_secs(5), quick.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        event,
        ProcessEvent::Output(OutputChannel::Stdout, "through".into())
    );
    let mut granted = 0;
    while granted < OUTPUT_WINDOW {
        slow.next().await.unwrap();
        let heard = timeout(Duration::from_millis(20), agent.heard()).await;
        if let Ok(Some(Said::Credit { stream, bytes })) = heard {
            assert_eq!(stream, slow_id);
            granted += bytes;
        }
    }
    assert_eq!(granted, OUTPUT_WINDOW);
}

#[tokio::test]
async fn a_listing_of_few_long_names_is_bounded_too() {
    let (link, mut agent) = pair().await;
    let listing = {
        let link = link.clone();
        tokio::spawn(async move { link.list_dir(b"/", 1).await })
    };
    let id = agent.request().await;
    let path = [b"/", vec![b'x'; 4000].as_slice()].concat();
    let entry = EntryInfo {
        path: &path,
        ..EntryInfo::default()
    };
    let mut record = vec![0; MAX_PAYLOAD];
    let length = wire::Record::write(&entry, &mut record).unwrap();
    let records = record[..length].repeat(7);
    let message = Message::Data {
        channel: DataChannel::Records,
        bytes: &records,
    };
    let (mut sent, mut window) = (0, OUTPUT_WINDOW as usize);
    loop {
        while window >= records.len() {
            agent.tell(id, &message).await;
            window -= records.len();
            sent += records.len();
        }
        match agent.heard().await {
            Some(Said::Credit { stream, bytes }) if stream == id => window += bytes as usize,
            Some(Said::Reset { stream, .. }) if stream == id => break,
            other => panic!("{other:?} after {sent} bytes"),
        }
        assert!(sent < 2 * MAX_LISTING, "{sent} bytes were taken");
    }
    let error = listing.await.unwrap().unwrap_err();
    assert!(matches!(error, LinkError::TooLarge(MAX_LISTING)), "{error}");
}

#[tokio::test]
async fn more_than_the_window_costs_the_stream_only() {
    let (link, mut agent) = pair().await;
    let (mut greedy, id) = started(&link, &mut agent, 1).await;
    let (mut modest, modest_id) = started(&link, &mut agent, 2).await;
    let piece = vec![b'x'; MAX_PAYLOAD];
    for _ in 0..=OUTPUT_WINDOW / u32::try_from(MAX_PAYLOAD).unwrap() {
        agent.tell(id, &stdout(&piece)).await;
    }
    let code = ResetCode::FlowControl;
    assert_eq!(agent.heard().await, Some(Said::Reset { stream: id, code }));
    let error = loop {
        match greedy.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LinkError::Reset { .. }), "{error}");
    agent.tell(modest_id, &stdout(b"fine")).await;
    modest.next().await.unwrap();
}

#[tokio::test]
async fn writers_wait_for_credit() {
    let (link, mut agent) = pair().await;
    let (process, id) = started(&link, &mut agent, 1).await;
    let window = usize::try_from(INPUT_WINDOW).unwrap();
    let input = process.input();
    let write = tokio::spawn(async move { input.write(vec![7; window + 10].into()).await });
    let mut got = 0;
    while got < window {
        match agent.heard().await {
            Some(Said::Data { bytes, .. }) => got += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, window);
    timeout(Duration::from_millis(50), agent.heard())
        .await
        .unwrap_err();
    assert!(!write.is_finished());
    agent.tell(id, &Message::Credit(10)).await;
    assert_eq!(
        agent.heard().await,
        Some(Said::Data {
            stream: id,
            bytes: vec![7; 10]
        })
    );
    write.await.unwrap().unwrap();
    process.input().close();
    assert_eq!(agent.heard().await, Some(Said::End { stream: id }));
    drop(process);
    let code = ResetCode::Cancelled;
    assert_eq!(agent.heard().await, Some(Said::Reset { stream: id, code }));
}

#[tokio::test]
async fn refusals_keep_their_code_and_streams_are_limited() {
    let (link, mut agent) = pair().await;
    let stat = {
        let link = link.clone();
        tokio::spawn(async move { link.stat(b"/none").await })
    };
    let id = agent.request().await;
    let error = ReplyError {
        code: ErrorCode::NotFound,
        errno: 2,
        message: "gone",
    };
    agent.tell(id, &Message::Reply(Reply::Error(error))).await;
    let refused = stat.await.unwrap().unwrap_err();
    assert_eq!(
        refused.refusal().map(|refusal| refusal.code),
        Some(ErrorCode::NotFound)
    );
    let mut open = Vec::new();
    for pid in 0..224 {
        open.push(started(&link, &mut agent, pid).await);
    }
    let command = ProcessCommand::default();
    let full = link.start(&command).await.unwrap_err();
    assert!(matches!(full, LinkError::Busy), "{full}");

    // What processes leave to others is used up too: who comes then waits for the first to end.
    let stat = |link: &Link| {
        let link = link.clone();
        tokio::spawn(async move { link.stat(b"/").await })
    };
    let mut others = Vec::new();
    for _ in 224..wire::MAX_STREAMS {
        others.push((stat(&link), agent.request().await));
    }
    let waiting = stat(&link);
    let silence = timeout(Duration::from_millis(100), agent.heard()).await;
    assert!(silence.is_err(), "one more stream than there may be");
    agent
        .tell(others[0].1, &Message::Reply(Reply::Error(error)))
        .await;
    let id = agent.request().await;
    agent.tell(id, &Message::Reply(Reply::Error(error))).await;
    assert!(waiting.await.unwrap().unwrap_err().refusal().is_some());

    open.pop();
    assert!(matches!(agent.heard().await, Some(Said::Reset { .. })));
    stat(&link);
    agent.request().await;
}

#[tokio::test]
async fn large_requests_travel_in_parts_that_follow_each_other() {
    let (link, mut agent) = pair().await;
    let command = ProcessCommand {
        argv: vec!["x".into(), "y".repeat(100_000)],
        ..ProcessCommand::default()
    };
    tokio::spawn(async move { link.start(&command).await });
    let mut joined = Vec::new();
    while joined.len() < 100_000 {
        match agent.heard().await {
            Some(Said::Request { stream: 1, bytes }) => joined.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    let Request::Start(start) = Request::decode(&joined).unwrap() else {
        panic!("no start")
    };
    assert_eq!(
        start.argv.iter().map(<[u8]>::len).collect::<Vec<_>>(),
        [1, 100_000]
    );
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_here() {
    let (link, _agent) = pair().await;
    for path in [&b"/a\0b"[..], &[b'/'; 5000]] {
        assert!(matches!(
            link.stat(path).await,
            Err(LinkError::Unsendable(_))
        ));
    }
}

#[tokio::test]
async fn the_link_ends_with_its_last_handle() {
    let (link, mut agent) = pair().await;
    let other = link.clone();
    drop(link);
    let stat = tokio::spawn(async move { other.stat(b"/").await });
    let id = agent.request().await;
    agent.tell(id, &Message::Reply(Reply::Done(0))).await;
    let error = stat.await.unwrap().unwrap_err();
    assert!(matches!(error, LinkError::Unexpected { .. }), "{error}");
    assert_eq!(agent.heard().await, None);
}

#[tokio::test]
async fn what_nobody_asked_for_ends_a_call() {
    let piece = [0; 100];
    let records = Message::Data {
        channel: DataChannel::Records,
        bytes: &piece,
    };
    let (link, mut agent) = pair().await;
    let stat = {
        let link = link.clone();
        tokio::spawn(async move { link.stat(b"/").await })
    };
    let id = agent.request().await;
    agent.tell(id, &records).await;
    let error = stat.await.unwrap().unwrap_err();
    assert!(matches!(error, LinkError::Unexpected { .. }), "{error}");
    let cancelled = |stream| Said::Reset {
        stream,
        code: ResetCode::Cancelled,
    };
    assert_eq!(agent.heard().await, Some(cancelled(id)));

    let (mut process, id) = started(&link, &mut agent, 1).await;
    agent.tell(id, &records).await;
    let error = process.next().await.unwrap_err();
    assert!(matches!(error, LinkError::Unexpected { .. }), "{error}");
    drop(process);
    assert_eq!(agent.heard().await, Some(cancelled(id)));
}

#[tokio::test]
async fn credit_for_bytes_that_were_not_sent_costs_the_stream() {
    for bytes in [0, 1] {
        let (link, mut agent) = pair().await;
        let (mut process, id) = started(&link, &mut agent, 1).await;
        agent.tell(id, &Message::Credit(bytes)).await;
        let code = ResetCode::FlowControl;
        assert_eq!(agent.heard().await, Some(Said::Reset { stream: id, code }));
        let error = process.next().await.unwrap_err();
        assert!(matches!(error, LinkError::Reset { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_flood_on_a_stream_that_was_given_up_ends_the_link() {
    let (link, mut agent) = pair().await;
    let (process, id) = started(&link, &mut agent, 1).await;
    drop(process);
    assert!(matches!(agent.heard().await, Some(Said::Reset { .. })));
    // What its window allows may have been under way.
    let piece = vec![b'x'; MAX_PAYLOAD];
    for _ in 0..OUTPUT_WINDOW / u32::try_from(MAX_PAYLOAD).unwrap() {
        agent.tell(id, &stdout(&piece)).await;
    }
    let (_other, _) = started(&link, &mut agent, 2).await;
    agent.tell(id, &stdout(b"x")).await;
    timeout(Duration::from_secs(5), link.closed())
        .await
        .unwrap();
    let said = link.stat(b"/").await.unwrap_err();
    assert!(
        said.is_closed() && said.to_string().contains("over"),
        "{said}"
    );
}

#[tokio::test]
async fn a_flood_of_pings_ends_the_link_and_one_is_answered() {
    let (link, mut agent) = pair().await;
    agent.tell(0, &Message::Ping(7)).await;
    assert_eq!(agent.heard().await, Some(Said::Other(FrameKind::Pong)));
    for number in 0..32 {
        agent.tell(0, &Message::Ping(number)).await;
    }
    timeout(Duration::from_secs(5), link.closed())
        .await
        .unwrap();
    let (link, mut agent) = pair().await;
    agent.tell(0, &Message::Pong(7)).await;
    timeout(Duration::from_secs(5), link.closed())
        .await
        .unwrap();
}
