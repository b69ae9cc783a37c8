//! What the records say of one engine's scenario, as a table.

use crate::definition::OURS;
use crate::record::{Record, UNCOUNTED};
use crate::statistics::{Statistic, Summary};
use crate::targets::{self, human};
use std::collections::BTreeSet;

/// The columns.
pub(super) const STATISTICS: [Statistic; 6] = [
    Statistic::Min,
    Statistic::P50,
    Statistic::P90,
    Statistic::P99,
    Statistic::P999,
    Statistic::Max,
];

/// All values of one engine's scenario.
pub(super) struct FigureTable {
    pub(super) place: String,
    pub(super) scenario: String,
    pub(super) engine: String,
    pub(super) values: Vec<(String, Summary)>,
    /// What times are told in parts of, where they mean nothing by themselves.
    unit_ns: Option<u64>,
}

/// A table for each engine's scenario.
pub(super) fn tables(records: &[Record]) -> Vec<FigureTable> {
    let key = |r: &Record| (r.place.clone(), r.scenario.clone(), r.engine.clone());
    let keys: BTreeSet<_> = records.iter().map(key).collect();
    let table = |(place, scenario, engine): (String, String, String)| {
        let own = |r: &&Record| r.place == place && r.scenario == scenario && r.engine == engine;
        let own: Vec<_> = records.iter().filter(own).cloned().collect();
        let names: BTreeSet<_> = own.iter().flat_map(|r| r.values.keys().cloned()).collect();
        let summary = |name: String| {
            let summary = targets::values(&own, &engine, (&place, &scenario), &name);
            (name, summary)
        };
        FigureTable {
            values: names.into_iter().map(summary).collect(),
            unit_ns: base_of(records, &place),
            place: place.clone(),
            scenario: scenario.clone(),
            engine,
        }
    };
    keys.into_iter().map(table).collect()
}

/// One client's creation and first command from a full pool, where only ratios to it mean
/// something.
fn base_of(records: &[Record], place: &str) -> Option<u64> {
    let base = targets::values(records, OURS, (place, "create-warm-c1"), "first_exec_ns");
    (place == UNCOUNTED).then(|| base.get(Statistic::P50).unwrap_or(0))
}

/// A time in thousandths of another; nothing without one.
fn part(value: u64, of: u64) -> String {
    let scaled = (u128::from(value) * 1000).checked_div(of.into());
    let scaled = scaled.and_then(|scaled| u64::try_from(scaled).ok());
    scaled.map_or_else(String::new, |scaled| human("_permille", scaled))
}

/// A table's cells as text, the same in both pages.
pub(super) type TableRows = Vec<Vec<String>>;

impl FigureTable {
    /// What is above it.
    pub(super) fn title(&self) -> String {
        format!("{}: {} ({})", self.place, self.scenario, self.engine)
    }

    /// Its lines.
    pub(super) fn rows(&self) -> TableRows {
        let row = |(name, summary): &(String, Summary)| {
            let told = |v| match self.unit_ns {
                Some(of) if name.ends_with("_ns") => part(v, of),
                _ => human(name, v),
            };
            let figure = |s| summary.get(s).map_or_else(String::new, told);
            let head = [
                name.clone(),
                format!("{}/{}", summary.count(), summary.tried),
            ];
            head.into_iter().chain(STATISTICS.map(figure)).collect()
        };
        self.values.iter().map(row).collect()
    }
}
