//! Stages: run one after the other, whatever the earlier ones say, with a summary at the end.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use super::tally::Tally;
use anyhow::Result;
use std::time::{Duration, Instant};

/// A group of checks with a name.
pub(crate) struct TestStage {
    /// What it is chosen by.
    pub(crate) name: &'static str,
    /// What it checks.
    pub(crate) about: &'static str,
    /// Runs it.
    pub(crate) run: fn() -> Result<Tally>,
}

/// How one stage's rounds ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StageRounds {
    all: u32,
    failed: u32,
    /// Passed, but something in it only when it was run again.
    flaky: u32,
}

impl StageRounds {
    fn note(&mut self, tally: &Tally) {
        self.all += 1;
        if tally.failed > 0 {
            self.failed += 1;
        } else if tally.is_flaky() {
            self.flaky += 1;
        }
    }

    /// One line.
    pub(crate) fn summary(self, name: &str) -> String {
        let Self { all, failed, flaky } = self;
        let clean = all - failed - flaky;
        format!("{name:<8} {all} rounds: {clean} clean, {flaky} flaky, {failed} failed")
    }
}

/// Runs each stage, prints the summary, and returns the sum.
pub(crate) fn run_all(stages: &[&TestStage], rounds: &mut [StageRounds]) -> Tally {
    let mut lines = Vec::new();
    let mut total = Tally::default();
    for (index, stage) in stages.iter().enumerate() {
        println!(
            "\n== [{}/{}] {}: {}",
            index + 1,
            stages.len(),
            stage.name,
            stage.about
        );
        let start = Instant::now();
        let tally = (stage.run)().unwrap_or_else(|error| Tally::fail(format!("{error:#}")));
        lines.push(summary(stage.name, &tally, start.elapsed()));
        println!("== {}", lines[index].lines().next().unwrap_or_default());
        if let Some(rounds) = rounds.get_mut(index) {
            rounds.note(&tally);
        }
        total.add(tally);
    }
    println!("\n{}\n", lines.join("\n"));
    total
}

/// One line with a stage's counts and time, and its notes below.
fn summary(name: &str, tally: &Tally, time: Duration) -> String {
    let Tally {
        passed,
        failed,
        skipped,
        notes,
    } = tally;
    let verdict = if *failed == 0 { "ok" } else { "FAILED" };
    let seconds = time.as_secs_f64();
    let mut text = format!(
        "{name:<8} {verdict:<6} {passed:>5} passed {failed:>3} failed {skipped:>3} skipped \
         {seconds:>7.1} s"
    );
    for note in notes {
        for line in note.lines() {
            text.push_str("\n         ");
            text.push_str(line);
        }
    }
    text
}
