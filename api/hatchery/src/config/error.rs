//! Why a configuration is refused.

use control::NetPolicyError;
use std::path::{Path, PathBuf};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("Cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{path} is not a valid configuration: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        message: String,
    },
    /// No API key from anywhere.
    #[error(
        "No API key is configured, so nobody could use the server. Set HATCHERY_API_KEYS, \
         api_keys, api_keys_file or [[keys]]; a key that every SDK accepts is `e2b_` and 40 \
         lowercase hex digits"
    )]
    NoKeys,
    /// A key that cannot be sent as a header value, or too short to be a secret.
    #[error("API key number {0} is shorter than 16 characters or not printable ASCII")]
    BadKey(usize),
    /// The same for a key of an entry with a name.
    #[error("A key of {0:?} is shorter than 16 characters or not printable ASCII")]
    NamedBadKey(String),
    /// A name of keys with other characters than are taken.
    #[error("The name {0:?} of API keys is not 1 to 64 characters of [A-Za-z0-9_.-]")]
    KeyName(String),
    /// Two entries have one name.
    #[error("The name {0:?} of API keys is given twice: one entry may have several keys")]
    KeyNameTwice(String),
    /// A key that is somebody else's as well.
    #[error("A key of {0:?} is another's as well: every key has one owner, take it out of one")]
    KeyTwice(String),
    /// Nothing tells the keys of an entry.
    #[error("The [[keys]] entry {0:?} has no key: give it hashes, key_env or key_file")]
    NamedNoKey(String),
    /// No digest of a key.
    #[error(
        "A hash of the [[keys]] entry {0:?} is not 64 hex digits: `printf %s KEY | sha256sum` \
         prints it"
    )]
    KeyHash(String),
    /// The variable that has the keys is not set.
    #[error("The [[keys]] entry {name:?} has key_env = {variable:?}, which is not set")]
    KeyEnv {
        /// The entry.
        name: String,
        /// The variable.
        variable: String,
    },
    /// A value out of its range.
    #[error("{key} = {value} is out of range: {range}")]
    Range {
        /// Which key.
        key: String,
        /// The value.
        value: String,
        /// What is allowed.
        range: String,
    },
    /// What is opened of the network cannot be.
    #[error("network.openings cannot be so: {0}")]
    Openings(NetPolicyError),
    /// A part of what TLS needs is given, and another is not.
    #[error(
        "{0} is not given: TLS needs tls.certificate and tls.key, both PEM files; without TLS \
         leave out the whole [tls] table"
    )]
    TlsFile(&'static str),
    /// TLS without a name to serve it for.
    #[error(
        "TLS is set up, but no domain: set `domain` to what the certificate's wildcard is below \
         (\"sandbox.example.com\" for *.sandbox.example.com), with the port if clients come on \
         another than 443"
    )]
    TlsDomain,
    /// A setting under its old name beside the new one.
    #[error("{old} and {new} are the same setting, and both are given: take {old} out")]
    OldName {
        /// The old name.
        old: &'static str,
        /// The name since then.
        new: &'static str,
    },
    /// A template name or alias with other characters than E2B allows.
    #[error("Template name {0:?} is not 1 to 64 characters of [a-z0-9_-]")]
    TemplateName(String),
    /// Two templates share a name.
    #[error("The template name {0:?} is given twice")]
    TemplateTwice(String),
}

/// The text of a file.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}
