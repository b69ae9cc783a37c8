//! Figures against bars: one line each, and never silence about a bar that was not measured.

use crate::definition::{self, Bar};
use crate::output::say;
use crate::record::{self, Record};
use crate::statistics::Summary;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder with the raw records
    #[arg(long)]
    results: PathBuf,
    /// A folder of definitions instead of our own
    #[arg(long)]
    definitions: Option<PathBuf>,
}

/// What became of a bar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The figure is as good as the bar or better.
    Met(u64),
    /// It is not.
    Missed(u64),
    /// There is no figure, for this reason.
    NotMeasured(String),
}

/// A bar and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    /// The bar.
    pub(crate) bar: Bar,
    /// What became of it.
    pub(crate) verdict: Verdict,
    /// Samples with a value, and samples that were tried.
    pub(crate) samples: (u64, u64),
    /// Of a ratio: the figure, and what it is divided by.
    pub(crate) pair: Option<(u64, u64)>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let bars = definition::bars(args.definitions.as_deref())?;
    let records = record::read_folder(&args.results)?;
    let judged = judge(&bars.bar, &records);
    judged.iter().for_each(|j| say(&j.line()));
    let missed = judged.iter().filter(|j| j.missed()).count();
    let unmeasured = judged.iter().filter(|j| j.unmeasured()).count();
    say(&format!(
        "bars: {} met, {missed} missed, {unmeasured} not measured",
        judged.len() - missed - unmeasured
    ));
    Ok(if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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

/// Holds every bar against the records.
pub(crate) fn judge(bars: &[Bar], records: &[Record]) -> Vec<Judged> {
    let judge = |bar: &Bar| {
        let of = |engine: &str, scenario: &str| {
            values(records, engine, (&bar.place, scenario), &bar.value)
        };
        let figure_of = |summary: &Summary| bar.statistic.and_then(|s| summary.get(s));
        let summary = of(&bar.engine, &bar.scenario);
        let own = figure_of(&summary);
        let other = bar
            .over
            .as_ref()
            .map(|o| figure_of(&of(&o.engine, &o.scenario)));
        let pair = own.zip(other.flatten());
        let figure = match other {
            None => own,
            Some(_) => pair.and_then(|(own, other)| permille(own, other, bar.at_least)),
        };
        let good = |figure| {
            if bar.at_least {
                figure >= bar.bar
            } else {
                figure <= bar.bar
            }
        };
        let verdict = match (figure, &bar.missing) {
            (Some(figure), _) if good(figure) => Verdict::Met(figure),
            (Some(figure), _) => Verdict::Missed(figure),
            (None, Some(why)) => Verdict::NotMeasured(why.clone()),
            (None, None) if summary.tried > 0 => {
                let tried = summary.tried;
                Verdict::NotMeasured(format!(
                    "none of {tried} samples has it: it failed, or this machine does not show it"
                ))
            }
            (None, None) => Verdict::NotMeasured("not run".into()),
        };
        Judged {
            bar: bar.clone(),
            verdict,
            samples: (summary.count(), summary.tried),
            pair,
        }
    };
    bars.iter().map(judge).collect()
}

/// The first in thousandths of the second, rounded to the worse side.
fn permille(figure: u64, of: u64, at_least: bool) -> Option<u64> {
    let (scaled, of) = (u128::from(figure) * 1000, u128::from(of));
    let down = scaled.checked_div(of)?;
    let up = u128::from(!at_least && scaled % of > 0);
    (down + up).try_into().ok()
}

impl Judged {
    /// What a figure's unit is told by.
    fn unit(&self) -> &str {
        match self.bar.over {
            Some(_) => "_permille",
            None => &self.bar.value,
        }
    }

    /// The bar as text.
    pub(crate) fn limit(&self) -> String {
        human(self.unit(), self.bar.bar)
    }

    /// Whether there is a figure and it is too bad.
    pub(crate) fn missed(&self) -> bool {
        matches!(self.verdict, Verdict::Missed(_))
    }

    /// Whether there is no figure.
    pub(crate) fn unmeasured(&self) -> bool {
        matches!(self.verdict, Verdict::NotMeasured(_))
    }

    /// The figure's part of the bar, in hundredths: up to 100 is met, unless more is better.
    pub(crate) fn ratio(&self) -> Option<String> {
        match self.verdict {
            Verdict::Met(figure) | Verdict::Missed(figure) => {
                let hundredths = u128::from(figure) * 100 / u128::from(self.bar.bar.max(1));
                Some(format!("{}.{:02}", hundredths / 100, hundredths % 100))
            }
            Verdict::NotMeasured(_) => None,
        }
    }

    /// The figure and how many samples it is of; why there is none.
    pub(crate) fn figure(&self) -> String {
        match &self.verdict {
            Verdict::NotMeasured(why) => why.clone(),
            Verdict::Met(figure) | Verdict::Missed(figure) => {
                let statistic = self.bar.statistic.map_or("", |s| s.name());
                let figure = human(self.unit(), *figure);
                let pair = self.pair.map_or_else(String::new, |(own, other)| {
                    let name = &self.bar.value;
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
            Verdict::Met(_) => "met",
            Verdict::Missed(_) => "MISSED",
            Verdict::NotMeasured(_) => "not measured",
        };
        word.into()
    }

    /// One line for people and for `grep`.
    pub(crate) fn line(&self) -> String {
        let bar = &self.bar;
        let limit = self.limit();
        let relation = if bar.at_least { ">=" } else { "<=" };
        let head = format!("{:<5} {}", bar.place, bar.what);
        match &self.verdict {
            Verdict::NotMeasured(why) => {
                format!("{head}: not measured ({why}); bar {relation} {limit}")
            }
            Verdict::Met(_) | Verdict::Missed(_) => {
                let word = if self.missed() { "MISSED" } else { "met" };
                let ratio = self.ratio().unwrap_or_default();
                let figure = self.figure();
                format!("{head}: {figure} samples; bar {relation} {limit}; ratio {ratio}; {word}")
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
    use crate::definition::Other;
    use crate::record::SCHEMA;
    use crate::statistics::Statistic;

    fn bar() -> Bar {
        Bar {
            what: "claim".into(),
            engine: "hatchery".into(),
            place: "floor".into(),
            scenario: "claim".into(),
            value: "entry_ns".into(),
            statistic: Some(Statistic::P50),
            bar: 300_000,
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

    fn verdict(bar: &Bar, records: &[Record]) -> Verdict {
        judge(std::slice::from_ref(bar), records).remove(0).verdict
    }

    #[test]
    fn a_bar_is_about_good_samples_of_its_own_place() {
        let records = [
            record("floor", true, 300_000),
            record("floor", false, 1),
            record("lab", true, 900_000),
        ];
        assert_eq!(verdict(&bar(), &records), Verdict::Met(300_000));
        let judged = judge(&[bar()], &records).remove(0);
        assert_eq!(judged.samples, (1, 2));
        assert!(
            judged.line().ends_with("ratio 1.00; met"),
            "{}",
            judged.line()
        );
        let worse = [record("floor", true, 300_001)];
        assert_eq!(verdict(&bar(), &worse), Verdict::Missed(300_001));
    }

    #[test]
    fn more_can_be_better() {
        let bar = Bar {
            at_least: true,
            ..bar()
        };
        let less = [record("floor", true, 299_999)];
        assert_eq!(verdict(&bar, &less), Verdict::Missed(299_999));
        let enough = [record("floor", true, 300_000)];
        assert_eq!(verdict(&bar, &enough), Verdict::Met(300_000));
    }

    #[test]
    fn a_bar_can_be_of_a_ratio() {
        let bar = Bar {
            over: Some(Other {
                engine: "peer".into(),
                scenario: "build".into(),
            }),
            bar: 1300,
            ..bar()
        };
        let mut one = record("floor", true, 100);
        (one.scenario, one.engine) = ("build".into(), "peer".into());
        let both = [one, record("floor", true, 130)];
        assert_eq!(verdict(&bar, &both), Verdict::Met(1300));
        let judged = &judge(std::slice::from_ref(&bar), &both)[0];
        let figure = "1.300 × (0.000 ms over 0.000 ms) of 1/1 samples";
        assert!(judged.line().contains(figure), "{}", judged.line());
        let worse = [both[0].clone(), record("floor", true, 131)];
        assert_eq!(verdict(&bar, &worse), Verdict::Missed(1310));
        assert!(matches!(verdict(&bar, &both[1..]), Verdict::NotMeasured(_)));
        assert_eq!(
            permille(1, 3, false),
            Some(334),
            "no bar is met by rounding"
        );
        assert_eq!(permille(2, 3, true), Some(666));
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let why = |records: &[Record], bar: Bar| match verdict(&bar, records) {
            Verdict::NotMeasured(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why(&[], bar()), "not run");
        assert_eq!(
            why(&[record("floor", false, 1)], bar()),
            "none of 1 samples has it: it failed, or this machine does not show it"
        );
        let missing = Bar {
            missing: Some("not built".into()),
            ..bar()
        };
        assert_eq!(why(&[], missing), "not built");
    }

    #[test]
    fn figures_have_the_unit_of_their_name() {
        assert_eq!(human("entry_ns", 1_234_567), "1.234 ms");
        assert_eq!(human("exec_insns", 1_210_000), "1.210 M instructions");
        assert_eq!(human("husk_kib", 1536), "1.500 MiB");
        assert_eq!(human("cycles_per_s", 812), "812/s");
        assert_eq!(human("processes", 3), "3");
    }
}
