//! What the service hears: counters now and then, and refusals, not more than it can read.

use crate::pace::TokenBucket;
use control::{DeniedFlow, DenyReason, MAX_DOMAIN, NetCounters, NetEvent, NetProtocol, send};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Refusals that are told a second.
const DENIED_PER_S: u64 = 20;
/// How long counters may be old.
const COUNTERS_EVERY: Duration = Duration::from_secs(5);

/// The socket to the service, and what is counted for it.
#[derive(Debug)]
pub(crate) struct EventReport {
    socket: OwnedFd,
    /// What is counted where it happens.
    pub(crate) counters: NetCounters,
    told: NetCounters,
    told_at: Instant,
    denied: TokenBucket,
    left_out: u64,
}

impl EventReport {
    /// With nothing counted.
    pub(crate) fn new(socket: OwnedFd, now: Instant) -> Self {
        Self {
            socket,
            counters: NetCounters::default(),
            told: NetCounters::default(),
            told_at: now,
            denied: TokenBucket::new(DENIED_PER_S, now),
            left_out: 0,
        }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Says that frames are read. Tells whether the service heard it.
    pub(crate) fn ready(&self) -> bool {
        send(&self.socket, &NetEvent::Ready, &[]).is_ok()
    }

    /// Counts a refusal, and tells of it if there were not too many.
    pub(crate) fn deny(
        &mut self,
        protocol: NetProtocol,
        to: SocketAddr,
        name: Option<&str>,
        reason: DenyReason,
        now: Instant,
    ) {
        match reason {
            DenyReason::Flows => self.counters.flows_refused += 1,
            _ => self.counters.denied += 1,
        }
        if !self.denied.wait(now).is_zero() {
            self.left_out += 1;
            return;
        }
        self.denied.take(1);
        let event = NetEvent::Denied(DeniedFlow {
            protocol,
            to,
            name: name.map(printable),
            reason,
            left_out: self.left_out,
        });
        match send(&self.socket, &event, &[]) {
            Ok(()) => self.left_out = 0,
            // It does not read, or is gone: the latter is told where its requests are read.
            Err(_) => self.left_out += 1,
        }
    }

    /// Tells counters that have changed, if the last ones are old; now, if it is `due`.
    pub(crate) fn tell(&mut self, now: Instant, due: bool) {
        let old = now.saturating_duration_since(self.told_at) >= COUNTERS_EVERY;
        if !due && (!old || self.counters == self.told) {
            return;
        }
        self.told_at = now;
        let counters = self.counters;
        if send(&self.socket, &NetEvent::Counters(counters), &[]).is_ok() {
            self.told = counters;
        }
    }

    /// When counters have to be told, if any has changed.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        (self.counters != self.told).then(|| self.told_at + COUNTERS_EVERY)
    }
}

/// A name as logs may show it.
fn printable(name: &str) -> String {
    let plain = |c: char| match c {
        'a'..='z' | '0'..='9' | '.' | '_' | '-' => c,
        _ => '?',
    };
    name.chars().take(MAX_DOMAIN).map(plain).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_told() {
        let (ours, service) = control::pair().unwrap();
        rustix::io::ioctl_fionbio(&service, true).unwrap();
        let mut now = Instant::now();
        let mut report = EventReport::new(ours, now);
        let to = SocketAddr::from(([10, 0, 0, 1], 80));
        let mut deny = |now| report.deny(NetProtocol::Tcp, to, Some("A b"), DenyReason::Name, now);
        for _ in 0..1000 {
            deny(now);
        }
        now += Duration::from_secs(1);
        deny(now);
        let mut told = Vec::new();
        while let Ok(Some((NetEvent::Denied(denied), _))) = control::recv(&service) {
            assert_eq!(denied.name.as_deref(), Some("??b"));
            told.push(denied.left_out);
        }
        let many = told.len() as u64;
        assert!((2..=1 + DENIED_PER_S).contains(&many), "{many}");
        assert_eq!(told.last(), Some(&(1000 - (many - 1))));
        assert_eq!(report.counters.denied, 1001);
    }
}
