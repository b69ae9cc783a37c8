//! The envelope of every record in the store: JSON with a version, which is looked at before
//! anything else.

use crate::environment::is_variable;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most variables that are read back.
const MAX_VARIABLES: usize = 4096;

/// The version of a record, whatever else is in it.
///
/// # Errors
/// It is not JSON, or has no version.
pub fn record_version(bytes: &[u8]) -> Result<u32, serde_json::Error> {
    #[derive(Deserialize)]
    struct VersionOnly {
        version: u32,
    }
    serde_json::from_slice(bytes).map(|VersionOnly { version }| version)
}

/// What is wrong with the variables of a record, in words.
#[must_use]
pub fn bad_env(env: &BTreeMap<String, String>) -> Option<String> {
    if env.len() > MAX_VARIABLES {
        return Some(format!("it has {} variables", env.len()));
    }
    let (name, _) = env.iter().find(|(name, value)| !is_variable(name, value))?;
    Some(format!(
        "it has a bad variable: {:?}",
        name.chars().take(200).collect::<String>()
    ))
}
