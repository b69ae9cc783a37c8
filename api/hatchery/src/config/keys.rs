//! Who may use the server, as whom, and how much each may have.

use crate::config::error::{ConfigError, read_text};
use crate::config::typed::{ConfigFile, KeyFile};
use e2b::auth::{ApiKeys, KeyDigest};
use engine::owner::{Caller, OwnerId};
use engine::quota::{OwnerLimits, OwnerOptions};
use std::collections::BTreeMap;
use std::path::Path;

/// The keys, and who has them.
pub(super) struct KeySettings {
    pub(super) keys: ApiKeys,
    pub(super) owners: Vec<OwnerOptions>,
}

/// What is collected of the entries.
#[derive(Default)]
struct KeyList {
    known: BTreeMap<KeyDigest, Caller>,
    owners: Vec<OwnerOptions>,
}

impl KeySettings {
    /// Of the file, and of the environment in the place of its plain keys.
    pub(super) fn new(file: &ConfigFile, env: Option<&str>) -> Result<Self, ConfigError> {
        let mut list = KeyList::default();
        for entry in &file.keys {
            list.add_named(entry)?;
        }
        let plain = plain_keys(file, env)?;
        let mut digests = Vec::new();
        for (n, key) in plain.iter().enumerate() {
            digests.push(KeyDigest::of(key).ok_or(ConfigError::BadKey(n + 1))?);
        }
        match &file.api_keys_name {
            Some(name) if !digests.is_empty() => {
                list.add(name, &digests, false, OwnerLimits::default())?;
            }
            _ => list.add_plain(&digests)?,
        }
        if list.known.is_empty() {
            return Err(ConfigError::NoKeys);
        }
        Ok(Self {
            keys: ApiKeys::new(list.known.into_iter().collect()),
            owners: list.owners,
        })
    }
}

impl KeyList {
    /// Each key is an owner of its own.
    fn add_plain(&mut self, digests: &[KeyDigest]) -> Result<(), ConfigError> {
        for (n, digest) in digests.iter().enumerate() {
            if digests[..n].contains(digest) {
                continue;
            }
            let owner = digest.owner();
            let caller = Caller::new(owner.clone());
            if self.known.insert(*digest, caller).is_some() {
                return Err(ConfigError::KeyTwice("api_keys".into()));
            }
            self.owners.push(OwnerOptions {
                owner,
                before: Vec::new(),
                limits: OwnerLimits::default(),
            });
        }
        Ok(())
    }

    fn add_named(&mut self, entry: &KeyFile) -> Result<(), ConfigError> {
        let limits = OwnerLimits {
            max_running: entry.max_running,
            max_paused: entry.max_paused,
            max_snapshots: entry.max_snapshots,
            max_stored_bytes: entry.max_stored_bytes,
            max_creates_per_second: entry.max_creates_per_second,
        };
        if limits.max_creates_per_second == Some(0) {
            return Err(ConfigError::Range {
                key: format!("max_creates_per_second of {:?}", entry.name),
                value: "0".into(),
                range: "1 or more; leave it out for no limit".into(),
            });
        }
        let digests = digests(entry)?;
        if digests.is_empty() {
            return Err(ConfigError::NamedNoKey(entry.name.clone()));
        }
        let admin = entry.admin.unwrap_or(false);
        self.add(&entry.name, &digests, admin, limits)
    }

    /// One owner with these keys, which was another one for each as long as it had no name.
    fn add(
        &mut self,
        name: &str,
        digests: &[KeyDigest],
        admin: bool,
        limits: OwnerLimits,
    ) -> Result<(), ConfigError> {
        let owner = OwnerId::named(name).ok_or_else(|| ConfigError::KeyName(name.to_owned()))?;
        if self.owners.iter().any(|other| other.owner == owner) {
            return Err(ConfigError::KeyNameTwice(name.to_owned()));
        }
        for digest in digests {
            let caller = Caller {
                admin,
                ..Caller::new(owner.clone())
            };
            let other = self.known.insert(*digest, caller);
            if other.is_some_and(|other| other.owner != owner) {
                return Err(ConfigError::KeyTwice(name.to_owned()));
            }
        }
        let before = digests.iter().map(KeyDigest::owner).collect();
        self.owners.push(OwnerOptions {
            owner,
            before,
            limits,
        });
        Ok(())
    }
}

/// All keys of an entry.
fn digests(entry: &KeyFile) -> Result<Vec<KeyDigest>, ConfigError> {
    let name = || entry.name.clone();
    let mut all = Vec::new();
    for hash in &entry.hashes {
        all.push(KeyDigest::parse(hash).ok_or_else(|| ConfigError::KeyHash(name()))?);
    }
    let mut keys = Vec::new();
    if let Some(variable) = &entry.key_env {
        let value = std::env::var(variable).map_err(|_| ConfigError::KeyEnv {
            name: name(),
            variable: variable.clone(),
        })?;
        keys.extend(split(&value));
    }
    if let Some(path) = &entry.key_file {
        keys.extend(lines(path)?);
    }
    for key in keys {
        all.push(KeyDigest::of(&key).ok_or_else(|| ConfigError::NamedBadKey(name()))?);
    }
    Ok(all)
}

/// The keys of the environment if it has any, else those of the file and of the key file.
fn plain_keys(file: &ConfigFile, env: Option<&str>) -> Result<Vec<String>, ConfigError> {
    if let Some(env) = env.filter(|env| !env.trim().is_empty()) {
        return Ok(split(env));
    }
    let mut keys = file.api_keys.clone();
    if let Some(path) = &file.api_keys_file {
        keys.extend(lines(path)?);
    }
    Ok(keys)
}

/// Keys that are separated by commas.
fn split(text: &str) -> Vec<String> {
    let keys = text.split(',').map(str::trim);
    keys.filter(|key| !key.is_empty()).map(Into::into).collect()
}

/// One key a line; `#` begins a comment.
fn lines(path: &Path) -> Result<Vec<String>, ConfigError> {
    let text = read_text(path)?;
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines
        .filter(|key| !key.is_empty())
        .map(Into::into)
        .collect())
}
