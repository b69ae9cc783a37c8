//! What is measured, as files: scenarios and bars. They are part of the program, so that it can be
//! carried into a lab by itself; a folder of changed ones can be given instead.

use crate::statistics::Statistic;
use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;

const FLOOR: &str = include_str!("../definitions/floor.toml");
const LAB: &str = include_str!("../definitions/lab.toml");
const BARS: &str = include_str!("../definitions/bars.toml");

/// The scenarios of the floor.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Floor {
    /// In the order in which they run.
    pub(crate) scenario: Vec<Scenario>,
}

/// One thing that is done many times.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Scenario {
    /// Its name in records.
    pub(crate) name: String,
    /// What is done, in words.
    pub(crate) does: String,
    /// Scenarios of the same group take turns.
    pub(crate) group: String,
    /// How often.
    pub(crate) samples: u32,
    /// What is done, for the program.
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

/// What is done in one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Process start, kernel's entry, answer.
    Boot,
    /// Process start at a snapshot, let go at once, answer.
    Build,
    /// A husk of a pool is let go, answer.
    Claim {
        /// Husks that stand ready.
        pool: u32,
    },
    /// A machine that ran is killed and reaped.
    Kill,
    /// Machines that ran are killed and reaped together.
    Reap {
        /// How many.
        count: u32,
    },
    /// Husks stand at once, and their memory is counted.
    Husks {
        /// How many.
        count: u32,
    },
    /// A machine dirties pages and is saved.
    Save {
        /// How many pages.
        pages: u64,
    },
    /// A machine dirties pages and is put back in place.
    Reset {
        /// How many pages.
        pages: u64,
    },
    /// Lives as fast as they go.
    Closed {
        /// Lives at once.
        workers: u32,
        /// How long.
        seconds: u32,
    },
    /// Lives at a fixed rate; each is a sample.
    Open {
        /// Lives begun a second.
        per_s: u32,
        /// How long.
        seconds: u32,
        /// Most lives at once.
        workers: u32,
    },
    /// Many lives, and what is left of them.
    Growth {
        /// How many.
        cycles: u64,
        /// Lives at once.
        workers: u32,
    },
}

/// The scenarios of the lab.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lab {
    /// In the order in which they run.
    pub(crate) scenario: Vec<LabScenario>,
}

/// One thing that is done to the whole system, many times.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LabScenario {
    /// Its name in records.
    pub(crate) name: String,
    /// What is done, in words.
    pub(crate) does: String,
    /// Scenarios of the same group take turns and share servers.
    pub(crate) group: String,
    /// Rounds where the clock counts instructions.
    pub(crate) samples: u32,
    /// Rounds where it does not.
    #[serde(default)]
    pub(crate) wall: u32,
    /// Copies that its server keeps ready.
    pub(crate) husks: u32,
    /// Most machines of its server, husks and sandboxes together.
    pub(crate) machines: u32,
    /// What is done, for the program.
    #[serde(flatten)]
    pub(crate) kind: LabKind,
}

/// What is done in one round.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum LabKind {
    /// Sandboxes are made at once, and used.
    Create {
        /// By so many clients, one each.
        clients: u32,
        /// Whether each runs a first command.
        #[serde(default = "yes")]
        exec: bool,
    },
    /// One is made and used while the kernel counts.
    Counts,
    /// A sandbox is forked, and each child used.
    Fork {
        /// How many children.
        children: u32,
        /// What it has written by then.
        dirty_mib: u32,
    },
    /// A sandbox is put back to where it began.
    Reset {
        /// What it has written by then.
        dirty_mib: u32,
    },
    /// A sandbox is stored.
    Snapshot {
        /// What it has written by then.
        dirty_mib: u32,
    },
    /// Memory is touched for the first time.
    Touch {
        /// How much.
        mib: u32,
    },
    /// Sandboxes stand at once.
    Density {
        /// How many, rising.
        steps: Vec<u32>,
    },
    /// Whole lives, and what is left of them.
    Cycles {
        /// How many.
        count: u32,
        /// By so many clients.
        clients: u32,
    },
}

const fn yes() -> bool {
    true
}

/// The bars.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bars {
    /// In the order of `performance.md`.
    pub(crate) bar: Vec<Bar>,
}

/// What a figure is held to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bar {
    /// What is measured, in words.
    pub(crate) what: String,
    /// Whose samples it is about, as records name them.
    #[serde(default = "ours")]
    pub(crate) engine: String,
    /// `floor`, `lab` or `metal`.
    pub(crate) place: String,
    /// The scenario whose samples it is about.
    #[serde(default)]
    pub(crate) scenario: String,
    /// The value in them; its name ends in its unit.
    #[serde(default)]
    pub(crate) value: String,
    /// Which figure of the samples.
    pub(crate) statistic: Option<Statistic>,
    /// The bar, in the value's unit.
    pub(crate) bar: u64,
    /// The figure of the same place by which this one is divided: then the bar is of the ratio, in
    /// thousandths.
    pub(crate) over: Option<Other>,
    /// Whether more is better.
    #[serde(default)]
    pub(crate) at_least: bool,
    /// The best that others publish, with what they mean by it.
    #[serde(default)]
    pub(crate) peer: String,
    /// Why there is nothing to measure.
    pub(crate) missing: Option<String>,
}

/// A figure that another is held against; the value's name and the statistic are the same.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Other {
    /// Whose samples.
    #[serde(default = "ours")]
    pub(crate) engine: String,
    /// Of which scenario.
    pub(crate) scenario: String,
}

/// What records call us.
pub(crate) const OURS: &str = "hatchery";

fn ours() -> String {
    OURS.into()
}

/// The floor's scenarios, from `folder` or our own.
pub(crate) fn floor(folder: Option<&Path>) -> Result<Floor> {
    load(folder, "floor.toml", FLOOR)
}

/// The lab's scenarios, from `folder` or our own.
pub(crate) fn lab(folder: Option<&Path>) -> Result<Lab> {
    load(folder, "lab.toml", LAB)
}

/// The bars, from `folder` or our own.
pub(crate) fn bars(folder: Option<&Path>) -> Result<Bars> {
    load(folder, "bars.toml", BARS)
}

fn load<T: DeserializeOwned>(folder: Option<&Path>, name: &str, own: &str) -> Result<T> {
    let text = match folder {
        Some(folder) => {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?
        }
        None => own.into(),
    };
    toml::from_str(&text).with_context(|| format!("The definitions in {name}"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_bar_of_the_floor_is_about_a_scenario_there_is() {
        let floor = floor(None).unwrap();
        let bars = bars(None).unwrap();
        for bar in bars.bar.iter().filter(|b| b.place == "floor") {
            let known = floor.scenario.iter().any(|s| s.name == bar.scenario);
            assert!(known || bar.missing.is_some(), "{bar:?}");
            assert!(bar.statistic.is_some() || bar.missing.is_some(), "{bar:?}");
        }
    }

    #[test]
    fn every_bar_of_the_service_is_about_a_scenario_there_is() {
        // What single VMs are measured by is not in a file.
        const OF_PROGRAM: [&str; 6] = [
            "clone",
            "density",
            "clone-counts",
            "boot",
            "versus",
            "versus-counts",
        ];
        let lab = lab(None).unwrap();
        for bar in bars(None)
            .unwrap()
            .bar
            .iter()
            .filter(|b| b.place.starts_with("lab"))
        {
            let other = bar.over.as_ref().map(|over| &over.scenario);
            for name in [Some(&bar.scenario), other].into_iter().flatten() {
                let known = lab.scenario.iter().any(|s| match &s.kind {
                    LabKind::Density { steps } => {
                        steps.iter().any(|n| *name == format!("{}-{n}", s.name))
                    }
                    LabKind::Cycles { .. } => *name == format!("{}-growth", s.name),
                    _ => *name == s.name || *name == format!("{}-rounds", s.name),
                });
                assert!(known || OF_PROGRAM.contains(&name.as_str()), "{bar:?}");
            }
        }
    }

    #[test]
    fn the_labs_scenarios_fit_their_servers() {
        for s in lab(None).unwrap().scenario {
            let most = match &s.kind {
                LabKind::Create { clients, .. } | LabKind::Cycles { clients, .. } => *clients,
                LabKind::Fork { children, .. } => children + 1,
                LabKind::Density { steps } => steps.iter().copied().max().unwrap(),
                _ => 2,
            };
            assert!(most <= s.machines && s.husks <= s.machines, "{s:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[[bar]]\nwhat = \"x\"\nplace = \"floor\"\nbar = 1\ncolour = \"red\"\n";
        std::fs::write(folder.path().join("bars.toml"), text).unwrap();
        let error = bars(Some(folder.path())).unwrap_err();
        assert!(format!("{error:#}").contains("colour"), "{error:#}");
    }
}
