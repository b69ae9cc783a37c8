//! How fast bytes go, and what that costs: figures for a look, and bounds that only a mistake of
//! kind breaks.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::{NetGuest, only};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Child;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const BULK: usize = 64 * MIB;

/// Processor time of a process so far.
fn cpu(process: &Child) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/schedstat", process.id())).unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

fn told(what: &str, bytes: usize, guest: &NetGuest, before: Duration, began: Instant) {
    let (wall, cpu) = (began.elapsed(), cpu(&guest.process) - before);
    let mib = u32::try_from(bytes / MIB).unwrap();
    eprintln!(
        "{what}: {mib} MiB in {wall:.2?}; hatchery-net took {:?} of a processor a MiB",
        cpu / mib
    );
}

#[test]
fn bulk_goes_both_ways_in_few_frames() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; MIB];
        let mut heard = 0;
        while heard < BULK {
            heard += stream.read(&mut buffer).unwrap();
        }
        for _ in 0..BULK / MIB {
            stream.write_all(&buffer).unwrap();
        }
    });
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    let (before, began) = (cpu(&guest.process), Instant::now());
    guest.send_all(flow, &vec![3; BULK]);
    told("guest to host", BULK, &guest, before, began);
    let (before, began) = (cpu(&guest.process), Instant::now());
    assert_eq!(guest.receive(flow, BULK).len(), BULK);
    told("host to guest", BULK, &guest, before, began);
    server.join().unwrap();
    let request = control::NetRequest::SetPolicy(Box::default());
    control::send(&guest.control, &request, &[]).unwrap();
    let counters = loop {
        match guest.event() {
            Some(control::NetEvent::Counters(counters)) if counters.policies > 0 => break counters,
            other => assert!(other.is_some(), "the process has ended"),
        }
    };
    println!("{counters:?}");
    // 64 KiB a frame, and an acknowledgement for each at most, and some for windows.
    let most = (BULK / 16_384) as u64;
    assert!(counters.tx_frames < 2 * most && counters.rx_frames < 2 * most);
}

/// Bytes there and back over a flow, so many times.
fn round_trips(guest: &mut NetGuest, flow: SocketHandle, times: u32) -> Duration {
    let before = cpu(&guest.process);
    for _ in 0..times {
        guest.send_all(flow, b"ping");
        assert_eq!(guest.receive(flow, 4), b"ping");
    }
    (cpu(&guest.process) - before) / times
}

fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 4];
                while stream.read_exact(&mut bytes).is_ok() {
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn many_idle_flows_do_not_slow_one() {
    let busy = echo_server();
    let idle = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut spec = only(&[busy, idle.local_addr().unwrap()]);
    spec.limits.flows = 1024;
    let mut alone = NetGuest::start(spec.clone());
    let flow = alone.connect(busy);
    alone.until_state(flow, State::Established);
    let alone = round_trips(&mut alone, flow, 200);
    let mut crowded = NetGuest::start(spec);
    let address = idle.local_addr().unwrap();
    let mut streams = Vec::new();
    // The guest's own stack pays for each socket at each poll: they are taken out of it when they
    // are open, and the process does not know.
    for _ in 0..400 {
        let flow = crowded.connect(address);
        crowded.until_state(flow, State::Established);
        crowded.sockets.remove(flow);
        streams.push(idle.accept().unwrap());
    }
    let flow = crowded.connect(busy);
    crowded.until_state(flow, State::Established);
    let crowded = round_trips(&mut crowded, flow, 200);
    println!("a round trip costs {alone:?} alone, {crowded:?} beside 400 idle flows");
    assert!(
        crowded < 3 * alone,
        "{crowded:?} with others, {alone:?} without"
    );
}
