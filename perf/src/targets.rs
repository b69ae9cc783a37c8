//! Figures against targets: one line each, and never silence about a target that was not measured.

use crate::definition::{self, TargetDefinition};
use crate::output::say;
use crate::record::{self, Record};
use crate::statistics::Summary;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct TargetArgs {
    /// The folder with the raw records
    #[arg(long)]
    results: PathBuf,
    /// A folder of definitions instead of our own
    #[arg(long)]
    definitions: Option<PathBuf>,
}

/// What became of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetVerdict {
    /// The figure is as good as the target or better.
    Met(u64),
    /// It is not.
    Missed(u64),
    /// It was tried, and no sample succeeded: the first failure.
    Failed(String),
    /// Nothing gives the figure here, for this reason. That is no failure.
    NotMeasured(String),
}

/// A target and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct JudgedTarget {
    /// The target.
    pub(crate) target: TargetDefinition,
    /// What became of it.
    pub(crate) verdict: TargetVerdict,
    /// Samples with a value, and samples that were tried.
    pub(crate) samples: (u64, u64),
    /// Of a ratio: the figure, and what it is divided by.
    pub(crate) pair: Option<(u64, u64)>,
}

/// Fails if a target was missed, or if what was tried failed; not if nothing gives a figure.
pub(crate) fn run(args: &TargetArgs) -> Result<ExitCode> {
    let targets = definition::targets(args.definitions.as_deref())?;
    let records = record::read_folder(&args.results)?;
    let judged = judge(&targets.target, &records);
    judged.iter().for_each(|j| say(&j.line()));
    summary(&judged, &records).iter().for_each(|line| say(line));
    let bad = judged.iter().any(|j| j.is_missed() || j.is_failed());
    Ok(if bad {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What is not met, by name and apart, and how many of each there are.
pub(crate) fn summary(judged: &[JudgedTarget], records: &[Record]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut count = |word: &str, of: fn(&JudgedTarget) -> bool| {
        let names: Vec<_> = judged
            .iter()
            .filter(|j| of(j))
            .map(JudgedTarget::name)
            .collect();
        if !names.is_empty() && word != "met" {
            lines.push(format!("{word}: {}", names.join("; ")));
        }
        names.len()
    };
    let met = count("met", |j| matches!(j.verdict, TargetVerdict::Met(_)));
    let missed = count("missed", JudgedTarget::is_missed);
    let failed = count("failed", JudgedTarget::is_failed);
    let unmeasured = count("not measured", |j| {
        matches!(j.verdict, TargetVerdict::NotMeasured(_))
    });
    let lost = failed_samples(records);
    if !lost.is_empty() {
        lines.push(format!("failed samples: {}", lost.join("; ")));
    }
    lines.push(format!(
        "targets: {met} met, {missed} missed, {failed} failed, {unmeasured} not measured"
    ));
    lines
}

/// Scenarios with samples that failed, and how many.
fn failed_samples(records: &[Record]) -> Vec<String> {
    let mut counts: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for record in records {
        let of = counts.entry((&record.place, &record.scenario, &record.engine));
        let (failed, tried) = of.or_default();
        *failed += u64::from(!record.ok);
        *tried += 1;
    }
    let failed = counts.into_iter().filter(|(_, (failed, _))| *failed > 0);
    let told = failed.map(|((place, scenario, engine), (failed, tried))| {
        format!("{place} {scenario} ({engine}) {failed} of {tried}")
    });
    told.collect()
}

/// The values of one name in an engine's samples of a place's scenario.
pub(crate) fn values(
    records: &[Record],
    engine: &str,
    (place, scenario): (&str, &str),
    value: &str,
) -> Summary {
    let of = |r: &&Record| r.engine == engine && r.place == place && r.scenario == scenario;
    let tried = records.iter().filter(of).count();
    let good = records.iter().filter(of).filter(|r| r.ok);
    let values = good.filter_map(|r| r.values.get(value).copied());
    Summary::new(values.collect(), u64::try_from(tried).unwrap_or(u64::MAX))
}

/// Holds every target against the records.
pub(crate) fn judge(targets: &[TargetDefinition], records: &[Record]) -> Vec<JudgedTarget> {
    let judge = |target: &TargetDefinition| {
        let of = |engine: &str, scenario: &str| {
            values(records, engine, (&target.place, scenario), &target.value)
        };
        let figure_of = |summary: &Summary| target.statistic.and_then(|s| summary.get(s));
        let summary = of(&target.engine, &target.scenario);
        let own = figure_of(&summary);
        let other = target
            .over
            .as_ref()
            .map(|o| figure_of(&of(&o.engine, &o.scenario)));
        let pair = own.zip(other.flatten());
        let figure = match other {
            None => own,
            Some(_) => pair.and_then(|(own, other)| permille(own, other, target.at_least)),
        };
        let good = |figure| {
            if target.at_least {
                figure >= target.limit
            } else {
                figure <= target.limit
            }
        };
        let verdict = match figure {
            Some(figure) if good(figure) => TargetVerdict::Met(figure),
            Some(figure) => TargetVerdict::Missed(figure),
            None => without_figure(target, records),
        };
        JudgedTarget {
            target: target.clone(),
            verdict,
            samples: (summary.count(), summary.tried),
            pair,
        }
    };
    targets.iter().map(judge).collect()
}

/// Why a target has no figure: its own scenario's reason, or that of the one it is divided by.
fn without_figure(target: &TargetDefinition, records: &[Record]) -> TargetVerdict {
    if let Some(why) = &target.missing {
        return TargetVerdict::NotMeasured(why.clone());
    }
    let own = (target.engine.as_str(), target.scenario.as_str());
    let other = target.over.as_ref();
    let other = other.map(|o| (o.engine.as_str(), o.scenario.as_str()));
    let mut not_measured = None;
    for (engine, scenario) in [Some(own), other].into_iter().flatten() {
        let of =
            |r: &&Record| r.place == target.place && r.engine == engine && r.scenario == scenario;
        let tried: Vec<_> = records.iter().filter(of).collect();
        let has_it = tried
            .iter()
            .any(|r| r.ok && r.values.contains_key(&target.value));
        let none_good = tried.iter().all(|r| !r.ok);
        let what = format!("{scenario} ({engine})");
        if let (true, Some(first)) = (none_good, tried.first()) {
            let error = first.error.as_deref().unwrap_or("no reason given");
            return TargetVerdict::Failed(format!("all {} of {what}: {error}", tried.len()));
        }
        if !has_it && not_measured.is_none() {
            not_measured = Some(match tried.len() {
                0 => format!("{what} not run"),
                _ => format!("{what} does not show it on this machine"),
            });
        }
    }
    TargetVerdict::NotMeasured(not_measured.unwrap_or_else(|| "nothing to divide by".into()))
}

/// The first in thousandths of the second, rounded to the worse side.
fn permille(figure: u64, of: u64, at_least: bool) -> Option<u64> {
    let (scaled, of) = (u128::from(figure) * 1000, u128::from(of));
    let down = scaled.checked_div(of)?;
    let up = u128::from(!at_least && scaled % of > 0);
    (down + up).try_into().ok()
}

impl JudgedTarget {
    /// What a figure's unit is told by.
    fn unit(&self) -> &str {
        match self.target.over {
            Some(_) => "_permille",
            None => &self.target.value,
        }
    }

    /// The target as text.
    pub(crate) fn limit(&self) -> String {
        human(self.unit(), self.target.limit)
    }

    /// Where and what.
    fn name(&self) -> String {
        format!("{} {}", self.target.place, self.target.what)
    }

    /// Whether there is a figure and it is too bad.
    pub(crate) fn is_missed(&self) -> bool {
        matches!(self.verdict, TargetVerdict::Missed(_))
    }

    /// Whether it was tried in vain.
    pub(crate) fn is_failed(&self) -> bool {
        matches!(self.verdict, TargetVerdict::Failed(_))
    }

    /// The figure's part of the target, in hundredths: up to 100 is met, unless more is better.
    pub(crate) fn ratio(&self) -> Option<String> {
        match self.verdict {
            TargetVerdict::Met(figure) | TargetVerdict::Missed(figure) => {
                let hundredths = u128::from(figure) * 100 / u128::from(self.target.limit.max(1));
                Some(format!("{}.{:02}", hundredths / 100, hundredths % 100))
            }
            TargetVerdict::Failed(_) | TargetVerdict::NotMeasured(_) => None,
        }
    }

    /// The figure and how many samples it is of; why there is none.
    pub(crate) fn figure(&self) -> String {
        match &self.verdict {
            TargetVerdict::Failed(why) | TargetVerdict::NotMeasured(why) => why.clone(),
            TargetVerdict::Met(figure) | TargetVerdict::Missed(figure) => {
                let statistic = self.target.statistic.map_or("", |s| s.name());
                let figure = human(self.unit(), *figure);
                let pair = self.pair.map_or_else(String::new, |(own, other)| {
                    let name = &self.target.value;
                    format!(" ({} over {})", human(name, own), human(name, other))
                });
                let (good, tried) = self.samples;
                format!("{statistic} {figure}{pair} of {good}/{tried}")
            }
        }
    }

    /// What became of it, in a word or two.
    pub(crate) fn word(&self) -> String {
        let word = match self.verdict {
            TargetVerdict::Met(_) => "met",
            TargetVerdict::Missed(_) => "MISSED",
            TargetVerdict::Failed(_) => "FAILED",
            TargetVerdict::NotMeasured(_) => "not measured",
        };
        word.into()
    }

    /// One line for people and for `grep`.
    pub(crate) fn line(&self) -> String {
        let limit = self.limit();
        let relation = if self.target.at_least { ">=" } else { "<=" };
        let head = format!("{:<8} {}", self.target.place, self.target.what);
        let (figure, word) = (self.figure(), self.word());
        match self.ratio() {
            None => format!("{head}: {word} ({figure}); target {relation} {limit}"),
            Some(ratio) => {
                format!(
                    "{head}: {figure} samples; target {relation} {limit}; ratio {ratio}; {word}"
                )
            }
        }
    }
}

/// A figure with the unit that its name ends in.
pub(crate) fn human(name: &str, figure: u64) -> String {
    let thousandths = |per: u64, unit: &str| {
        let scaled = u128::from(figure) * 1000 / u128::from(per);
        format!("{}.{:03} {unit}", scaled / 1000, scaled % 1000)
    };
    match name {
        n if n.ends_with("_ns") => thousandths(1_000_000, "ms"),
        n if n.ends_with("_insns") => thousandths(1_000_000, "M instructions"),
        n if n.ends_with("_kib") => thousandths(1024, "MiB"),
        n if n.ends_with("_permille") => thousandths(1000, "×"),
        n if n.ends_with("_per_s") => format!("{figure}/s"),
        _ => figure.to_string(),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::definition::ReferenceFigure;
    use crate::record::{BASELINE, SCHEMA};
    use crate::statistics::Statistic;

    fn target() -> TargetDefinition {
        TargetDefinition {
            what: "claim".into(),
            engine: "hatchery".into(),
            place: BASELINE.into(),
            scenario: "claim".into(),
            value: "entry_ns".into(),
            statistic: Some(Statistic::P50),
            limit: 300_000,
            at_least: false,
            over: None,
            peer: String::new(),
            missing: None,
        }
    }

    fn record(place: &str, ok: bool, entry_ns: u64) -> Record {
        Record {
            schema: SCHEMA,
            place: place.into(),
            scenario: "claim".into(),
            engine: "hatchery".into(),
            sample: 0,
            at_ns: 0,
            ok,
            verified: String::new(),
            error: None,
            values: [("entry_ns".to_owned(), entry_ns)].into(),
        }
    }

    fn verdict(target: &TargetDefinition, records: &[Record]) -> TargetVerdict {
        judge(std::slice::from_ref(target), records)
            .remove(0)
            .verdict
    }

    #[test]
    fn a_target_is_about_good_samples_of_its_own_place() {
        let records = [
            record(BASELINE, true, 300_000),
            record(BASELINE, false, 1),
            record("lab", true, 900_000),
        ];
        assert_eq!(verdict(&target(), &records), TargetVerdict::Met(300_000));
        let judged = judge(&[target()], &records).remove(0);
        assert_eq!(judged.samples, (1, 2));
        assert!(
            judged.line().ends_with("ratio 1.00; met"),
            "{}",
            judged.line()
        );
        let worse = [record(BASELINE, true, 300_001)];
        assert_eq!(verdict(&target(), &worse), TargetVerdict::Missed(300_001));
    }

    #[test]
    fn more_can_be_better() {
        let target = TargetDefinition {
            at_least: true,
            ..target()
        };
        let less = [record(BASELINE, true, 299_999)];
        assert_eq!(verdict(&target, &less), TargetVerdict::Missed(299_999));
        let enough = [record(BASELINE, true, 300_000)];
        assert_eq!(verdict(&target, &enough), TargetVerdict::Met(300_000));
    }

    #[test]
    fn a_target_can_be_of_a_ratio() {
        let target = TargetDefinition {
            over: Some(ReferenceFigure {
                engine: "peer".into(),
                scenario: "build".into(),
            }),
            limit: 1300,
            ..target()
        };
        let mut one = record(BASELINE, true, 100);
        (one.scenario, one.engine) = ("build".into(), "peer".into());
        let both = [one, record(BASELINE, true, 130)];
        assert_eq!(verdict(&target, &both), TargetVerdict::Met(1300));
        let judged = &judge(std::slice::from_ref(&target), &both)[0];
        let figure = "1.300 × (0.000 ms over 0.000 ms) of 1/1 samples";
        assert!(judged.line().contains(figure), "{}", judged.line());
        let worse = [both[0].clone(), record(BASELINE, true, 131)];
        assert_eq!(verdict(&target, &worse), TargetVerdict::Missed(1310));
        assert!(matches!(
            verdict(&target, &both[1..]),
            TargetVerdict::NotMeasured(_)
        ));
        assert_eq!(
            permille(1, 3, false),
            Some(334),
            "no target is met by rounding"
        );
        assert_eq!(permille(2, 3, true), Some(666));
    }

    #[test]
    fn not_measured_and_failed_are_two_things() {
        let told = |records: &[Record], target: &TargetDefinition| match verdict(target, records) {
            TargetVerdict::NotMeasured(why) => ("not measured", why),
            TargetVerdict::Failed(why) => ("failed", why),
            other => panic!("{other:?}"),
        };
        let failed = Record {
            error: Some("no answer".into()),
            values: BTreeMap::new(),
            ..record(BASELINE, false, 1)
        };
        let blind = Record {
            values: BTreeMap::new(),
            ..record(BASELINE, true, 1)
        };
        let of_ratio = TargetDefinition {
            over: Some(ReferenceFigure {
                engine: "peer".into(),
                scenario: "claim".into(),
            }),
            ..target()
        };
        let missing = TargetDefinition {
            missing: Some("not built".into()),
            ..target()
        };
        let peers = Record {
            engine: "peer".into(),
            ..failed.clone()
        };
        let good = record(BASELINE, true, 1);
        for (records, target, word, why) in [
            (vec![], target(), "not measured", "claim (hatchery) not run"),
            (
                vec![blind],
                target(),
                "not measured",
                "claim (hatchery) does not show it on this machine",
            ),
            (
                vec![failed],
                target(),
                "failed",
                "all 1 of claim (hatchery): no answer",
            ),
            (vec![], missing, "not measured", "not built"),
            (
                vec![good.clone()],
                of_ratio.clone(),
                "not measured",
                "claim (peer) not run",
            ),
            (
                vec![good, peers],
                of_ratio,
                "failed",
                "all 1 of claim (peer): no answer",
            ),
        ] {
            assert_eq!(told(&records, &target), (word, why.to_owned()));
        }
    }

    #[test]
    fn all_four_are_counted_and_named_apart() {
        let named = |scenario: &str| TargetDefinition {
            what: scenario.into(),
            scenario: scenario.into(),
            ..target()
        };
        let of = |scenario: &str, ok, value| Record {
            scenario: scenario.into(),
            ..record(BASELINE, ok, value)
        };
        let records = [
            of("good", true, 1),
            of("good", false, 1),
            of("slow", true, 300_001),
            of("broken", false, 1),
        ];
        let targets = ["good", "slow", "broken", "absent"].map(named);
        let text = summary(&judge(&targets, &records), &records).join("\n");
        assert_eq!(
            text,
            "missed: baseline slow\nfailed: baseline broken\nnot measured: baseline absent\n\
             failed samples: baseline broken (hatchery) 1 of 1; baseline good (hatchery) 1 of 2\n\
             targets: 1 met, 1 missed, 1 failed, 1 not measured"
        );
    }

    #[test]
    fn figures_have_the_unit_of_their_name() {
        assert_eq!(human("entry_ns", 1_234_567), "1.234 ms");
        assert_eq!(human("exec_insns", 1_210_000), "1.210 M instructions");
        assert_eq!(human("warm_vm_kib", 1536), "1.500 MiB");
        assert_eq!(human("cycles_per_s", 812), "812/s");
        assert_eq!(human("processes", 3), "3");
    }
}
