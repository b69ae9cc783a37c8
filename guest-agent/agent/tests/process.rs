//! Processes of the real agent: output, input, ends, signals, orphans, failures to start.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::{Duration, Instant};
use support::{Got, Host, plain_start};
use wire::{
    DataChannel, ErrorCode, MAX_PAYLOAD, Message, ProcessExit, ProcessInfo, PtySize, Records,
    Request, ResetCode, StartProcess, Stdin, StringList,
};

#[test]
fn output_errors_and_status_arrive_in_order() {
    let mut host = Host::new();
    let stream = host.start(
        &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"],
        Stdin::Null,
    );
    assert!(matches!(host.next(stream), Got::Started(pid) if pid > 1));
    let done = host.all(stream);
    assert_eq!(
        (done.stdout(), done.text(DataChannel::Stderr)),
        ("out\n", "err\n")
    );
    assert_eq!(done.exit(), ProcessExit::Code(7));
    assert_eq!(host.run("kill -9 $$").exit(), ProcessExit::Signal(9));
}

#[test]
fn a_program_gets_its_environment_directory_and_nothing_else() {
    let mut host = Host::new();
    let done = host.run("pwd; ls /proc/self/fd; env | sort; cat; umask");
    let text = done.stdout();
    assert!(
        text.starts_with("/tmp\n0\n1\n2\n3\nHOME=/root\nLANG=C.UTF-8\nLOGNAME=root\n"),
        "{text}"
    );
    assert!(text.ends_with("USER=root\n0022\n"), "{text}");
    assert!(
        !text.contains("CARGO"),
        "the agent's own environment leaks: {text}"
    );
}

#[test]
fn a_program_is_found_by_the_path_of_its_own_environment() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("here");
    std::fs::write(&program, "#!/bin/sh\necho $0 $1 $GREETING\n").unwrap();
    let argv = [&b"here"[..], b"a b"];
    let path = format!("PATH=/nowhere:{}:/usr/bin:/bin", dir.path().display());
    let env = [path.as_bytes(), b"GREETING=hi"];
    let start = StartProcess {
        env: StringList::Slices(&env),
        ..plain_start(&argv, Stdin::Null)
    };
    assert_eq!(
        host.ask(&Request::Start(start)).error(),
        ErrorCode::NotExecutable
    );
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let done = host.ask(&Request::Start(start));
    assert_eq!(done.stdout(), format!("{} a b hi\n", program.display()));
}

/// The end is this error, and its words name what of the request could not be used.
fn assert_refused(end: Option<Got>, code: ErrorCode, errno: i32, start: &StartProcess<'_>) {
    let Some(Got::Error(c, e, words)) = end else {
        panic!("{end:?}")
    };
    assert_eq!((c, e), (code, errno), "{words}");
    let subject = match (code, start.argv.iter().next()) {
        (ErrorCode::BadCwd, _) => start.cwd,
        (ErrorCode::UnknownUser, _) => start.user,
        (_, program) => program.unwrap(),
    };
    let subject = String::from_utf8_lossy(subject);
    assert!(
        words.contains(&*subject),
        "{words:?} does not name {subject}"
    );
}

#[test]
fn failures_to_start_say_why() {
    let mut host = Host::new();
    let argv = [&b"true"[..]];
    let plain = plain_start(&argv, Stdin::Null);
    let missing = [&b"/no/such/program"[..]];
    let unknown = [&b"no-such-program"[..]];
    let data = [&b"/etc/passwd"[..]];
    for (start, code, errno) in [
        (
            StartProcess {
                argv: StringList::Slices(&missing),
                ..plain
            },
            ErrorCode::NotFound,
            2,
        ),
        (
            StartProcess {
                argv: StringList::Slices(&unknown),
                ..plain
            },
            ErrorCode::NotFound,
            2,
        ),
        (
            StartProcess {
                argv: StringList::Slices(&data),
                ..plain
            },
            ErrorCode::NotExecutable,
            13,
        ),
        (
            StartProcess {
                cwd: b"/no/such/dir",
                ..plain
            },
            ErrorCode::BadCwd,
            2,
        ),
        (
            StartProcess {
                cwd: b"/etc/passwd",
                ..plain
            },
            ErrorCode::BadCwd,
            20,
        ),
        (
            StartProcess {
                user: b"no-such-user",
                ..plain
            },
            ErrorCode::UnknownUser,
            0,
        ),
    ] {
        let end = host.ask(&Request::Start(start)).end;
        assert_refused(end, code, errno, &start);
    }
    assert_eq!(host.run("echo still here").stdout(), "still here\n");
}

#[test]
fn another_user_gets_its_own_rights() {
    let mut host = Host::new();
    let argv = [
        &b"/bin/sh"[..],
        b"-c",
        b"id -un; id -gn; echo $HOME; cat /etc/shadow",
    ];
    let start = StartProcess {
        user: b"nobody",
        ..plain_start(&argv, Stdin::Null)
    };
    let done = host.ask(&Request::Start(start));
    let mut lines = done.stdout().lines();
    assert_eq!(lines.next(), Some("nobody"));
    assert_eq!(lines.next(), Some("nogroup"));
    assert_ne!(
        done.exit(),
        ProcessExit::Code(0),
        "it must not read /etc/shadow"
    );
    let user = host.ask(&Request::LookupUser { name: b"nobody" });
    assert!(
        matches!(user.end, Some(Got::Other(ref u)) if u.contains("uid: 65534")),
        "{user:?}"
    );
    let argv = [&b"/bin/sh"[..], b"-c", b"id -u; id -g; id -G; echo $HOME"];
    for (user, ids) in [
        (&b"65534"[..], "65534\n65534\n65534\n/nonexistent\n"),
        (b"4321", "4321\n0\n0\n/\n"),
        (b"4321:4322", "4321\n4322\n4322\n/\n"),
    ] {
        let start = StartProcess {
            user,
            ..plain_start(&argv, Stdin::Null)
        };
        assert_eq!(host.ask(&Request::Start(start)).stdout(), ids);
    }
    let user = host.ask(&Request::LookupUser {
        name: b"no-such-user",
    });
    assert_eq!(user.error(), ErrorCode::UnknownUser);
}

#[test]
fn long_command_lines_travel_in_parts() {
    let mut host = Host::new();
    let long = "x".repeat(100_000);
    let done = host.run(&format!("printf %s {long} | wc -c"));
    assert_eq!(done.stdout().trim(), "100000");
}

#[test]
fn input_reaches_the_process_and_its_end_ends_it() {
    let mut host = Host::new();
    let stream = host.start(&["/bin/cat"], Stdin::Pipe);
    host.data(stream, DataChannel::Stdin, b"one ");
    host.data(stream, DataChannel::Stdin, b"two");
    host.send(stream, &Message::End);
    let done = host.all(stream);
    assert_eq!(
        (done.stdout(), done.exit()),
        ("one two", ProcessExit::Code(0))
    );
}

#[test]
fn much_input_flows_with_credit_through_a_slow_process() {
    let mut host = Host::new();
    let stream = host.start(&["/bin/sh", "-c", "sleep 0.3; md5sum"], Stdin::Pipe);
    let total = 5 << 20;
    let (mut sent, mut window) = (0, wire::INPUT_WINDOW as usize);
    while sent < total {
        let n = window.min(MAX_PAYLOAD).min(total - sent);
        if n == 0 {
            match host.next(stream) {
                Got::Credit(n) => window += n as usize,
                Got::Started(_) => {}
                other => panic!("{other:?}"),
            }
            continue;
        }
        host.data(stream, DataChannel::Stdin, &vec![0; n]);
        sent += n;
        window -= n;
    }
    host.send(stream, &Message::End);
    let done = host.all(stream);
    assert_eq!(done.stdout(), "5f363e0e58a95f06cbe9bbc662c5dfb6  -\n");
}

#[test]
fn input_beyond_the_window_resets_the_stream_only() {
    let mut host = Host::new();
    let stream = host.start(&["/bin/sleep", "30"], Stdin::Pipe);
    for _ in 0..7 {
        host.data(stream, DataChannel::Stdin, &[0; MAX_PAYLOAD]);
    }
    assert_eq!(host.all(stream).end, Some(Got::Reset));
    assert_eq!(host.run("echo fine").stdout(), "fine\n");
}

#[test]
fn a_process_that_closed_its_input_hurts_nobody() {
    let mut host = Host::new();
    let stream = host.start(
        &["/bin/sh", "-c", "exec 0<&-; sleep 0.2; echo alive"],
        Stdin::Pipe,
    );
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..2 {
        host.data(stream, DataChannel::Stdin, &[0; MAX_PAYLOAD]);
    }
    assert_eq!(host.all(stream).stdout(), "alive\n");
}

#[test]
fn a_stalled_stream_blocks_its_process_and_no_other() {
    let mut host = Host::new();
    let stalled = host.start(&["/bin/sh", "-c", "yes | head -c 10000000"], Stdin::Null);
    host.stalled.push(stalled);
    let busy = host.start(&["/bin/sh", "-c", "yes no | head -c 10000000"], Stdin::Null);
    assert_eq!(host.all(busy).stdout().len(), 10_000_000);
    let mut got = 0;
    let agent_bytes = memory_of(&host);
    while got < wire::OUTPUT_WINDOW as usize {
        match host.next(stalled) {
            Got::Data(_, bytes) => got += bytes.len(),
            Got::Started(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        got,
        wire::OUTPUT_WINDOW as usize,
        "more than the window was sent"
    );
    assert!(agent_bytes < 8 << 20, "the agent uses {agent_bytes} bytes");
    host.stalled.clear();
    host.send(stalled, &Message::Credit(wire::OUTPUT_WINDOW));
    let done = host.all(stalled);
    assert_eq!(got + done.stdout().len(), 10_000_000);
    assert_eq!(done.exit(), ProcessExit::Code(0));
}

/// Resident bytes of the agent.
fn memory_of(host: &Host) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", host.agent.id())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn signals_reach_running_processes_only() {
    let mut host = Host::new();
    let stream = host.start(&["/bin/sleep", "30"], Stdin::Null);
    let Got::Started(pid) = host.next(stream) else {
        panic!("not started")
    };
    let killed = host.ask(&Request::Signal { pid, signal: 15 });
    assert_eq!(killed.end, Some(Got::Done(0)));
    assert_eq!(host.all(stream).exit(), ProcessExit::Signal(15));
    for pid in [pid, 1, host.agent.id()] {
        let refused = host.ask(&Request::Signal { pid, signal: 9 });
        assert_eq!(refused.error(), ErrorCode::NoSuchProcess);
    }
}

#[test]
fn processes_are_listed_until_they_end() {
    let mut host = Host::new();
    let argv = [&b"/bin/sleep"[..], b"30"];
    let start = StartProcess {
        tag: b"nap",
        ..plain_start(&argv, Stdin::Null)
    };
    let stream = host.open(&Request::Start(start));
    let Got::Started(pid) = host.next(stream) else {
        panic!("not started")
    };
    let list = host.ask(&Request::ListProcesses);
    let all: Vec<_> = Records::<ProcessInfo<'_>>::new(list.bytes(DataChannel::Records)).collect();
    let nap = all
        .into_iter()
        .map(Result::unwrap)
        .find(|p| p.pid == pid)
        .unwrap();
    assert_eq!(
        (nap.tag, nap.program, nap.pty),
        (&b"nap"[..], &b"/bin/sleep"[..], false)
    );
    host.ask(&Request::Signal { pid, signal: 9 });
    host.all(stream);
    assert_eq!(host.ask(&Request::ListProcesses).end, Some(Got::Done(0)));
}

#[test]
fn a_descendant_that_keeps_the_pipe_does_not_delay_the_end() {
    let mut host = Host::new();
    let begun = Instant::now();
    let done = host.run("(sleep 20; echo late) & echo now");
    assert_eq!(
        (done.stdout(), done.exit()),
        ("now\n", ProcessExit::Code(0))
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_descendant_writes_on_after_the_end_without_an_error() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    // More than a pipe holds, and each write must succeed: SIGPIPE is not even ignored.
    let script = format!(
        "mkfifo {at}/done
         (sleep 0.2; head -c 1000000 /dev/zero && echo line && echo error >&2 && echo done > {at}/done) &
         echo started"
    );
    assert_eq!(host.run(&script).stdout(), "started\n");
    // Waits for the writer to come to its end.
    let done = host.run(&format!("timeout 20 cat {at}/done"));
    assert_eq!(done.stdout(), "done\n", "the writer has ended");
    // The pipes are closed when the last writer is gone.
    let open = format!("ls /proc/{}/fd | wc -l", host.agent.id());
    let before: u32 = host.run(&open).stdout().trim().parse().unwrap();
    for _ in 0..20 {
        host.run("(sleep 0.05; echo late) & true");
    }
    let begun = Instant::now();
    loop {
        let after: u32 = host.run(&open).stdout().trim().parse().unwrap();
        if after <= before + 4 {
            break;
        }
        let waited = begun.elapsed() < support::WAIT;
        assert!(waited, "{before} to {after} descriptors");
    }
}

#[test]
fn sigkill_ends_all_that_a_command_began() {
    let mut host = Host::new();
    let script = "sleep 1111 & sleep 1112 & (while :; do :; done) & echo $!; wait";
    let stream = host.start(&["/bin/sh", "-c", script], Stdin::Null);
    let Got::Started(pid) = host.next(stream) else {
        panic!("not started")
    };
    let Got::Data(_, spinning) = host.next(stream) else {
        panic!("no output")
    };
    let spinning = String::from_utf8(spinning).unwrap();
    let signal = 9;
    let killed = host.ask(&Request::Signal { pid, signal });
    assert_eq!(killed.end, Some(Got::Done(0)));
    assert_eq!(host.all(stream).exit(), ProcessExit::Signal(9));
    // A killed process is gone when it has had the processor once more.
    let left = format!("kill -0 {} || pgrep -g {pid} || echo none", spinning.trim());
    let begun = Instant::now();
    while host.run(&left).stdout() != "none\n" {
        assert!(begun.elapsed() < support::WAIT, "some of it runs on");
    }
}

#[test]
fn orphans_are_reaped() {
    let mut host = Host::new();
    host.run("for i in 1 2 3 4 5; do (sleep 0.2 &) ; done");
    std::thread::sleep(Duration::from_millis(600));
    host.run("true");
    let children = format!("/proc/{0}/task/{0}/children", host.agent.id());
    assert_eq!(std::fs::read_to_string(children).unwrap(), "");
}

#[test]
fn many_processes_at_once_and_one_too_many() {
    let mut host = Host::new();
    let streams: Vec<_> = (0..wire::MAX_STREAMS)
        .map(|_| host.start(&["/bin/cat"], Stdin::Pipe))
        .collect();
    for &stream in &streams {
        assert!(matches!(host.next(stream), Got::Started(_)));
    }
    let more = host.start(&["/bin/true"], Stdin::Null);
    assert_eq!(host.all(more).error(), ErrorCode::Busy);
    for &stream in &streams {
        host.send(stream, &Message::End);
    }
    for stream in streams {
        assert_eq!(host.all(stream).exit(), ProcessExit::Code(0));
    }
    assert_eq!(host.run("echo again").stdout(), "again\n");
}

#[test]
fn a_reset_detaches_a_process_that_goes_on_writing() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("done");
    let script = format!("yes | head -c 3000000; touch {}", mark.display());
    let stream = host.start(&["/bin/sh", "-c", &script], Stdin::Null);
    host.stalled.push(stream);
    host.next(stream);
    host.send(
        stream,
        &Message::Reset {
            code: ResetCode::Cancelled,
            message: "",
        },
    );
    let begun = Instant::now();
    while !mark.exists() {
        assert!(begun.elapsed() < support::WAIT, "the process is stuck");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(host.run("echo ok").stdout(), "ok\n");
}

#[test]
fn limits_bind() {
    let mut host = Host::new();
    let argv = [&b"/bin/sh"[..], b"-c", b"ulimit -n"];
    let mut start = plain_start(&argv, Stdin::Null);
    start.limits.open_files = 77;
    assert_eq!(host.ask(&Request::Start(start)).stdout(), "77\n");
}

#[test]
fn a_terminal_is_one() {
    let mut host = Host::new();
    let argv = [
        &b"/bin/sh"[..],
        b"-c",
        b"stty size; tty; read x; stty size; echo got $x",
    ];
    let pty = Some(PtySize { cols: 80, rows: 24 });
    let stream = host.open(&Request::Start(StartProcess {
        pty,
        ..plain_start(&argv, Stdin::Null)
    }));
    let Got::Started(pid) = host.next(stream) else {
        panic!("not started")
    };
    let mut seen = Vec::new();
    while !seen.windows(4).any(|w| w == b"pts/") {
        let Got::Data(DataChannel::Pty, bytes) = host.next(stream) else {
            panic!("not data")
        };
        seen.extend(bytes);
    }
    assert!(seen.starts_with(b"24 80\r\n"));
    let size = PtySize {
        cols: 100,
        rows: 40,
    };
    assert_eq!(
        host.ask(&Request::Resize { pid, size }).end,
        Some(Got::Done(0))
    );
    host.data(stream, DataChannel::Stdin, b"hello\n");
    let done = host.all(stream);
    let text = done.text(DataChannel::Pty);
    assert!(text.contains("40 100\r\ngot hello\r\n"), "{text:?}");
    assert_eq!(done.exit(), ProcessExit::Code(0));
}

#[test]
fn a_process_without_a_stream_can_be_listened_to_again() {
    let mut host = Host::new();
    let go = std::env::temp_dir().join(format!("attach-{}", std::process::id()));
    let script = format!(
        "until [ -e {0} ]; do sleep 0.01; done; rm {0}; echo later; exit 7",
        go.display()
    );
    let stream = host.start(&["/bin/sh", "-c", &script], Stdin::Null);
    let Got::Started(pid) = host.next(stream) else {
        panic!("not started")
    };
    let attach = Request::Attach { pid };
    assert_eq!(
        host.ask(&attach).error(),
        ErrorCode::Busy,
        "it has a stream"
    );
    host.send(
        stream,
        &Message::Reset {
            code: ResetCode::Cancelled,
            message: "",
        },
    );
    let again = host.open(&attach);
    assert_eq!(host.next(again), Got::Started(pid));
    std::fs::write(&go, "").unwrap();
    let done = host.all(again);
    assert_eq!(
        (done.stdout(), done.exit()),
        ("later\n", ProcessExit::Code(7))
    );
    assert_eq!(host.ask(&attach).error(), ErrorCode::NoSuchProcess);
}
