//! What a set of samples says: nearest-rank percentiles, so that every figure is one that was
//! measured, and no averages of tails.

/// The smallest value that at least `percent` of `sorted` do not exceed; `None` of nothing.
///
/// `percent` is in thousandths of a percent, so that 99.9 % is 99,900.
pub(crate) fn percentile(sorted: &[u64], percent: u32) -> Option<u64> {
    debug_assert!(sorted.is_sorted());
    let count = u64::try_from(sorted.len()).unwrap_or(u64::MAX);
    let rank = (count * u64::from(percent)).div_ceil(100_000).max(1);
    sorted.get(usize::try_from(rank - 1).ok()?).copied()
}

/// A set of samples of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// In rising order.
    pub(crate) sorted: Vec<u64>,
    /// How many were tried; those that failed have no value.
    pub(crate) tried: u64,
}

impl Summary {
    /// Of the values of samples that succeeded, among `tried`.
    pub(crate) fn new(mut values: Vec<u64>, tried: u64) -> Self {
        values.sort_unstable();
        Self {
            sorted: values,
            tried,
        }
    }

    /// How many have a value.
    pub(crate) fn count(&self) -> u64 {
        u64::try_from(self.sorted.len()).unwrap_or(u64::MAX)
    }

    /// One figure of them, by its name in a definition.
    pub(crate) fn get(&self, statistic: Statistic) -> Option<u64> {
        match statistic {
            Statistic::Min => self.sorted.first().copied(),
            Statistic::P50 => percentile(&self.sorted, 50_000),
            Statistic::P90 => percentile(&self.sorted, 90_000),
            Statistic::P95 => percentile(&self.sorted, 95_000),
            Statistic::P99 => percentile(&self.sorted, 99_000),
            Statistic::P999 => percentile(&self.sorted, 99_900),
            Statistic::Max => self.sorted.last().copied(),
        }
    }
}

/// A figure of a set of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Statistic {
    /// The least.
    Min,
    /// The median.
    P50,
    /// Nine in ten are not over it.
    P90,
    /// Nineteen in twenty.
    P95,
    /// Ninety-nine in a hundred.
    P99,
    /// All but one in a thousand.
    P999,
    /// The most.
    Max,
}

impl Statistic {
    /// Its name in tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Min => "min",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Max => "max",
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted: Vec<u64> = (1..=10).map(|n| n * 10).collect();
        assert_eq!(percentile(&sorted, 50_000), Some(50));
        assert_eq!(percentile(&sorted, 51_000), Some(60));
        assert_eq!(percentile(&sorted, 99_000), Some(100));
        assert_eq!(percentile(&sorted, 100_000), Some(100));
        assert_eq!(percentile(&sorted, 0), Some(10));
        assert_eq!(percentile(&[7], 99_900), Some(7));
        assert_eq!(percentile(&[], 50_000), None);
    }

    #[test]
    fn the_99th_of_a_thousand_is_the_990th() {
        let summary = Summary::new((1..=1000).rev().collect(), 1000);
        assert_eq!(summary.get(Statistic::P99), Some(990));
        assert_eq!(summary.get(Statistic::P999), Some(999));
        assert_eq!(summary.get(Statistic::Max), Some(1000));
        assert_eq!(summary.get(Statistic::Min), Some(1));
    }
}
