//! The walls around a VM process, and what is to be done where one cannot be had.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is to be done on a host where a wall cannot be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JailMode {
    /// No VM process is made there.
    #[default]
    Required,
    /// VM processes are made behind the walls that there are.
    Degraded,
}

impl JailMode {
    /// As it is written in settings and arguments.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Degraded => "degraded",
        }
    }
}

impl fmt::Display for JailMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for JailMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "required" => Ok(Self::Required),
            "degraded" => Ok(Self::Degraded),
            _ => Err(format!("{text:?} is neither \"required\" nor \"degraded\"")),
        }
    }
}

/// One wall around a VM process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wall {
    /// A user of its own, without capabilities.
    User,
    /// Namespaces with no network, no System V objects and an empty root.
    Namespaces,
    /// No right to open files or TCP ports.
    Landlock,
    /// A list of system calls, and nothing else. A process without it does not begin.
    Seccomp,
    /// A list of ring operations, and nothing else. A process without it does not begin.
    Ring,
}

impl Wall {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::User,
        Self::Namespaces,
        Self::Landlock,
        Self::Seccomp,
        Self::Ring,
    ];

    /// As it is told to people and programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Namespaces => "namespaces",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Ring => "ring",
        }
    }
}

/// A wall that cannot be had on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingWall {
    /// Which.
    pub wall: Wall,
    /// What stood in the way.
    pub why: String,
    /// What an operator can do about it.
    pub remedy: String,
}

impl fmt::Display for MissingWall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.wall.name(), self.why, self.remedy)
    }
}

/// All of them in one line.
#[must_use]
pub fn list_missing(missing: &[MissingWall]) -> String {
    let lines: Vec<_> = missing.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_mode_is_read_as_it_is_written_and_is_required_by_default() {
        for mode in [JailMode::Required, JailMode::Degraded] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!(JailMode::default(), JailMode::Required);
        assert!("off".parse::<JailMode>().unwrap_err().contains("off"));
    }
}
