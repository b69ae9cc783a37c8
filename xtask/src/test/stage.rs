//! Stages: run one after the other, whatever the earlier ones say, with a summary at the end.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use super::runner::label_lines;
use super::tally::Tally;
use crate::lab;
use anyhow::Result;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

/// A group of checks with a name.
pub(crate) struct TestStage {
    /// What it is chosen by.
    pub(crate) name: &'static str,
    /// What it checks.
    pub(crate) about: &'static str,
    /// It has a lab of its own: where guests run in labs, it runs while the last stage before it
    /// does that has none. A lab takes one processor.
    pub(crate) beside: bool,
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
    let done = run_each(stages, !lab::hardware_virtualization().usable);
    let mut total = Tally::default();
    let mut lines = Vec::new();
    for (index, (tally, line)) in done.into_iter().enumerate() {
        if let Some(rounds) = rounds.get_mut(index) {
            rounds.note(&tally);
        }
        total.add(tally);
        lines.push(line);
    }
    println!("\n{}\n", lines.join("\n"));
    total
}

/// Runs each stage; those that may run beside another one do so if guests run in labs.
fn run_each(stages: &[&TestStage], in_labs: bool) -> Vec<(Tally, String)> {
    let mut done = Vec::new();
    while let Some((first, rest)) = stages[done.len()..].split_first() {
        let (all, at) = (stages.len(), done.len() + 1);
        std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                let beside = rest.iter().take_while(|stage| stage.beside && in_labs);
                let run = |(stage, n): (&&TestStage, _)| {
                    label_lines(stage.name);
                    run_one(stage, n, all)
                };
                beside.zip(at + 1..).map(run).collect::<Vec<_>>()
            });
            done.push(run_one(first, at, all));
            done.extend(others.join().unwrap_or_else(|panic| resume_unwind(panic)));
        });
    }
    done
}

/// Runs one stage of `all`; its tally and summary.
fn run_one(stage: &TestStage, number: usize, all: usize) -> (Tally, String) {
    println!("\n== [{number}/{all}] {}: {}", stage.name, stage.about);
    let start = Instant::now();
    let tally = (stage.run)().unwrap_or_else(|error| Tally::fail(format!("{error:#}")));
    let summary = summary(stage.name, &tally, start.elapsed());
    println!("== {}", summary.lines().next().unwrap_or_default());
    (tally, summary)
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

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::sync::{LazyLock, Mutex};

    /// From the stage beside to the one that waits for it.
    type Word = (Mutex<Sender<()>>, Mutex<Receiver<()>>);
    static WORD: LazyLock<Word> = LazyLock::new(|| {
        let (sender, receiver) = mpsc::channel();
        (Mutex::new(sender), Mutex::new(receiver))
    });

    fn tells() -> Result<Tally> {
        WORD.0.lock().unwrap().send(())?;
        Ok(Tally::default())
    }

    fn waits() -> Result<Tally> {
        let heard = WORD.1.lock().unwrap().recv_timeout(Duration::from_secs(20));
        let passed = u64::from(heard.is_ok());
        Ok(Tally {
            passed,
            ..Tally::default()
        })
    }

    const fn stage(name: &'static str, beside: bool, run: fn() -> Result<Tally>) -> TestStage {
        TestStage {
            name,
            about: "",
            beside,
            run,
        }
    }

    #[test]
    fn stages_with_labs_of_their_own_run_beside_another_and_are_told_in_order() {
        let first = stage("first", false, || Ok(Tally::default()));
        let (waits, tells) = (stage("waits", false, waits), stage("tells", true, tells));
        let fails = stage("fails", true, || anyhow::bail!("no"));
        let done = run_each(&[&first, &waits, &tells, &fails, &first], true);
        let names = done.iter().map(|(_, line)| line.split(' ').next().unwrap());
        let names: Vec<_> = names.collect();
        assert_eq!(names, ["first", "waits", "tells", "fails", "first"]);
        let counts = done.iter().map(|(tally, _)| (tally.passed, tally.failed));
        let counts: Vec<_> = counts.collect();
        assert_eq!(counts, [(0, 0), (1, 0), (0, 0), (0, 1), (0, 0)]);
        // On a host that runs guests itself: each after the other.
        let done = run_each(&[&tells, &waits], false);
        assert_eq!(done[1].0.passed, 1);
    }
}
