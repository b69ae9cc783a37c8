//! How much a sandbox may send and receive: token buckets for bytes and frames.

use std::time::{Duration, Instant};

/// How much of a second's worth may come at once.
const BURST: f64 = 0.25;

/// A bucket that fills by time. It may be overdrawn by what is under way, and then says no until
/// that is paid.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    /// Tokens a second; 0: unlimited.
    rate: f64,
    most: f64,
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    /// A full one.
    #[expect(clippy::cast_precision_loss, reason = "rates are not that exact")]
    pub(crate) fn new(per_second: u64, now: Instant) -> Self {
        let rate = per_second as f64;
        let most = (rate * BURST).max(1.0);
        Self {
            rate,
            most,
            tokens: most,
            filled: now,
        }
    }

    /// How long it says no; zero if it says yes.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        if self.rate == 0.0 {
            return Duration::ZERO;
        }
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.most);
        self.filled = now;
        if self.tokens > 0.0 {
            return Duration::ZERO;
        }
        // A little more than there, so that whoever waits is not early.
        Duration::from_secs_f64(-self.tokens / self.rate) + Duration::from_millis(1)
    }

    /// Takes tokens, also more than there are.
    #[expect(clippy::cast_precision_loss, reason = "a frame's bytes are few")]
    pub(crate) fn take(&mut self, count: u64) {
        self.tokens -= count as f64;
    }
}

/// Both buckets of a sandbox.
#[derive(Debug)]
pub(crate) struct FramePace {
    bytes: TokenBucket,
    frames: TokenBucket,
}

impl FramePace {
    /// Limits a second; 0: unlimited.
    pub(crate) fn new(bytes: u64, frames: u64, now: Instant) -> Self {
        Self {
            bytes: TokenBucket::new(bytes, now),
            frames: TokenBucket::new(frames, now),
        }
    }

    /// How long nothing may move.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        self.bytes.wait(now).max(self.frames.wait(now))
    }

    /// One frame of `bytes` has moved.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.take_many(bytes as u64, 1);
    }

    /// Frames with so many bytes together have moved.
    pub(crate) fn take_many(&mut self, bytes: u64, frames: u64) {
        self.bytes.take(bytes);
        self.frames.take(frames);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_limit_holds_over_time_whatever_the_sizes() {
        let mut now = Instant::now();
        let begin = now;
        let mut pace = FramePace::new(1_000_000, 0, now);
        let mut moved = 0_u32;
        while moved < 3_000_000 {
            let wait = pace.wait(now);
            now += wait;
            if wait.is_zero() {
                pace.take(65_534);
                moved += 65_534;
            }
        }
        let took = (now - begin).as_secs_f64();
        assert!((2.6..3.1).contains(&took), "{took} s");
    }

    #[test]
    fn frames_count_too_and_zero_is_unlimited() {
        let now = Instant::now();
        let mut unlimited = FramePace::new(0, 0, now);
        let mut four = FramePace::new(0, 4, now);
        for _ in 0..1000 {
            unlimited.take(1 << 30);
        }
        assert!(unlimited.wait(now).is_zero());
        four.take(1);
        assert!(!four.wait(now).is_zero());
        assert!(four.wait(now + Duration::from_millis(300)).is_zero());
    }
}
