//! `hatchery doctor`: what this host can and cannot do, with the remedy, before anything fails
//! obscurely.
//!
//! ```text
//! host.rs, kvm_module.rs, probe.rs ──facts──> judge.rs ──findings──> report.rs
//! ```
//!
//! Facts are gathered without judgement and judged without looking at the host, so that every rule
//! is tested on any machine. What needs virtualization is asked of `hatchery-vmm probe`: this
//! program has no part in that.
//!
//! ```
//! use doctor::{Finding, Level, verdict};
//!
//! let finding = Finding {
//!     level: Level::Degraded,
//!     name: "memory",
//!     found: "512 MiB".into(),
//!     consequence: "few sandboxes fit".into(),
//!     remedy: "add memory".into(),
//! };
//! assert_eq!(verdict(&[finding]), Level::Degraded, "the worst of all");
//! ```

#![forbid(unsafe_code)]

pub mod host;
pub mod judge;
pub mod kvm_module;
pub mod probe;
pub mod report;

use serde::Serialize;
use std::process::ExitCode;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Fine,
    /// Worth knowing, costs little.
    Note,
    /// Works, with less or slower.
    Degraded,
    /// Sandboxes do not run.
    Unusable,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub name: &'static str,
    /// What was seen.
    pub found: String,
    /// What follows from it; empty when all is well.
    pub consequence: String,
    /// What to do about it; empty when all is well.
    pub remedy: String,
}

impl Finding {
    pub(crate) fn fine(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Fine,
            name,
            found: found.into(),
            consequence: String::new(),
            remedy: String::new(),
        }
    }

    pub(crate) fn bad(
        level: Level,
        name: &'static str,
        found: impl Into<String>,
        consequence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            level,
            name,
            found: found.into(),
            consequence: consequence.into(),
            remedy: remedy.into(),
        }
    }
}

/// The worst of all.
#[must_use]
pub fn verdict(findings: &[Finding]) -> Level {
    findings
        .iter()
        .map(|finding| finding.level)
        .max()
        .unwrap_or(Level::Fine)
}

/// 0 fine, 1 degraded, 2 unusable.
#[must_use]
pub fn exit_code(verdict: Level) -> ExitCode {
    ExitCode::from(match verdict {
        Level::Fine | Level::Note => 0,
        Level::Degraded => 1,
        Level::Unusable => 2,
    })
}
