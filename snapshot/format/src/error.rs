//! Why bytes are not a snapshot.

/// What is wrong, with the values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file is of another kind.
    #[error("Not a {what}: it begins with {found:02x?}")]
    Magic {
        /// What was expected.
        what: &'static str,
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// Written by another version of this program.
    #[error("A {what} of version {found}; this program reads version {known}: {remedy}")]
    Version {
        /// What it is.
        what: String,
        /// Its version.
        found: u32,
        /// The version this program reads.
        known: u32,
        /// What to do.
        remedy: &'static str,
    },
    /// A size over its limit.
    #[error("{what} is {found}, at most {limit} is allowed")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// How large it says it is.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The bytes end early.
    #[error("Truncated: {what} needs {needed} bytes, {found} are there")]
    Truncated {
        /// What is cut.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The bytes have changed since they were written.
    #[error("Corrupt: the checksum of {what} is {found:08x}, {stored:08x} is stored")]
    Checksum {
        /// What does not match.
        what: String,
        /// The sum stored with it.
        stored: u32,
        /// The sum of its bytes.
        found: u32,
    },
    /// A section that is needed is not there.
    #[error("Section {0:?} is missing")]
    MissingSection(String),
    /// A section that this program does not know.
    #[error("Section {0:?} is unknown to this program: it was written by a newer one")]
    UnknownSection(String),
    /// A value that no writer writes.
    #[error("Invalid {what}: {value}")]
    Invalid {
        /// Of what.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// The manifest is not such JSON.
    #[error("The manifest does not decode: {0}")]
    Manifest(String),
}

/// What to tell about a version: older files are not converted, newer ones need a newer program.
pub(crate) fn version_error(what: impl Into<String>, found: u32, known: u32) -> FormatError {
    let remedy = if found > known {
        "update this program"
    } else {
        "an older program wrote it; use that one, or make it again"
    };
    FormatError::Version {
        what: what.into(),
        found,
        known,
        remedy,
    }
}
