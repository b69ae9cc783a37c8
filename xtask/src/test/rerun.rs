//! A part of the tests that runs in the lab is run once more, if the lab may be why it failed.

use super::tally::{FLAKY, Tally};
use crate::sdk::TestRound;

/// How a part went.
#[derive(Clone, Debug)]
pub(super) struct PartRun {
    /// What its runner counted.
    pub(super) tally: Tally,
    /// Whether it ran in a lab.
    pub(super) in_lab: bool,
    /// How its lab has died, with the last lines of its console.
    pub(super) death: Option<String>,
}

impl PartRun {
    /// A lab that did not come up.
    pub(super) fn without_a_lab(why: String) -> Self {
        Self {
            tally: Tally::default(),
            in_lab: true,
            death: Some(why),
        }
    }
}

/// Runs a part. In a lab it runs once more: all of it in a fresh lab when its lab has died, else
/// the tests that failed, if they were few. Either counts as flaky; a second lab that dies is a
/// failure that tells of both.
pub(super) fn twice(what: &str, mut once: impl FnMut(TestRound) -> PartRun) -> Tally {
    let first = once(TestRound::First);
    let Some(death) = first.death else {
        if !first.in_lab {
            return first.tally;
        }
        let mut second_death = None;
        let mut tally = first.tally.or_again(what, || {
            let second = once(TestRound::Failed);
            second_death = second.death;
            second.tally
        });
        if let Some(death) = second_death {
            let note = format!("{what}: the lab died when these were run again: {death}");
            tally.notes.push(note);
        }
        return tally;
    };
    eprintln!("{what}: the lab has died, so it is run again in a fresh one: {death}");
    let second = once(TestRound::First);
    let mut tally = second.tally;
    if let Some(again) = second.death {
        let why = format!("{what}: the lab died twice; first: {death}\nthen: {again}");
        tally.add(Tally::fail(why));
    } else {
        let note =
            format!("{FLAKY}{what}: run again in a fresh lab, because the first died: {death}");
        tally.notes.push(note);
    }
    tally
}

#[cfg(test)]
mod test {
    use super::*;

    fn ran(passed: u64, failed: u64, death: Option<&str>) -> PartRun {
        PartRun {
            tally: Tally {
                passed,
                failed,
                ..Tally::default()
            },
            in_lab: true,
            death: death.map(str::to_owned),
        }
    }

    /// The tally of a part that goes so, and the rounds that were asked for.
    fn run(runs: &[PartRun]) -> (Tally, Vec<bool>) {
        let mut whole = Vec::new();
        let tally = twice("x", |round| {
            whole.push(round == TestRound::First);
            runs[whole.len() - 1].clone()
        });
        (tally, whole)
    }

    #[test]
    fn a_part_whose_lab_dies_is_run_whole_again_and_flaky() {
        let (tally, whole) = run(&[ran(3, 40, Some("panic")), ran(43, 0, None)]);
        assert_eq!((tally.passed, tally.failed), (43, 0));
        assert!(
            tally.is_flaky() && tally.notes[0].contains("panic"),
            "{tally:?}"
        );
        assert_eq!(whole, [true, true]);
    }

    #[test]
    fn a_lab_that_does_not_come_up_is_a_lost_one_too() {
        let (tally, whole) = run(&[PartRun::without_a_lab("no".into()), ran(43, 0, None)]);
        assert_eq!((tally.passed, tally.failed, whole.len()), (43, 0, 2));
        assert!(tally.is_flaky());
    }

    #[test]
    fn a_second_lab_that_dies_is_a_failure_that_tells_of_both() {
        let (tally, _) = run(&[ran(3, 40, Some("panic one")), ran(43, 0, Some("panic two"))]);
        assert_eq!(tally.failed, 1);
        let notes = tally.notes.join("\n");
        assert!(
            notes.contains("panic one") && notes.contains("panic two"),
            "{notes}"
        );
        assert!(!tally.is_flaky());
    }

    #[test]
    fn what_fails_again_in_a_living_lab_stays_failed() {
        let (tally, whole) = run(&[ran(40, 2, None), ran(1, 1, None)]);
        assert_eq!((tally.passed, tally.failed), (40, 2));
        assert_eq!(whole, [true, false]);
        let (tally, whole) = run(&[ran(40, 2, None), ran(2, 0, None)]);
        assert_eq!(
            (tally.passed, tally.failed, whole),
            (42, 0, vec![true, false])
        );
        let (tally, _) = run(&[ran(40, 2, None), ran(0, 2, Some("panic"))]);
        assert_eq!(tally.failed, 2);
        assert!(tally.notes[0].contains("panic"), "{tally:?}");
    }

    #[test]
    fn without_a_lab_nothing_is_run_again() {
        let host = PartRun {
            in_lab: false,
            ..ran(40, 2, None)
        };
        let (tally, whole) = run(&[host]);
        assert_eq!((tally.failed, whole.len()), (2, 1));
    }
}
