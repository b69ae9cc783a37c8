//! Connections to ports of the guest, which here are this machine's.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use support::{Got, Host, WAIT};
use wire::{
    DataChannel, INPUT_WINDOW, MAX_PAYLOAD, MAX_STREAMS, Message, PORT_WINDOW, Request, ResetCode,
    Stdin, boot_flags,
};

/// A port of the guest on which something listens.
fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A connection through the agent, and the program's end of it.
fn connected(host: &mut Host, listener: &TcpListener) -> (u32, TcpStream) {
    let port = listener.local_addr().unwrap().port();
    let stream = host.open(&Request::ConnectPort { port });
    assert_eq!(host.next(stream), Got::Connected);
    let (program, _) = listener.accept().unwrap();
    program.set_read_timeout(Some(WAIT)).unwrap();
    program.set_write_timeout(Some(WAIT)).unwrap();
    (stream, program)
}

/// The next thing on a stream that is no credit.
fn next(host: &mut Host, stream: u32) -> Got {
    loop {
        match host.next(stream) {
            Got::Credit(_) => {}
            got => return got,
        }
    }
}

#[test]
fn bytes_go_both_ways_and_each_half_ends_by_itself() {
    let mut host = Host::new();
    let (listener, _) = listen();
    let (stream, mut program) = connected(&mut host, &listener);
    assert_ne!(host.hello.unwrap().1 & boot_flags::PORTS, 0);
    host.data(stream, DataChannel::Port, b"ping");
    host.send(stream, &Message::End);
    let mut asked = Vec::new();
    program.read_to_end(&mut asked).unwrap();
    assert_eq!(asked, b"ping");
    program.write_all(b"pong").unwrap();
    assert_eq!(
        next(&mut host, stream),
        Got::Data(DataChannel::Port, b"pong".to_vec())
    );
    drop(program);
    assert_eq!(next(&mut host, stream), Got::End);
    assert_eq!(next(&mut host, stream), Got::Done(0));

    let (stream, mut program) = connected(&mut host, &listener);
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(next(&mut host, stream), Got::End);
    host.data(stream, DataChannel::Port, b"later");
    host.send(stream, &Message::End);
    let mut asked = Vec::new();
    program.read_to_end(&mut asked).unwrap();
    assert_eq!(asked, b"later");
    assert_eq!(next(&mut host, stream), Got::Done(0));
}

#[test]
fn a_port_that_nobody_has_is_refused_in_the_kernels_words() {
    let mut host = Host::new();
    let (listener, port) = listen();
    drop(listener);
    let refused = host.ask(&Request::ConnectPort { port }).end.unwrap();
    let Got::Error(_, errno, text) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(errno, 111, "{text}");
    assert!(text.contains("127.0.0.1: errno 111; ::1: errno"), "{text}");
    assert_eq!(host.run("echo on").stdout(), "on\n");
}

#[test]
fn a_program_on_the_other_loopback_address_is_found() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    let mut host = Host::new();
    let (stream, mut program) = connected(&mut host, &listener);
    program.write_all(b"six").unwrap();
    assert_eq!(
        next(&mut host, stream),
        Got::Data(DataChannel::Port, b"six".to_vec())
    );
}

#[test]
fn a_host_that_does_not_read_stops_the_program() {
    let mut host = Host::new();
    let (listener, _) = listen();
    let (stream, mut program) = connected(&mut host, &listener);
    host.stalled.push(stream);
    let window = PORT_WINDOW as usize;
    let sent = 40 * window;
    let writer = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..sent).map(|n| u8::try_from(n % 251).unwrap()).collect();
        program.write_all(&bytes).unwrap();
    });
    let mut got = Vec::new();
    while got.len() < window {
        match next(&mut host, stream) {
            Got::Data(DataChannel::Port, bytes) => got.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    // What else it would send would be before the answer.
    host.run("true");
    assert_eq!(got.len(), window, "no more than the window");
    while got.len() < sent {
        let credit = Message::Credit(PORT_WINDOW);
        host.send(stream, &credit);
        let until = got.len() + window;
        while got.len() < until {
            match next(&mut host, stream) {
                Got::Data(DataChannel::Port, bytes) => got.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
    }
    writer.join().unwrap();
    let right = (0..sent).all(|n| usize::from(got[n]) == n % 251);
    assert!(right, "the bytes are the program's, in their order");
    // An end is found by a read, which needs credit, too.
    host.send(stream, &Message::Credit(1));
    assert_eq!(next(&mut host, stream), Got::End);
}

#[test]
fn a_program_that_does_not_read_gets_a_window_more_than_its_socket_takes() {
    let mut host = Host::new();
    let (listener, _) = listen();
    let (stream, mut program) = connected(&mut host, &listener);
    let piece = vec![7; MAX_PAYLOAD];
    let mut window = INPUT_WINDOW as usize;
    let mut sent = 0;
    // The agent grants what the socket has taken, and then no more.
    loop {
        while window >= piece.len() {
            host.data(stream, DataChannel::Port, &piece);
            window -= piece.len();
            sent += piece.len();
        }
        let ping = host.pongs;
        host.send(0, &Message::Ping(1));
        while host.pongs == ping {
            assert!(host.receive());
        }
        let credit = host.credit(stream);
        if credit == 0 {
            break;
        }
        window += credit;
        assert!(
            sent < 64 << 20,
            "{sent} bytes for a program that reads none"
        );
    }
    // It reads after all, and has everything.
    host.send(stream, &Message::End);
    let mut got = Vec::new();
    program.read_to_end(&mut got).unwrap();
    assert!(got == vec![7; sent], "{} of {sent} bytes", got.len());
}

#[test]
fn a_reset_is_told_to_either_side() {
    let mut host = Host::new();
    let (listener, _) = listen();
    // Unread bytes make the kernel reset what the program closes.
    let (stream, program) = connected(&mut host, &listener);
    host.data(stream, DataChannel::Port, b"unread");
    while program.peek(&mut [0; 8]).unwrap() == 0 {}
    drop(program);
    let end = next(&mut host, stream);
    let Got::Error(_, errno, text) = end else {
        panic!("{end:?}");
    };
    assert_eq!(errno, 104, "{text}");

    let (stream, mut program) = connected(&mut host, &listener);
    let (code, message) = (ResetCode::Cancelled, "");
    host.send(stream, &Message::Reset { code, message });
    let error = program.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let (stream, mut program) = connected(&mut host, &listener);
    host.send(stream, &Message::End);
    host.send(stream, &Message::Reset { code, message });
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0, "ended in order");
}

#[test]
fn data_of_another_channel_costs_the_stream() {
    let mut host = Host::new();
    let (listener, _) = listen();
    let (stream, _program) = connected(&mut host, &listener);
    host.data(stream, DataChannel::Stdin, b"x");
    assert_eq!(next(&mut host, stream), Got::Reset);
    let stream = host.start(&["/bin/cat"], Stdin::Pipe);
    host.data(stream, DataChannel::Port, b"x");
    assert!(matches!(host.next(stream), Got::Started(_)));
    assert_eq!(next(&mut host, stream), Got::Reset);
}

#[test]
fn many_connections_leave_commands_their_streams() {
    let mut host = Host::new();
    let (listener, _) = listen();
    let open: Vec<_> = (0..MAX_STREAMS + 44)
        .map(|_| connected(&mut host, &listener))
        .collect();
    assert_eq!(host.run("echo on").stdout(), "on\n");
    for (n, (stream, mut program)) in open.into_iter().enumerate() {
        program.write_all(n.to_string().as_bytes()).unwrap();
        let said = n.to_string().into_bytes();
        assert_eq!(next(&mut host, stream), Got::Data(DataChannel::Port, said));
    }
}
