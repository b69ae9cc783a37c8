//! One line that says how far a long build is: a bar on a terminal, now and then a line elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a line is printed when the output is not a terminal.
const EVERY: Duration = Duration::from_secs(20);

/// Progress of one build, counted in `unit`s.
pub(crate) struct BuildProgress {
    what: &'static str,
    unit: &'static str,
    expected: u64,
    bar: ProgressBar,
    begun: Instant,
    printed: Instant,
    done: u64,
}

impl BuildProgress {
    /// Starts at 0 of `expected` (an estimate; more or fewer may come).
    pub(crate) fn new(what: &'static str, unit: &'static str, expected: u64) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(expected)
        } else {
            ProgressBar::with_draw_target(Some(expected), ProgressDrawTarget::hidden())
        };
        let template =
            "{msg}: [{bar:30}] {pos} of about {len} {prefix}, {elapsed} so far, about {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        bar.set_prefix(unit);
        let begun = Instant::now();
        Self {
            what,
            unit,
            expected,
            bar,
            begun,
            printed: begun,
            done: 0,
        }
    }

    /// Says that `done` units are done.
    pub(crate) fn set(&mut self, done: u64) {
        self.done = done;
        if done > self.expected {
            self.expected = done;
            self.bar.set_length(done);
        }
        self.bar.set_position(done);
        if self.bar.is_hidden() && self.printed.elapsed() >= EVERY {
            self.printed = Instant::now();
            eprintln!("{}", self.line());
        }
    }

    /// Ends the line.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
        let seconds = self.begun.elapsed().as_secs();
        eprintln!("{}: {} {} in {seconds} s", self.what, self.done, self.unit);
    }

    fn line(&self) -> String {
        let elapsed = self.begun.elapsed();
        format!(
            "{}: {} of about {} {}, {} s so far, about {} s left",
            self.what,
            self.done,
            self.expected,
            self.unit,
            elapsed.as_secs(),
            remaining(elapsed, self.done, self.expected).as_secs()
        )
    }
}

/// Time left if the rest goes like the part before; zero while nothing is known.
fn remaining(elapsed: Duration, done: u64, expected: u64) -> Duration {
    let left = u128::from(expected.saturating_sub(done));
    let nanos = elapsed.as_nanos() * left / u128::from(done.max(1));
    if done == 0 {
        Duration::ZERO
    } else {
        Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_rest_is_estimated_from_the_part_before() {
        let estimate = |done| remaining(Duration::from_secs(60), done, 1_000).as_secs();
        assert_eq!(estimate(250), 180);
        assert_eq!(estimate(1_000), 0);
        assert_eq!(estimate(2_000), 0);
        assert_eq!(estimate(0), 0);
    }
}
