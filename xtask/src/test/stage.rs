//! Stages: run one after the other, whatever the earlier ones say, with a summary at the end.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use super::runner::label_lines;
use super::tally::Tally;
use crate::lab;
use anyhow::Result;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// A group of checks with a name.
pub(crate) struct TestStage {
    /// What it is chosen by.
    pub(crate) name: &'static str,
    /// What it checks.
    pub(crate) about: &'static str,
    /// Where guests run in labs, it has one of its own, which takes one processor: such stages that
    /// follow each other run two at a time.
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

/// How many stages with labs of their own run at a time.
const LANES: usize = 2;

/// Runs each stage. Of those that may run beside each other, each lane takes the next when it is
/// done with one, so that no processor is idle while any is left.
fn run_each(stages: &[&TestStage], in_labs: bool) -> Vec<(Tally, String)> {
    let mut done = Vec::new();
    while let Some(first) = stages.get(done.len()) {
        let (all, at) = (stages.len(), done.len());
        let group = stages[at..].iter().take_while(|stage| stage.beside).count();
        if group < 2 || !in_labs {
            done.push(run_one(first, at + 1, all));
            continue;
        }
        let next = AtomicUsize::new(at);
        let lane = || {
            let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < at + group);
            let run = |index: usize| {
                label_lines(stages[index].name);
                (index, run_one(stages[index], index + 1, all))
            };
            std::iter::from_fn(take).map(run).collect::<Vec<_>>()
        };
        let mut ran = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
            let join = |lane: ScopedJoinHandle<_>| lane.join().unwrap_or_else(|p| resume_unwind(p));
            lanes.into_iter().flat_map(join).collect::<Vec<_>>()
        });
        ran.sort_by_key(|(index, _)| *index);
        done.extend(ran.into_iter().map(|(_, outcome)| outcome));
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
    fn stages_with_labs_of_their_own_run_two_at_a_time_and_are_told_in_order() {
        let first = stage("first", false, || Ok(Tally::default()));
        let (waits, tells) = (stage("waits", true, waits), stage("tells", true, tells));
        let fails = stage("fails", true, || anyhow::bail!("no"));
        let done = run_each(&[&first, &waits, &fails, &tells, &first], true);
        let names = done.iter().map(|(_, line)| line.split(' ').next().unwrap());
        let names: Vec<_> = names.collect();
        assert_eq!(names, ["first", "waits", "fails", "tells", "first"]);
        let counts = done.iter().map(|(tally, _)| (tally.passed, tally.failed));
        let counts: Vec<_> = counts.collect();
        // The one that waits had its lane; the other two came one after the other in the second.
        assert_eq!(counts, [(0, 0), (1, 0), (0, 1), (0, 0), (0, 0)]);
        // On a host that runs guests itself: each after the other.
        let done = run_each(&[&tells, &waits], false);
        assert_eq!(done[1].0.passed, 1);
    }
}
