//! What an agent may send that nobody waits for.
//!
//! An honest one sends little of it: what was under way on a stream when this side gave it up, and
//! now and then a ping. All of it is read and thrown away, at the service's cost, so a guest must
//! not be able to send it for ever: each stream that is given up allows for what its window and its
//! end can be, and what is more ends the link.

use std::time::Duration;
use tokio::time::Instant;
use wire::{MAX_PORT_STREAMS, MAX_STREAMS, OUTPUT_WINDOW, PORT_WINDOW};

/// Frames without data that can be under way on a stream: news, credit for what was sent to it, the
/// end.
const STREAM_FRAMES: u32 = 8;
/// Given-up streams that are allowed for at once: many times what fits between the two sides.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a few hundred, and a thousand"
)]
const STREAMS: (u32, u32) = (MAX_STREAMS as u32, MAX_PORT_STREAMS as u32);
const MOST_BYTES: u32 = STREAMS.0 * OUTPUT_WINDOW + STREAMS.1 * PORT_WINDOW;
const MOST_FRAMES: u32 = (STREAMS.0 + STREAMS.1) * STREAM_FRAMES;
/// Pings that may come at once.
const PINGS: u32 = 16;
/// One more ping may come after so long.
const PING_EVERY: Duration = Duration::from_secs(1);

/// What may still come of it on one link.
#[derive(Debug)]
pub(crate) struct UnaskedFrames {
    bytes: u32,
    frames: u32,
    pings: u32,
    /// From when on time counts for another ping.
    since: Option<Instant>,
}

impl Default for UnaskedFrames {
    fn default() -> Self {
        Self {
            bytes: 0,
            frames: 0,
            pings: PINGS,
            since: None,
        }
    }
}

impl UnaskedFrames {
    /// This side gave a stream with this window up: what is under way on it may still come.
    pub(crate) fn gave_up(&mut self, window: u32) {
        self.bytes = (self.bytes + window).min(MOST_BYTES);
        self.frames = (self.frames + STREAM_FRAMES).min(MOST_FRAMES);
    }

    /// A frame came for a stream that is over: with so many data bytes, or without any.
    ///
    /// # Errors
    /// Why that ends the link.
    pub(crate) fn late(&mut self, data: usize) -> Result<(), String> {
        let (left, cost) = match u32::try_from(data) {
            Ok(0) => (&mut self.frames, 1),
            cost => (&mut self.bytes, cost.unwrap_or(u32::MAX)),
        };
        *left = left.checked_sub(cost).ok_or_else(|| {
            String::from(
                "the agent goes on sending on streams that are over, more than was under way when \
                 they were given up",
            )
        })?;
        Ok(())
    }

    /// A ping came.
    ///
    /// # Errors
    /// Why that ends the link.
    pub(crate) fn ping(&mut self, now: Instant) -> Result<(), String> {
        let since = *self.since.get_or_insert(now);
        let seconds = now.duration_since(since).as_secs() / PING_EVERY.as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(PINGS);
            self.pings = self.pings.saturating_add(more).min(PINGS);
            self.since = Some(now);
        }
        self.pings = self.pings.checked_sub(1).ok_or_else(|| {
            format!("the agent sent more than {PINGS} pings, and one every {PING_EVERY:?}")
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_was_under_way_may_come_and_nothing_more() {
        let mut unasked = UnaskedFrames::default();
        unasked.late(0).unwrap_err();
        unasked.late(1).unwrap_err();
        unasked.gave_up(OUTPUT_WINDOW);
        for _ in 0..STREAM_FRAMES {
            unasked.late(0).unwrap();
        }
        unasked.late(0).unwrap_err();
        unasked.late(OUTPUT_WINDOW as usize - 1).unwrap();
        unasked.late(1).unwrap();
        unasked.late(1).unwrap_err();
        unasked.late(usize::MAX).unwrap_err();
    }

    #[test]
    fn streams_that_were_given_up_long_ago_allow_for_no_flood() {
        let mut unasked = UnaskedFrames::default();
        (0..100_000).for_each(|_| unasked.gave_up(OUTPUT_WINDOW));
        assert_eq!(unasked.bytes, MOST_BYTES);
        assert_eq!(unasked.frames, MOST_FRAMES);
    }

    #[test]
    fn a_ping_a_second_is_answered_for_ever_and_a_flood_is_not() {
        let mut unasked = UnaskedFrames::default();
        let mut now = Instant::now();
        for _ in 0..10_000 {
            now += PING_EVERY;
            unasked.ping(now).unwrap();
        }
        let flood = (0..=PINGS).map(|_| unasked.ping(now)).filter(Result::is_ok);
        assert!(flood.count() <= PINGS as usize);
        unasked.ping(now).unwrap_err();
        unasked.ping(now + PING_EVERY).unwrap();
    }
}
