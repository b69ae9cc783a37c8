//! What test runners say at their end, and the sum of it.

use std::process::ExitStatus;

/// What the note of something begins with that passed only when it was run again.
pub(crate) const FLAKY: &str = "flaky: ";

/// Tests counted, and why some did not run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed, and runners that broke down.
    pub(crate) failed: u64,
    /// Tests that did not run.
    pub(crate) skipped: u64,
    /// One line for each group of skipped tests or failure outside a test.
    pub(crate) notes: Vec<String>,
}

impl Tally {
    /// One check that passed or failed with its program.
    pub(crate) fn of_status(status: ExitStatus, what: &str) -> Self {
        Self {
            passed: u64::from(status.success()),
            ..Self::default()
        }
        .or_failed(status, what)
    }

    /// One check that did not run.
    pub(crate) fn skip(why: impl Into<String>) -> Self {
        Self {
            skipped: 1,
            notes: vec![format!("skipped: {}", why.into())],
            ..Self::default()
        }
    }

    /// One check that failed.
    pub(crate) fn fail(why: impl Into<String>) -> Self {
        Self {
            failed: 1,
            notes: vec![format!("failed: {}", why.into())],
            ..Self::default()
        }
    }

    /// Adds another's counts and notes.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.notes.extend(other.notes);
    }

    /// What a second run made of the first one's failures: they count as passed if all passed then,
    /// and a note says so. The lab's emulated processor does now and then lose or misplace a
    /// guest's interrupt, which no program of ours can help; what fails twice is ours.
    pub(crate) fn or_again(self, what: &str, second: impl FnOnce() -> Self) -> Self {
        const MOST: u64 = 3;
        if self.failed == 0 || self.failed > MOST {
            return self;
        }
        let again = second();
        if again.failed > 0 || again.passed < self.failed {
            return self;
        }
        let mut tally = self;
        let note = format!(
            "{FLAKY}{what}: {} failed once and passed when run again",
            tally.failed
        );
        tally.passed += tally.failed;
        tally.failed = 0;
        tally.notes.push(note);
        tally
    }

    /// Whether something in it passed only when it was run again.
    pub(crate) fn is_flaky(&self) -> bool {
        self.notes.iter().any(|note| note.starts_with(FLAKY))
    }

    /// Counts a failure if the runner failed without telling of a failed test, or ran nothing.
    pub(crate) fn or_failed(mut self, status: ExitStatus, what: &str) -> Self {
        if !status.success() && self.failed == 0 {
            self.add(Self::fail(format!("{what} ended with {status}")));
        } else if status.success() && self.passed + self.skipped == 0 {
            self.add(Self::fail(format!("{what} ran no test")));
        }
        self
    }

    /// Reads `cargo nextest run`'s summary line.
    pub(crate) fn of_nextest(text: &str) -> Self {
        let line = last_line(text, |line| line.trim_start().starts_with("Summary"));
        let (passed, failed) = (number_before(line, "passed"), number_before(line, "failed"));
        let broken = number_before(line, "timed out") + number_before(line, "exec failed");
        let skipped = number_before(line, "skipped");
        let mut tally = Self {
            passed,
            failed: failed + broken,
            skipped,
            notes: Vec::new(),
        };
        if skipped > 0 {
            tally.notes.push(format!(
                "skipped: {skipped} marked #[ignore] with their reasons"
            ));
        }
        tally
    }

    /// Adds up the `test result:` lines of `cargo test`.
    pub(crate) fn of_cargo_test(text: &str) -> Self {
        let mut tally = Self::default();
        for line in text.lines().filter(|line| line.starts_with("test result:")) {
            tally.passed += number_before(line, "passed");
            tally.failed += number_before(line, "failed");
            tally.skipped += number_before(line, "ignored");
        }
        if tally.skipped > 0 {
            let note = format!(
                "skipped: {} marked #[ignore] with their reasons",
                tally.skipped
            );
            tally.notes.push(note);
        }
        tally
    }

    /// Reads pytest's last line and its list of skips (`-ra`).
    pub(crate) fn of_pytest(text: &str) -> Self {
        let is_summary = |line: &str| {
            line.contains(" in ")
                && [" passed", " failed", " skipped", " error"]
                    .iter()
                    .any(|word| line.contains(word))
        };
        let line = last_line(text, is_summary);
        let errors = number_before(line, "error").max(number_before(line, "errors"));
        let notes = text.lines().filter(|line| line.starts_with("SKIPPED "));
        Self {
            passed: number_before(line, "passed"),
            failed: number_before(line, "failed") + errors,
            skipped: number_before(line, "skipped"),
            notes: notes
                .map(|line| line.replacen("SKIPPED", "skipped:", 1))
                .collect(),
        }
    }

    /// Reads the comment lines at the end of `node --test --test-reporter=tap`.
    pub(crate) fn of_tap(text: &str) -> Self {
        let count = |name: &str| {
            let prefix = format!("# {name} ");
            let line = last_line(text, |line| line.starts_with(&prefix));
            line.strip_prefix(&prefix)
                .and_then(|n| n.trim().parse().ok())
                .unwrap_or(0)
        };
        let notes = text
            .lines()
            .filter_map(|line| line.trim_start().split_once("# SKIP"));
        let name = |head: &str| {
            head.split_once(" - ")
                .map_or("", |(_, name)| name)
                .trim()
                .to_owned()
        };
        Self {
            passed: count("pass"),
            failed: count("fail") + count("cancelled"),
            skipped: count("skipped"),
            notes: notes
                .map(|(head, why)| format!("skipped: {}:{why}", name(head)))
                .collect(),
        }
    }
}

fn last_line(text: &str, wanted: impl Fn(&str) -> bool) -> &str {
    text.lines()
        .rev()
        .find(|line| wanted(line))
        .unwrap_or_default()
}

/// The number in front of a word, 0 if there is none.
fn number_before(line: &str, word: &str) -> u64 {
    let Some(at) = line.match_indices(word).map(|(at, _)| at).find(|&at| {
        let end = line[at + word.len()..].chars().next();
        line[..at].ends_with(' ') && !end.is_some_and(char::is_alphanumeric)
    }) else {
        return 0;
    };
    let digits = line[..at]
        .trim_end()
        .rsplit(|c: char| !c.is_ascii_digit())
        .next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn counts(tally: &Tally) -> (u64, u64, u64) {
        (tally.passed, tally.failed, tally.skipped)
    }

    #[test]
    fn nextest() {
        let text = "     Summary [   1.5s] 31/33 tests run: 28 passed (1 slow), 2 failed, 1 timed out, 2 skipped\n";
        assert_eq!(counts(&Tally::of_nextest(text)), (28, 3, 2));
        assert_eq!(
            counts(&Tally::of_nextest("error: could not compile")),
            (0, 0, 0)
        );
    }

    #[test]
    fn cargo_test() {
        let text = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n";
        assert_eq!(counts(&Tally::of_cargo_test(text)), (6, 2, 1));
    }

    #[test]
    fn pytest() {
        let text = "SKIPPED [2] test_a.py:9: the agent runs natively\n\
                    FAILED test_b.py::test_it - AssertionError: 3 passed in vain\n\
                    1 failed, 180 passed, 2 skipped, 1 error in 61.02s (0:01:01)\n";
        let tally = Tally::of_pytest(text);
        assert_eq!(counts(&tally), (180, 2, 2));
        assert_eq!(
            tally.notes,
            ["skipped: [2] test_a.py:9: the agent runs natively"]
        );
    }

    #[test]
    fn tap() {
        let text = "ok 1 - plain\nok 2 - the user may become root # SKIP no machine\n\
                    # tests 3\n# pass 1\n# fail 1\n# cancelled 0\n# skipped 1\n";
        let tally = Tally::of_tap(text);
        assert_eq!(counts(&tally), (1, 1, 1));
        assert_eq!(
            tally.notes,
            ["skipped: the user may become root: no machine"]
        );
    }

    #[test]
    fn a_failure_is_forgiven_only_when_all_pass_the_second_time() {
        let tally = |passed, failed| Tally {
            passed,
            failed,
            ..Tally::default()
        };
        let forgiven = tally(8, 2).or_again("x", || tally(2, 0));
        assert_eq!(counts(&forgiven), (10, 0, 0));
        assert!(forgiven.notes[0].contains("2 failed once"));
        assert!(forgiven.is_flaky() && !tally(8, 0).is_flaky());
        for second in [tally(1, 1), tally(1, 0), tally(0, 0)] {
            assert_eq!(counts(&tally(8, 2).or_again("x", || second)), (8, 2, 0));
        }
        let many = tally(8, 4).or_again("x", || panic!("not again"));
        assert_eq!(counts(&many), (8, 4, 0));
    }

    #[test]
    fn a_runner_that_breaks_down_or_runs_nothing_fails() {
        let (good, bad) = (ExitStatus::from_raw(0), ExitStatus::from_raw(101 << 8));
        assert_eq!(Tally::default().or_failed(bad, "x").failed, 1);
        assert_eq!(Tally::default().or_failed(good, "x").failed, 1);
        assert_eq!(counts(&Tally::of_status(good, "x")), (1, 0, 0));
        assert_eq!(counts(&Tally::of_status(bad, "x")), (0, 1, 0));
        let told = Tally {
            passed: 3,
            failed: 2,
            ..Tally::default()
        };
        assert_eq!(counts(&told.or_failed(bad, "x")), (3, 2, 0));
    }
}
