//! Two sets of records, figure by figure: what got worse, what got better, and what is not there.
//!
//! A figure is the median of one value of one scenario. Where instructions are counted it hardly
//! changes from run to run, so only those places are judged; times of the others are shown. Where
//! there are several samples, a figure has changed only if it differs by more than they do.

use crate::definition::OURS;
use crate::output::say;
use crate::record::{self, COUNTED, Record};
use crate::statistics::{Statistic, Summary, percentile};
use crate::targets::human;
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

/// One hundred per cent, in the unit of limits.
const WHOLE: u64 = 10_000;
/// What a scenario is given: a change of it is neither better nor worse.
const GIVEN: [&str; 5] = ["bytes", "clients", "clones", "cycles", "dirty_pages"];

#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// A folder of records, or one file of them
    old: PathBuf,
    /// What is held against it: a folder or a file
    new: PathBuf,
    /// A counted figure that is worse by more than so many per cent fails
    #[arg(long, default_value = "2", value_name = "PERCENT", value_parser = hundredths)]
    limit: u64,
}

/// Per cent with up to two places behind the point, as hundredths.
fn hundredths(text: &str) -> Result<u64, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let number = |digits: &str| digits.parse::<u64>().ok().filter(|n| *n <= WHOLE);
    let part = match part.len() {
        0 => Some(0),
        1 => number(part).map(|n| n * 10),
        2 => number(part),
        _ => None,
    };
    let all = number(whole)
        .zip(part)
        .map(|(whole, part)| whole * 100 + part);
    all.ok_or_else(|| format!("{text:?} is not a number of per cent such as 2 or 0.5"))
}

/// Which figure: place, scenario, engine, value.
type FigureKey = (String, String, String, String);

/// Place, scenario, engine.
type ScenarioName = (String, String, String);

/// What one set of records says of a figure.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FigureState {
    /// The median of the samples that succeeded, how many these are, and how many were tried.
    Measured(u64, u64, u64),
    /// All samples of its scenario failed.
    Failed,
    /// Its scenario was not run, or does not give this value.
    NotMeasured,
}

/// How a figure has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FigureChange {
    Worse,
    Better,
    Within,
    /// There is nothing to compare: at least one side failed.
    Failed,
    /// Nor here: at least one side has not measured it.
    NotMeasured,
}

/// A figure in both sets.
#[derive(Debug)]
struct FigureRow {
    key: FigureKey,
    old: FigureState,
    new: FigureState,
    change: FigureChange,
}

/// All figures of a set of records.
struct FigureSet {
    figures: BTreeMap<FigureKey, Summary>,
    /// By place, scenario and engine: samples that succeeded, and those tried.
    tried: BTreeMap<[String; 3], (u64, u64)>,
}

impl FigureSet {
    fn new(records: &[Record]) -> Self {
        let mut values: BTreeMap<FigureKey, Vec<u64>> = BTreeMap::new();
        let mut tried: BTreeMap<[String; 3], (u64, u64)> = BTreeMap::new();
        for record in records {
            let of = [&record.place, &record.scenario, &record.engine].map(String::clone);
            let counts = tried.entry(of.clone()).or_default();
            *counts = (counts.0 + u64::from(record.ok), counts.1 + 1);
            for (name, value) in record.values.iter().filter(|_| record.ok) {
                let [place, scenario, engine] = of.clone();
                let key = (place, scenario, engine, name.clone());
                values.entry(key).or_default().push(*value);
            }
        }
        let figures = values.into_iter().map(|(key, values)| {
            let of = [&key.0, &key.1, &key.2].map(String::clone);
            let tried = tried.get(&of).map_or(0, |counts| counts.1);
            (key, Summary::new(values, tried))
        });
        Self {
            figures: figures.collect(),
            tried,
        }
    }

    fn state(&self, key: &FigureKey) -> FigureState {
        if let Some(summary) = self.figures.get(key)
            && let Some(median) = summary.get(Statistic::P50)
        {
            return FigureState::Measured(median, summary.count(), summary.tried);
        }
        let of = [&key.0, &key.1, &key.2].map(String::clone);
        match self.tried.get(&of) {
            Some((0, _)) => FigureState::Failed,
            _ => FigureState::NotMeasured,
        }
    }

    /// Scenarios of which no sample succeeded: they have no value by whose name to ask.
    fn lost(&self) -> impl Iterator<Item = FigureKey> {
        let lost = self.tried.iter().filter(|(_, (good, _))| *good == 0);
        lost.map(|([place, scenario, engine], _)| {
            (
                place.clone(),
                scenario.clone(),
                engine.clone(),
                String::new(),
            )
        })
    }
}

/// Every figure of either set, by place, scenario and value.
fn rows(old: &FigureSet, new: &FigureSet, limit: u64) -> Vec<FigureRow> {
    let mut keys: BTreeSet<FigureKey> = old
        .figures
        .keys()
        .chain(new.figures.keys())
        .cloned()
        .collect();
    // A scenario that failed is told by the figures that the other side has of it, if there are
    // any.
    for lost in old.lost().chain(new.lost()) {
        let of = |key: &FigureKey| (&key.0, &key.1, &key.2) == (&lost.0, &lost.1, &lost.2);
        if !keys.iter().any(of) {
            keys.insert(lost);
        }
    }
    let row = |key: FigureKey| {
        let apart = are_apart(old.figures.get(&key), new.figures.get(&key));
        let (old, new) = (old.state(&key), new.state(&key));
        let change = match change(&key.3, &old, &new, limit) {
            FigureChange::Worse | FigureChange::Better if !apart => FigureChange::Within,
            other => other,
        };
        FigureRow {
            key,
            old,
            new,
            change,
        }
    };
    keys.into_iter().map(row).collect()
}

/// Whether two figures differ by more than the samples of each among themselves: the middle halves
/// of their samples do not overlap. A single sample has no spread, so it is taken at its word.
fn are_apart(old: Option<&Summary>, new: Option<&Summary>) -> bool {
    let half = |summary: &Summary| {
        let quartile = |percent| percentile(&summary.sorted, percent);
        (summary.count() > 1).then_some((quartile(25_000), quartile(75_000)))
    };
    match (old.and_then(half), new.and_then(half)) {
        (Some((old_low, old_high)), Some((new_low, new_high))) => {
            old_high < new_low || new_high < old_low
        }
        _ => true,
    }
}

/// Whether more of it is better: rates, but for work that is done while nobody asks.
fn more_is_better(name: &str) -> bool {
    name == "from_pool" || name.ends_with("_per_s") && !name.ends_with("_work_per_s")
}

fn change(name: &str, old: &FigureState, new: &FigureState, limit: u64) -> FigureChange {
    match (old, new) {
        (FigureState::Failed, _) | (_, FigureState::Failed) => FigureChange::Failed,
        (FigureState::Measured(old, ..), FigureState::Measured(new, ..)) => {
            let grown = |from: u64, to: u64| {
                u128::from(to) * u128::from(WHOLE) > u128::from(from) * u128::from(WHOLE + limit)
            };
            let (more, less) = (grown(*old, *new), grown(*new, *old));
            match (more, less, more_is_better(name)) {
                _ if GIVEN.contains(&name) => FigureChange::Within,
                (true, _, false) | (_, true, true) => FigureChange::Worse,
                (_, true, false) | (true, _, true) => FigureChange::Better,
                (false, false, _) => FigureChange::Within,
            }
        }
        _ => FigureChange::NotMeasured,
    }
}

impl FigureState {
    fn told(&self, name: &str) -> String {
        match self {
            Self::Measured(median, good, tried) if good == tried => human(name, *median),
            Self::Measured(median, good, tried) => {
                format!("{} ({good}/{tried})", human(name, *median))
            }
            Self::Failed => "failed".into(),
            Self::NotMeasured => "not measured".into(),
        }
    }
}

impl FigureRow {
    /// Whether it counts for the verdict: our own, where instructions are counted.
    fn is_judged(&self) -> bool {
        self.key.0 == COUNTED && self.key.2 == OURS
    }

    /// Whether it fails the comparison: it got worse, or cannot be measured any more.
    fn is_bad(&self) -> bool {
        let lost = self.new == FigureState::Failed && self.old != FigureState::Failed;
        self.is_judged() && (self.change == FigureChange::Worse || lost)
    }

    /// The new figure in thousandths of the old one.
    fn ratio(&self) -> String {
        let (FigureState::Measured(old, ..), FigureState::Measured(new, ..)) =
            (&self.old, &self.new)
        else {
            return "-".into();
        };
        match (u128::from(*new) * 1000).checked_div(u128::from(*old)) {
            Some(ratio) => format!("{}.{:03}", ratio / 1000, ratio % 1000),
            None if *new == 0 => "1.000".into(),
            None => "from 0".into(),
        }
    }

    fn scenario(&self) -> String {
        let (_, scenario, engine, _) = &self.key;
        if engine == OURS {
            scenario.clone()
        } else {
            format!("{scenario} ({engine})")
        }
    }

    fn name(&self) -> String {
        let value = if self.key.3.is_empty() {
            "all"
        } else {
            &self.key.3
        };
        format!("{} {} {value}", self.key.0, self.scenario())
    }

    fn mark(&self) -> &'static str {
        match (self.change, self.is_judged()) {
            (FigureChange::Worse, true) => "WORSE",
            (FigureChange::Worse, false) => "(worse)",
            (FigureChange::Better, true) => "better",
            (FigureChange::Better, false) => "(better)",
            _ if self.is_bad() => "FAILED",
            _ => "",
        }
    }

    fn line(&self, widths: (usize, usize)) -> String {
        let (place, _, _, value) = &self.key;
        let (old, new) = (self.old.told(value), self.new.told(value));
        let (scenario, ratio, mark) = (self.scenario(), self.ratio(), self.mark());
        let value = if value.is_empty() { "all" } else { value };
        let (left, right) = widths;
        let line = format!(
            "{place:<8} {scenario:<left$} {value:<right$} {old:>24} {new:>24} {ratio:>8} {mark}"
        );
        line.trim_end().into()
    }
}

pub(crate) fn run(args: &CompareArgs) -> Result<ExitCode> {
    let read = |path: &PathBuf| {
        let records = record::read(path)?;
        let there = !records.is_empty();
        ensure!(there, "There are no records in {}", path.display());
        Ok(FigureSet::new(&records))
    };
    let (old, new) = (read(&args.old)?, read(&args.new)?);
    let rows = rows(&old, &new, args.limit);
    let longest = |text: fn(&FigureRow) -> String| rows.iter().map(|row| text(row).len()).max();
    let widths = (
        longest(FigureRow::scenario).unwrap_or(0),
        longest(|row| row.key.3.clone()).unwrap_or(0),
    );
    rows.iter().for_each(|row| say(&row.line(widths)));
    for ((place, scenario, engine), [before, now]) in lost_samples(&old, &new) {
        say(&format!(
            "failed samples: {place} {scenario} ({engine}): {} of {} in OLD, {} of {} in NEW",
            before.0, before.1, now.0, now.1
        ));
    }
    summary(&rows, args.limit).iter().for_each(|line| say(line));
    Ok(if rows.iter().any(FigureRow::is_bad) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Samples that failed, and those tried, on both sides: of scenarios with such samples on either.
fn lost_samples(old: &FigureSet, new: &FigureSet) -> Vec<(ScenarioName, [(u64, u64); 2])> {
    let keys: BTreeSet<_> = old.tried.keys().chain(new.tried.keys()).collect();
    let of = |set: &FigureSet, key: &[String; 3]| {
        let (good, tried) = set.tried.get(key).copied().unwrap_or_default();
        (tried - good, tried)
    };
    let both = keys
        .into_iter()
        .map(|key| (key, [of(old, key), of(new, key)]));
    let lost = both.filter(|(_, sides)| sides.iter().any(|(failed, _)| *failed > 0));
    let named =
        |[place, scenario, engine]: &[String; 3]| (place.clone(), scenario.clone(), engine.clone());
    lost.map(|(key, sides)| (named(key), sides)).collect()
}

/// Lists by name, and the count of everything.
fn summary(rows: &[FigureRow], limit: u64) -> Vec<String> {
    let limit = format!("{}.{:02} %", limit / 100, limit % 100);
    let mut lines = Vec::new();
    let mut list = |title: String, wanted: &dyn Fn(&FigureRow) -> bool, with_ratio: bool| {
        let names: Vec<_> = rows.iter().filter(|row| wanted(row)).collect();
        if !names.is_empty() {
            lines.push(format!("{title}:"));
        }
        for row in names {
            let ratio = if with_ratio {
                format!(" {}", row.ratio())
            } else {
                String::new()
            };
            lines.push(format!("  {}{ratio}", row.name()));
        }
    };
    let of = |change: FigureChange| move |row: &FigureRow| row.is_judged() && row.change == change;
    list(
        format!("worse by more than {limit}"),
        &of(FigureChange::Worse),
        true,
    );
    list(
        format!("better by more than {limit}"),
        &of(FigureChange::Better),
        true,
    );
    for (title, state) in [
        ("failed", FigureState::Failed),
        ("not measured", FigureState::NotMeasured),
    ] {
        list(
            format!("{title} in OLD"),
            &|row: &FigureRow| row.old == state,
            false,
        );
        list(
            format!("{title} in NEW"),
            &|row: &FigureRow| row.new == state,
            false,
        );
    }
    let judged: Vec<_> = rows.iter().filter(|row| row.is_judged()).collect();
    let count = |change| judged.iter().filter(|row| row.change == change).count();
    lines.push(format!(
        "compare: {} counted figures: {} worse, {} better, {} within {limit}, {} failed, {} not \
         measured; \
         {} others for information",
        judged.len(),
        count(FigureChange::Worse),
        count(FigureChange::Better),
        count(FigureChange::Within),
        count(FigureChange::Failed),
        count(FigureChange::NotMeasured),
        rows.len() - judged.len()
    ));
    lines
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::record::SCHEMA;

    fn record(place: &str, scenario: &str, value: Option<(&str, u64)>) -> Record {
        Record {
            schema: SCHEMA,
            place: place.into(),
            scenario: scenario.into(),
            engine: OURS.into(),
            sample: 0,
            at_ns: 0,
            ok: value.is_some(),
            verified: String::new(),
            error: None,
            values: value
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }

    fn compare(old: &[Record], new: &[Record]) -> Vec<FigureRow> {
        rows(&FigureSet::new(old), &FigureSet::new(new), 200)
    }

    #[test]
    fn what_differs_as_much_from_itself_is_the_same() {
        let change = |old: &[u64], new: &[u64]| {
            let records = |values: &[u64]| -> Vec<_> {
                let of = |value: &u64| record(COUNTED, "x", Some(("exec_insns", *value)));
                values.iter().map(of).collect()
            };
            compare(&records(old), &records(new))[0].change
        };
        assert_eq!(change(&[1000, 1100], &[1090, 1200]), FigureChange::Within);
        assert_eq!(change(&[1000, 1010], &[1090, 1200]), FigureChange::Worse);
        assert_eq!(change(&[1090, 1200], &[1000, 1010]), FigureChange::Better);
        assert_eq!(change(&[1000], &[1090, 1200]), FigureChange::Worse);
        // One sample that is far off hides nothing.
        let (old, new) = (
            [1000, 1001, 1002, 1003, 1900],
            [1100, 1101, 1102, 1103, 1104],
        );
        assert_eq!(change(&old, &new), FigureChange::Worse);
    }

    #[test]
    fn two_per_cent_are_the_same_and_more_are_not() {
        for (name, new, change) in [
            ("exec_insns", 1020, FigureChange::Within),
            ("exec_insns", 1021, FigureChange::Worse),
            ("exec_insns", 981, FigureChange::Within),
            ("exec_insns", 980, FigureChange::Better),
            ("cycles_per_s", 980, FigureChange::Worse),
            ("cycles_per_s", 1021, FigureChange::Better),
            ("idle_work_per_s", 1021, FigureChange::Worse),
            ("from_pool", 900, FigureChange::Worse),
            ("clones", 5000, FigureChange::Within),
        ] {
            let old = [record(COUNTED, "x", Some((name, 1000)))];
            let rows = compare(&old, &[record(COUNTED, "x", Some((name, new)))]);
            assert_eq!((rows.len(), rows[0].change), (1, change), "{name} {new}");
            assert_eq!(rows[0].is_bad(), change == FigureChange::Worse);
        }
        let none = |new| {
            compare(
                &[record(COUNTED, "x", Some(("left", 0)))],
                &[record(COUNTED, "x", Some(("left", new)))],
            )
        };
        assert_eq!(
            (none(0)[0].change, none(1)[0].change),
            (FigureChange::Within, FigureChange::Worse)
        );
        assert_eq!(
            (none(0)[0].ratio(), none(1)[0].ratio()),
            ("1.000".into(), "from 0".into())
        );
    }

    #[test]
    fn only_our_counted_figures_are_judged() {
        let pair = |place: &str, engine: &str| {
            let with = |value| Record {
                engine: engine.into(),
                ..record(place, "x", Some(("a_ns", value)))
            };
            compare(&[with(100)], &[with(200)]).remove(0)
        };
        assert!(pair(COUNTED, OURS).is_bad());
        for row in [
            pair(record::UNCOUNTED, OURS),
            pair(record::BASELINE, OURS),
            pair(COUNTED, "qemu"),
        ] {
            assert_eq!((row.change, row.mark()), (FigureChange::Worse, "(worse)"));
            assert!(!row.is_bad() && row.ratio() == "2.000");
        }
    }

    #[test]
    fn failed_and_not_measured_are_two_things() {
        let (good, failed) = (
            record(COUNTED, "x", Some(("a", 1))),
            record(COUNTED, "x", None),
        );
        let row = |old: &[Record], new: &[Record]| compare(old, new).remove(0);
        let gone = row(std::slice::from_ref(&good), &[]);
        assert_eq!(
            (gone.change, gone.is_bad()),
            (FigureChange::NotMeasured, false)
        );
        let broken = row(std::slice::from_ref(&good), std::slice::from_ref(&failed));
        assert_eq!(
            (broken.change, broken.is_bad(), broken.mark()),
            (FigureChange::Failed, true, "FAILED")
        );
        let mended = row(std::slice::from_ref(&failed), std::slice::from_ref(&good));
        assert_eq!(
            (mended.change, mended.is_bad()),
            (FigureChange::Failed, false)
        );
        let both = compare(std::slice::from_ref(&failed), std::slice::from_ref(&failed));
        assert_eq!(both.len(), 1, "{both:?}");
        assert!(!both[0].is_bad() && both[0].name() == "lab x all");
        let text = summary(&[gone, broken, mended], 200).join("\n");
        for line in [
            "not measured in NEW:",
            "failed in NEW:",
            "failed in OLD:",
            "2 failed, 1 not measured",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("not measured in OLD"), "{text}");
        let lost = lost_samples(
            &FigureSet::new(std::slice::from_ref(&good)),
            &FigureSet::new(&[good.clone(), failed.clone()]),
        );
        assert_eq!(lost.len(), 1);
        assert_eq!((lost[0].0.1.as_str(), lost[0].1), ("x", [(0, 1), (1, 2)]));
        let some = row(
            std::slice::from_ref(&good),
            &[good.clone(), failed, good.clone()],
        );
        assert!(
            some.line((1, 1)).contains("1 (2/3)"),
            "{}",
            some.line((1, 1))
        );
    }

    #[test]
    fn limits_are_per_cent() {
        for (text, limit) in [("2", 200), ("0.5", 50), ("12.25", 1225), ("0", 0)] {
            assert_eq!(hundredths(text), Ok(limit), "{text}");
        }
        for text in ["", "-1", "2.125", "x", "2,5", "1e3"] {
            hundredths(text).unwrap_err();
        }
    }

    #[test]
    fn folders_and_files_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value| {
            let line =
                serde_json::to_string(&record(COUNTED, "x", Some(("a_insns", value)))).unwrap();
            std::fs::write(folder.path().join(name), line + "\n").unwrap();
            folder.path().join(name)
        };
        let (old, new) = (write("old.jsonl", 1000), write("new.jsonl", 1100));
        let code = |old: &PathBuf, new: &PathBuf, limit| {
            run(&CompareArgs {
                old: old.clone(),
                new: new.clone(),
                limit,
            })
            .unwrap()
        };
        assert_eq!(code(&old, &new, 200), ExitCode::FAILURE);
        assert_eq!(code(&old, &new, 1000), ExitCode::SUCCESS);
        assert_eq!(code(&new, &old, 200), ExitCode::SUCCESS);
        let whole = folder.path().to_path_buf();
        assert_eq!(code(&whole, &whole, 0), ExitCode::SUCCESS);
        let empty = tempfile::tempdir().unwrap();
        let args = CompareArgs {
            old: empty.path().into(),
            new: whole,
            limit: 200,
        };
        let error = run(&args).unwrap_err();
        assert!(error.to_string().starts_with("There are no records in"));
    }
}
