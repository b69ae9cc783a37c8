//! The lab's clock beside this machine's.
//!
//! The lab's kernel finds out at its boot how fast the processor's counter runs, by looking at an
//! emulated timer; that may be wrong by more than a per cent, and is never mended. So it is told
//! ([`counter_khz`]), and what is still between the two clocks is measured every few seconds and
//! taken away.

use kvm_ioctls::Kvm;
use std::time::Duration;

/// A difference that is left alone: less than what programs in the lab wait for anything.
const LEFT: Duration = Duration::from_millis(20);

/// One look at the lab's clock, by a question and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClockSample {
    /// The lab's time less this machine's, nanoseconds.
    pub(super) offset_ns: i64,
    /// The true difference is at most so much more or less.
    pub(super) error_ns: i64,
}

impl ClockSample {
    /// From this machine's time before and after, and what the lab said in between; all since the
    /// epoch.
    pub(super) fn new(asked: Duration, lab: Duration, answered: Duration) -> Self {
        let error = answered.saturating_sub(asked) / 2;
        let here = asked + error;
        let ahead = nanoseconds(lab.saturating_sub(here));
        let behind = nanoseconds(here.saturating_sub(lab));
        Self {
            offset_ns: ahead - behind,
            error_ns: nanoseconds(error),
        }
    }

    /// What to add to the lab's clock, nanoseconds; `None` if it may be right, or nearly so.
    pub(super) fn step(self) -> Option<i64> {
        let sure = self
            .offset_ns
            .saturating_abs()
            .saturating_sub(self.error_ns);
        (sure > nanoseconds(LEFT)).then_some(-self.offset_ns)
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// How many thousand times a second this machine's time stamp counter counts, if its KVM says so.
/// The emulated processor's is the same counter.
pub(super) fn counter_khz() -> Option<u32> {
    let vcpu = Kvm::new().ok()?.create_vm().ok()?.create_vcpu(0).ok()?;
    vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0)
}

#[cfg(test)]
mod test {
    use super::*;

    const MS: i64 = 1_000_000;

    fn sample(asked: u64, lab: u64, answered: u64) -> ClockSample {
        let ms = Duration::from_millis;
        ClockSample::new(ms(asked), ms(lab), ms(answered))
    }

    #[test]
    fn a_clock_behind_and_one_ahead_are_stepped() {
        let behind = sample(100_000, 82_010, 100_020);
        assert_eq!(behind.offset_ns, -18_000 * MS);
        assert_eq!(behind.error_ns, 10 * MS);
        assert_eq!(behind.step(), Some(18_000 * MS));
        assert_eq!(sample(1_000, 1_300, 1_010).step(), Some(-295 * MS));
    }

    #[test]
    fn what_a_slow_answer_explains_is_left_alone() {
        assert_eq!(sample(1_000, 1_005, 1_010).step(), None);
        assert_eq!(sample(1_000, 1_020, 1_010).step(), None); // 15 ms
        assert_eq!(sample(1_000, 1_900, 3_000).step(), None); // 100 ms, give or take a second
        assert_eq!(sample(1_000, 500, 1_100).step(), Some(550 * MS));
    }

    #[test]
    fn a_clock_of_another_century_does_not_overflow() {
        let far = ClockSample::new(Duration::ZERO, Duration::MAX, Duration::ZERO);
        assert_eq!(far.step(), Some(-i64::MAX));
        let past = ClockSample::new(
            Duration::from_secs(u64::MAX / 4),
            Duration::ZERO,
            Duration::from_secs(u64::MAX / 4),
        );
        assert_eq!(past.step(), Some(i64::MAX));
    }
}
