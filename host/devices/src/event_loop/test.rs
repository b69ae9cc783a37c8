//! The loop itself: watches, deadlines, stopping; and the entropy device on it.

use crate::testing::{QUEUES, Running, line, memory, set_up, wait};
use crate::{EventLoop, LoopControl, LoopHost, Rng, WatchId};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

#[derive(Default)]
struct Recorder {
    seen: Vec<u32>,
    ticks: Vec<Duration>,
    until: Option<Instant>,
    started: Option<Instant>,
    stop_after: usize,
}

impl LoopHost for Recorder {
    fn ready(&mut self, watch: WatchId, control: &mut LoopControl) {
        self.seen.push(watch.0);
        if self.seen.len() == self.stop_after {
            control.stop();
        }
    }
    fn deadline(&self) -> Option<Instant> {
        self.until
    }
    fn tick(&mut self, now: Instant, control: &mut LoopControl) {
        self.ticks.extend(self.started.map(|at| now - at));
        self.until = None;
        control.stop();
    }
}

#[test]
fn watches_tell_of_each_edge_and_of_the_end() {
    let mut event_loop = EventLoop::new(memory()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    event_loop.watch(theirs.into(), WatchId(7)).unwrap();
    event_loop
        .watch(event.try_clone().unwrap(), WatchId(8))
        .unwrap();
    rustix::io::write(event.as_fd(), &1u64.to_ne_bytes()).unwrap();
    let mut host = Recorder {
        stop_after: 1,
        ..Recorder::default()
    };
    event_loop.run(&mut host).unwrap();
    drop(ours);
    host.stop_after = 2;
    event_loop.run(&mut host).unwrap();
    assert_eq!(host.seen, [8, 7]);
}

#[test]
fn a_deadline_is_kept() {
    let mut event_loop = EventLoop::new(memory()).unwrap();
    let started = Instant::now();
    let until = started + Duration::from_millis(30);
    let mut host = Recorder {
        until: Some(until),
        started: Some(started),
        ..Recorder::default()
    };
    event_loop.run(&mut host).unwrap();
    assert_eq!(host.ticks.len(), 1);
    assert!(host.ticks[0] >= Duration::from_millis(30));
    assert!(event_loop.metrics().enters.get() <= 3);
}

#[test]
fn the_entropy_device_gives_different_bytes_and_not_without_end() {
    let memory = memory();
    let running = Running::new(memory.clone(), |l: &mut EventLoop| {
        l.add(Box::new(Rng::default()), line()).unwrap()
    });
    let mut queue = set_up(&running.made, &memory, 0, QUEUES).remove(0);
    let mut ask = |len: u32| {
        memory
            .write_slice(&[0; 1024], GuestAddress(0x1000))
            .unwrap();
        queue.add(&[(0x1000, len, true)]);
        queue.kick(&running.made);
        let (_, got) = wait(|| queue.take_used());
        let mut bytes = vec![0; 1024];
        memory.read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        (usize::try_from(got).unwrap(), bytes)
    };
    let (got, first) = ask(64);
    assert_eq!(got, 64);
    assert!(first[..64].iter().any(|&b| b != 0) && first[64..].iter().all(|&b| b == 0));
    assert_ne!(ask(64).1, first);
    assert_eq!(ask(1000).0, 256);
    // 16 KiB per second: the next 60 requests of 256 bytes need the second period for the last.
    let start = Instant::now();
    let total: usize = (0..100).map(|_| ask(256).0).sum();
    assert!(total >= 100 * 100 && start.elapsed() > Duration::from_millis(400));
}
