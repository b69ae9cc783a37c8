//! Peers that break the protocol, and the small requests.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use proptest::prelude::*;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use support::{Got, Host};
use wire::{
    DataChannel, ErrorCode, FrameHeader, FrameKind, MAX_PAYLOAD, Message, Request, RequestPart,
    SetIdentity, Stdin, StringList,
};

#[test]
fn the_agent_greets_first_and_answers_pings() {
    let mut host = Host::new();
    host.send(0, &Message::Ping(7));
    while host.pongs == 0 {
        assert!(host.receive());
    }
    assert_eq!(
        host.hello,
        Some((wire::PROTOCOL_VERSION, wire::boot_flags::PORTS))
    );
}

#[test]
fn another_version_is_sent_away() {
    let mut host = Host::silent();
    host.greet(99);
    host.until_closed();
    assert!(
        host.farewell
            .as_ref()
            .is_some_and(|f| f.contains("version 99")),
        "{:?}",
        host.farewell
    );
}

/// A part of the farewell, and what to do to hear it.
type Breach = (&'static str, fn(&mut Host));

const BREACHES: [Breach; 8] = [
    ("not a frame", |h| {
        h.link.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    }),
    ("before Hello", |h| h.send(0, &Message::Ping(1))),
    ("never opened", |h| greeted(h, 5, &Message::End)),
    ("never opened", |h| {
        let data = Message::Data {
            channel: DataChannel::Stdin,
            bytes: b"x",
        };
        greeted(h, 5, &data);
    }),
    ("host sent", |h| {
        greeted(h, 1, &Message::Reply(wire::Reply::Done(1)));
    }),
    ("request cut", |h| {
        greeted(h, 1, &part(true, b"\x01"));
        h.send(0, &Message::Ping(1));
    }),
    ("over 262144", |h| {
        h.greet(wire::PROTOCOL_VERSION);
        for _ in 0..9 {
            h.send(1, &part(true, &[0; MAX_PAYLOAD]));
        }
    }),
    ("stream 1 after 1", |h| {
        greeted(h, 1, &part(false, b"\x0e"));
        h.send(1, &part(false, b"\x0e"));
    }),
];

fn part(more: bool, part: &[u8]) -> Message<'_> {
    Message::Open(RequestPart { more, part })
}

#[test]
fn what_breaks_the_protocol_is_told_and_closed() {
    for (expected, breach) in BREACHES {
        let mut host = Host::silent();
        breach(&mut host);
        host.until_closed();
        let farewell = host.farewell.clone().unwrap_or_default();
        assert!(farewell.contains(expected), "{expected}: {farewell:?}");
        assert_eq!(
            host.agent.wait().unwrap().code(),
            Some(0),
            "{expected}: the agent crashed"
        );
    }
}

fn greeted(host: &mut Host, stream: u32, message: &Message<'_>) {
    host.greet(wire::PROTOCOL_VERSION);
    host.send(stream, message);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn garbage_ends_the_connection_and_crashes_nothing(
        bytes in proptest::collection::vec(any::<u8>(), 1..2000),
        kind in prop_oneof![
            Just(FrameKind::Open),
            Just(FrameKind::Data),
            Just(FrameKind::Credit),
            Just(FrameKind::Event),
        ],
        framed: bool,
    ) {
        let mut host = Host::new();
        if framed {
            let header = FrameHeader { len: bytes.len(), stream: 1, kind, flags: 0 };
            let _ = host.link.write_all(&header.encode());
        }
        let _ = host.link.write_all(&bytes);
        let _ = host.link.shutdown(std::net::Shutdown::Write);
        host.until_closed();
        let status = host.agent.wait().unwrap();
        prop_assert!(status.signal().is_none() && status.code() == Some(0), "{status:?}");
    }
}

#[test]
fn a_request_that_makes_no_sense_fails_alone() {
    let mut host = Host::new();
    for (stream, part) in [(998, &b""[..]), (999, b"\x02\0\0")] {
        host.send(stream, &Message::Open(RequestPart { more: false, part }));
        assert_eq!(host.all(stream).error(), ErrorCode::InvalidArgument);
    }
    host.send(
        1000,
        &Message::Open(RequestPart {
            more: false,
            part: b"\xff",
        }),
    );
    assert_eq!(host.all(1000).error(), ErrorCode::InvalidArgument);
}

#[test]
fn figures_are_plausible() {
    let mut host = Host::new();
    let info = host.ask(&Request::Sysinfo);
    let Some(Got::Other(text)) = info.end else {
        panic!("{info:?}")
    };
    for field in [
        "memory_total",
        "memory_available",
        "cpus",
        "uptime_ns",
        "disk_total",
    ] {
        assert!(
            text.contains(field) && !text.contains(&format!("{field}: 0,")),
            "{text}"
        );
    }
}

#[test]
fn an_identity_brings_the_environment_of_later_processes() {
    let mut host = Host::new();
    let env = [&b"E2B_SANDBOX=true"[..], b"HOME=/identity", b"A=1"];
    let identity = SetIdentity {
        wall_clock_ns: 0,
        generation: 42,
        hostname: b"",
        entropy: &[],
        env: StringList::Slices(&env),
    };
    assert_eq!(
        host.ask(&Request::SetIdentity(identity)).end,
        Some(Got::Done(42))
    );
    let done = host.run("echo $E2B_SANDBOX $HOME $A");
    assert_eq!(done.stdout(), "true /identity 1\n");
}

#[test]
fn the_end_of_the_connection_ends_the_test_agent_and_its_processes() {
    let mut host = Host::new();
    let stream = host.start(&["/bin/sleep", "60"], Stdin::Null);
    let Got::Started(pid) = host.next(stream) else {
        panic!("not started")
    };
    host.link.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(host.agent.wait().unwrap().code(), Some(0));
    for _ in 0..100 {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("process {pid} outlives the test agent");
}

/// The tables of the agent are zeros that cost nothing in the file: one byte of them that is not
/// zero would put megabytes into it.
#[test]
fn the_program_carries_no_tables() {
    let elf = std::fs::read(env!("CARGO_BIN_EXE_hatchery-agent")).unwrap();
    let u16_at = |at: usize| u16::from_le_bytes(elf[at..at + 2].try_into().unwrap());
    let u64_at = |at: usize| {
        usize::try_from(u64::from_le_bytes(elf[at..at + 8].try_into().unwrap())).unwrap()
    };
    let (table, count) = (u64_at(32), usize::from(u16_at(56)));
    let mut writable = 0;
    for header in (0..count).map(|i| table + 56 * i) {
        let (kind, flags) = (u16_at(header), u16_at(header + 4));
        assert_ne!(
            kind, 3,
            "the program wants an interpreter: it is not static"
        );
        if kind == 1 && flags & 2 != 0 {
            writable += u64_at(header + 32);
        }
    }
    assert!(
        writable < 32 * 1024,
        "{writable} bytes of initialised writable memory"
    );
}
