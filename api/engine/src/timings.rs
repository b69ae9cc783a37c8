//! How long a creation's steps took.

use std::time::{Duration, Instant};

/// How long each step took, in the order of the steps.
#[derive(Clone, Debug)]
pub struct StepTimings {
    start: Instant,
    last: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Default for StepTimings {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            steps: Vec::new(),
        }
    }
}

impl StepTimings {
    /// The step that has just ended.
    pub fn step(&mut self, name: &'static str) {
        let now = Instant::now();
        self.steps.push((name, now - self.last));
        self.last = now;
    }

    /// Since the start.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.last - self.start
    }

    /// The value of a `Server-Timing` header, milliseconds.
    #[must_use]
    pub fn header(&self) -> String {
        let total = ("total", self.total());
        let entry =
            |(name, time): &(&str, Duration)| format!("{name};dur={:.3}", time.as_secs_f64() * 1e3);
        self.steps
            .iter()
            .chain([&total])
            .map(entry)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_header_names_each_step_and_the_total() {
        let mut timings = StepTimings::default();
        timings.step("spawn");
        timings.step("hello");
        let header = timings.header();
        let names: Vec<_> = header
            .split(", ")
            .map(|e| e.split(';').next().unwrap())
            .collect();
        assert_eq!(names, ["spawn", "hello", "total"]);
    }
}
