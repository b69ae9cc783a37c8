//! Whatever is written is read back the same, and whatever is read never breaks the reader.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use wire::{
    DataChannel, EntryInfo, ErrorCode, FileKind, Frame, FrameHeader, GoAwayCode, HEADER_LEN, Hello,
    MAX_FRAME, MAX_PAYLOAD, MAX_REQUEST, Message, ProcessEnd, ProcessExit, ProcessInfo,
    ProcessLimits, PtySize, ReadFile, Record, Records, Reply, ReplyError, Request, RequestPart,
    ResetCode, SetIdentity, StartProcess, Stdin, StreamEvent, StringList, Sysinfo, UserInfo,
    WriteFile,
};

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(1u8.., 0..40)
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(1u8.., 0..200).prop_map(|mut p| {
        p.insert(0, b'/');
        p
    })
}

fn strings() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(name(), 0..12)
}

fn borrowed(list: &[Vec<u8>]) -> Vec<&[u8]> {
    list.iter().map(Vec::as_slice).collect()
}

fn request_survives(request: &Request<'_>) {
    let mut bytes = vec![0; MAX_REQUEST];
    let n = request.encode(&mut bytes).unwrap();
    assert_eq!(&Request::decode(&bytes[..n]).unwrap(), request);
    assert!(
        Request::decode(&bytes[..n - 1]).is_err(),
        "a cut request decodes"
    );
    assert!(
        Request::decode(&bytes[..=n]).is_err(),
        "a longer request decodes"
    );
    let parts: Vec<_> = RequestPart::parts(&bytes[..n]).collect();
    let joined: Vec<u8> = parts.iter().flat_map(|p| p.part.iter().copied()).collect();
    assert_eq!(joined, bytes[..n]);
    assert!(parts.iter().rev().skip(1).all(|p| p.more) && !parts.last().unwrap().more);
}

fn message_survives(stream: u32, message: &Message<'_>) {
    let mut bytes = vec![0; MAX_FRAME];
    let n = message.encode(stream, &mut bytes).unwrap();
    let (head, payload) = bytes[..n].split_first_chunk::<HEADER_LEN>().unwrap();
    let header = FrameHeader::decode(head).unwrap();
    assert_eq!((header.len, header.stream), (payload.len(), stream));
    assert_eq!(
        &Message::decode(&Frame { header, payload }).unwrap(),
        message
    );
}

proptest! {
    #[test]
    fn start(
        mut argv in strings(), env in strings(), cwd in name(), user in name(), tag in name(),
        size: Option<(u16, u16)>, pipe: bool, limits: (u32, u32, u64),
    ) {
        argv.insert(0, b"program".to_vec());
        request_survives(&Request::Start(StartProcess {
            argv: StringList::Slices(&borrowed(&argv)),
            env: StringList::Slices(&borrowed(&env)),
            cwd: &cwd,
            user: &user,
            stdin: if pipe { Stdin::Pipe } else { Stdin::Null },
            pty: size.map(|(cols, rows)| PtySize { cols, rows }),
            tag: &tag,
            limits: ProcessLimits {
                open_files: limits.0,
                cpu_seconds: limits.1,
                file_size: limits.2,
            },
        }));
    }

    #[test]
    fn requests(
        path in path(), other in path(), user in name(), host in name(), env in strings(),
        n: u64, m: u64, pid: u32, signal in 1u8..=64, depth in 1u32..=64, mode in 0u32..=0o7777,
        yes: bool, no: bool, size: (u16, u16), entropy in vec(any::<u8>(), 0..=64), port in 1u16..,
    ) {
        let (path, to, user) = (path.as_slice(), other.as_slice(), user.as_slice());
        let size = PtySize { cols: size.0, rows: size.1 };
        let env = borrowed(&env);
        for request in [
            Request::Signal { pid, signal },
            Request::ListProcesses,
            Request::Attach { pid },
            Request::Resize { pid, size },
            Request::Stat { path },
            Request::ReadFile(ReadFile { path, offset: n, len: m }),
            Request::WriteFile(WriteFile { path, user, mode, truncate: yes, parents: no }),
            Request::ListDir { path, depth },
            Request::MakeDir { path, user },
            Request::Move { from: path, to, user },
            Request::Remove { path },
            Request::LookupUser { name: user },
            Request::SetIdentity(SetIdentity {
                wall_clock_ns: n,
                generation: m,
                hostname: &host,
                entropy: &entropy,
                env: StringList::Slices(&env),
            }),
            Request::Sysinfo,
            Request::Sync,
            Request::Freeze,
            Request::Thaw,
            Request::Shutdown,
            Request::ConnectPort { port },
        ] {
            request_survives(&request);
        }
    }

    #[test]
    fn messages(
        stream in 1u32.., n: u64, text in ".{0,60}", path in path(), who in name(),
        bytes in vec(any::<u8>(), 1..1000), code in 0..ErrorCode::ALL.len(), more: bool,
        numbers: (u32, u32, i32, u8, i64), groups in vec(any::<u8>(), 0..16),
    ) {
        let text = text.as_str();
        let entry = EntryInfo {
            path: &path,
            kind: FileKind::Symlink,
            target_kind: FileKind::Directory,
            size: n,
            mode: numbers.0,
            target_mode: numbers.1,
            uid: numbers.1,
            gid: numbers.0,
            owner: &who,
            group: &who,
            modified_ns: numbers.4,
            symlink_target: &path,
        };
        let user = UserInfo {
            uid: numbers.0,
            gid: numbers.1,
            name: &who,
            home: &path,
            shell: &path,
            group_bytes: &groups[..groups.len() / 4 * 4],
        };
        let info = Sysinfo {
            memory_total: n,
            cpus: numbers.0,
            wall_clock_ns: n,
            ..Sysinfo::default()
        };
        let code = ErrorCode::ALL[code];
        for message in [
            Message::Open(RequestPart { more, part: &bytes }),
            Message::Reply(Reply::Done(n)),
            Message::Reply(Reply::Error(ReplyError { code, errno: numbers.2, message: text })),
            Message::Reply(Reply::Exited(ProcessExit::Code(numbers.3).into())),
            Message::Reply(Reply::Exited(ProcessEnd {
                exit: ProcessExit::Signal(numbers.3),
                out_of_memory: true,
            })),
            Message::Reply(Reply::Entry(entry)),
            Message::Reply(Reply::User(user)),
            Message::Reply(Reply::Sysinfo(info)),
            Message::Data { channel: DataChannel::Stderr, bytes: &bytes },
            Message::Credit(numbers.0),
            Message::End,
            Message::Reset { code: ResetCode::FlowControl, message: text },
            Message::Event(StreamEvent::Started { pid: numbers.0 }),
            Message::Event(StreamEvent::Opened(entry)),
            Message::Event(StreamEvent::Connected),
            Message::Data { channel: DataChannel::Port, bytes: &bytes },
        ] {
            message_survives(stream, &message);
        }
        for message in [
            Message::Hello(Hello {
                version: 1,
                agent: text.get(..text.len().min(64)).unwrap_or(""),
                generation: n,
                flags: numbers.0,
                agent_start_ns: n,
                ready_ns: n,
            }),
            Message::Ping(n),
            Message::Pong(n),
            Message::GoAway { code: GoAwayCode::Protocol, message: text },
        ] {
            message_survives(0, &message);
        }
    }

    #[test]
    fn records(list in vec((any::<u32>(), any::<bool>(), name(), name()), 0..20)) {
        let all: Vec<_> = list
            .iter()
            .map(|(pid, pty, tag, program)| ProcessInfo {
                pid: *pid, pty: *pty, started_ns: 7, tag, program,
            })
            .collect();
        let mut bytes = vec![0; MAX_PAYLOAD];
        let mut used = 0;
        for process in &all {
            used += process.write(&mut bytes[used..]).unwrap();
        }
        let read = Records::<ProcessInfo<'_>>::new(&bytes[..used]).map(Result::unwrap);
        let read: Vec<_> = read.collect();
        prop_assert_eq!(read, all);
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..4000)) {
        every_decoder(&bytes);
    }

    #[test]
    fn nearly_right_bytes_are_survived(
        kind in 0u8..32, flags: u8, stream in 0u32..4, body in vec(any::<u8>(), 0..200), step: u8,
    ) {
        let mut bytes = vec![step];
        for _ in 0..3 {
            bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
            bytes.extend(stream.to_le_bytes());
            bytes.extend([kind, flags, 0, 0]);
            bytes.extend(&body);
        }
        every_decoder(&bytes[1..]);
        every_decoder(&bytes);
    }
}

#[test]
fn limits_are_refused_on_both_sides() {
    let long = vec![b'/'; wire::MAX_PATH + 1];
    let mut out = vec![0; MAX_REQUEST];
    Request::Stat { path: &long }.encode(&mut out).unwrap_err();
    let n = Request::Stat { path: &long[1..] }.encode(&mut out).unwrap();
    Request::decode(&out[..n]).unwrap();
    let mut longer = out[..n].to_vec();
    longer[1..5].copy_from_slice(&u32::try_from(long.len()).unwrap().to_le_bytes());
    longer.push(b'/');
    Request::decode(&longer).unwrap_err();
    Request::Stat { path: b"/a\0b" }
        .encode(&mut out)
        .unwrap_err();
    let n = Request::Stat { path: b"relative" }
        .encode(&mut out)
        .unwrap();
    Request::decode(&out[..n]).unwrap_err();
    let entropy = [0; 65];
    let identity = SetIdentity {
        wall_clock_ns: 0,
        generation: 0,
        hostname: b"",
        entropy: &entropy,
        env: StringList::EMPTY,
    };
    Request::SetIdentity(identity).encode(&mut out).unwrap_err();
    let n = Request::ConnectPort { port: 0 }.encode(&mut out).unwrap();
    Request::decode(&out[..n]).unwrap_err();
}

#[test]
fn explanations_are_cut_not_refused() {
    let long = "é".repeat(400);
    let mut out = vec![0; MAX_FRAME];
    let reset = Message::Reset {
        code: ResetCode::Internal,
        message: &long,
    };
    let n = reset.encode(3, &mut out).unwrap();
    assert!(n <= HEADER_LEN + 5 + wire::MAX_MESSAGE);
}

fn every_decoder(bytes: &[u8]) {
    wire::fuzz::fuzz_frames(bytes);
    wire::fuzz::fuzz_request(bytes);
    wire::fuzz::fuzz_records(bytes);
}
