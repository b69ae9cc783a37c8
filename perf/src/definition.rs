//! What is measured, as files: scenarios and targets. They are part of the program, so that it can
//! be carried into a lab by itself; a folder of changed ones can be given instead.

use crate::statistics::Statistic;
use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;

const BASELINE: &str = include_str!("../definitions/baseline.toml");
const LAB: &str = include_str!("../definitions/lab.toml");
const TARGETS: &str = include_str!("../definitions/targets.toml");

/// The scenarios of the baseline.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BaselineDefinition {
    /// In the order in which they run.
    pub(crate) scenario: Vec<BaselineScenario>,
}

/// One thing that is done many times.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct BaselineScenario {
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
    pub(crate) kind: BaselineKind,
}

/// What is done in one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum BaselineKind {
    /// Process start, kernel's entry, answer.
    Boot,
    /// Process start at a snapshot, let go at once, answer.
    Build,
    /// A warm VM of a pool is let go, answer.
    Claim {
        /// Warm VMs that stand ready.
        pool: u32,
    },
    /// A machine that ran is killed and reaped.
    Kill,
    /// Machines that ran are killed and reaped together.
    Reap {
        /// How many.
        count: u32,
    },
    /// Warm VMs stand at once, and their memory is counted.
    WarmVms {
        /// How many.
        count: u32,
    },
    /// A machine dirties pages and is saved.
    Save {
        /// How many pages.
        pages: u64,
    },
    /// A machine dirties pages and is reset in place.
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
pub(crate) struct LabDefinition {
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
    pub(crate) pool: u32,
    /// Most machines of its server, warm VMs and sandboxes together.
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
    /// A sandbox is reset to where it began.
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

/// The targets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetList {
    /// In the order of `performance.md`.
    pub(crate) target: Vec<TargetDefinition>,
}

/// What a figure is held to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetDefinition {
    /// What is measured, in words.
    pub(crate) what: String,
    /// Whose samples it is about, as records name them.
    #[serde(default = "ours")]
    pub(crate) engine: String,
    /// `baseline`, `lab`, `lab-wall` or `metal`.
    pub(crate) place: String,
    /// The scenario whose samples it is about.
    #[serde(default)]
    pub(crate) scenario: String,
    /// The value in them; its name ends in its unit.
    #[serde(default)]
    pub(crate) value: String,
    /// Which figure of the samples.
    pub(crate) statistic: Option<Statistic>,
    /// The limit, in the value's unit.
    pub(crate) limit: u64,
    /// The figure of the same place by which this one is divided: then the limit is of the ratio,
    /// in thousandths.
    pub(crate) over: Option<ReferenceFigure>,
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
pub(crate) struct ReferenceFigure {
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

/// The baseline's scenarios, from `folder` or our own.
pub(crate) fn baseline(folder: Option<&Path>) -> Result<BaselineDefinition> {
    load(folder, "baseline.toml", BASELINE)
}

/// The lab's scenarios, from `folder` or our own.
pub(crate) fn lab(folder: Option<&Path>) -> Result<LabDefinition> {
    load(folder, "lab.toml", LAB)
}

/// The targets, from `folder` or our own.
pub(crate) fn targets(folder: Option<&Path>) -> Result<TargetList> {
    load(folder, "targets.toml", TARGETS)
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
    fn every_target_of_the_baseline_is_about_a_scenario_there_is() {
        let baseline = baseline(None).unwrap();
        let targets = targets(None).unwrap();
        for target in targets
            .target
            .iter()
            .filter(|t| t.place == crate::record::BASELINE)
        {
            let known = baseline.scenario.iter().any(|s| s.name == target.scenario);
            assert!(known || target.missing.is_some(), "{target:?}");
            assert!(
                target.statistic.is_some() || target.missing.is_some(),
                "{target:?}"
            );
        }
    }

    #[test]
    fn every_target_of_the_service_is_about_a_scenario_there_is() {
        // What single VMs are measured by is not in a file.
        const OF_PROGRAM: [&str; 8] = [
            "clone",
            "density",
            "clone-counts",
            "boot",
            "net",
            "net-process",
            "versus",
            "versus-counts",
        ];
        let lab = lab(None).unwrap();
        for target in targets(None)
            .unwrap()
            .target
            .iter()
            .filter(|t| t.place.starts_with("lab"))
        {
            let other = target.over.as_ref().map(|over| &over.scenario);
            for name in [Some(&target.scenario), other].into_iter().flatten() {
                let known = lab.scenario.iter().any(|s| match &s.kind {
                    LabKind::Density { steps } => {
                        steps.iter().any(|n| *name == format!("{}-{n}", s.name))
                    }
                    LabKind::Cycles { .. } => *name == format!("{}-growth", s.name),
                    _ => *name == s.name || *name == format!("{}-rounds", s.name),
                });
                assert!(known || OF_PROGRAM.contains(&name.as_str()), "{target:?}");
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
            assert!(most <= s.machines && s.pool <= s.machines, "{s:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[[target]]\nwhat = \"x\"\nplace = \"baseline\"\nlimit = 1\ncolour = \"red\"\n";
        std::fs::write(folder.path().join("targets.toml"), text).unwrap();
        let error = targets(Some(folder.path())).unwrap_err();
        assert!(format!("{error:#}").contains("colour"), "{error:#}");
    }
}
