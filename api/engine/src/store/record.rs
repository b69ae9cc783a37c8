//! The envelope of every record in the store: JSON with a version, which is looked at before
//! anything else.

use crate::environment::is_variable;
use crate::owner::OwnerId;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most variables that are read back.
const MAX_VARIABLES: usize = 4096;

/// The last version of any record in which nobody has an owner.
pub(super) const LAST_WITHOUT_OWNER: u32 = 2;

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

/// Whose a record is, of any version and whatever else is in it: `Some(None)`, everybody's, if it
/// is of a version before there were owners; `None` if it does not tell.
#[must_use]
pub fn record_owner(bytes: &[u8]) -> Option<Option<OwnerId>> {
    #[derive(Deserialize)]
    struct OwnerOnly {
        version: u32,
        owner: Option<String>,
    }
    let OwnerOnly { version, owner } = serde_json::from_slice(bytes).ok()?;
    match owner {
        Some(owner) => OwnerId::parse(&owner).map(Some),
        None => (version <= LAST_WITHOUT_OWNER).then_some(None),
    }
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
