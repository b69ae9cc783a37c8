//! `deny.toml`, applied to the locked dependencies: so it holds where cargo-deny is not installed.

use crate::graph::{list, metadata, text};
use crate::{none, top};
use std::collections::{BTreeMap, BTreeSet};

fn rules() -> toml::Table {
    std::fs::read_to_string(top().join("deny.toml"))
        .unwrap()
        .parse()
        .unwrap()
}

fn names<'a>(rules: &'a toml::Table, table: &str, key: &str) -> Vec<&'a toml::Value> {
    rules[table]
        .get(key)
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .collect()
}

/// Whether an SPDX expression can be met with the allowed licences.
fn allowed(expression: &str, licences: &BTreeSet<&str>) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&words, &mut at, licences) && at == words.len()
}

fn either(words: &[&str], at: &mut usize, licences: &BTreeSet<&str>) -> bool {
    let mut good = both(words, at, licences);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        good |= both(words, at, licences);
    }
    good
}

fn both(words: &[&str], at: &mut usize, licences: &BTreeSet<&str>) -> bool {
    let mut good = one(words, at, licences);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        good &= one(words, at, licences);
    }
    good
}

fn one(words: &[&str], at: &mut usize, licences: &BTreeSet<&str>) -> bool {
    let Some(word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if *word == "(" {
        let good = either(words, at, licences);
        *at += 1; // the closing one
        return good;
    }
    if words.get(*at) == Some(&"WITH") {
        *at += 2;
        return licences.contains(format!("{word} WITH {}", words[*at - 1]).as_str());
    }
    licences.contains(word)
}

#[test]
fn expressions() {
    let licences = BTreeSet::from(["MIT", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"]);
    for (expression, good) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(GPL-3.0 OR Apache-2.0) AND Unicode-3.0", false),
        ("MIT AND GPL-3.0 OR Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("", false),
    ] {
        assert_eq!(allowed(expression, &licences), good, "{expression}");
    }
}

#[test]
fn licences_are_allowed() {
    let rules = rules();
    let allow: BTreeSet<_> = names(&rules, "licenses", "allow")
        .into_iter()
        .filter_map(toml::Value::as_str)
        .collect();
    assert!(allow.len() > 1, "deny.toml allows licences");
    let packages = list(metadata(), "packages").iter();
    let broken: Vec<_> = packages
        .filter(|package| !allowed(text(package, "license"), &allow))
        .map(|package| {
            format!(
                "{} {}: {:?}",
                text(package, "name"),
                text(package, "version"),
                text(package, "license")
            )
        })
        .collect();
    none("Licences that deny.toml does not allow:", &broken);
}

#[test]
fn sources_are_the_registry_or_ours() {
    let packages = list(metadata(), "packages").iter();
    let foreign = packages.filter(|package| {
        let source = &package["source"];
        !source.is_null()
            && source.as_str() != Some("registry+https://github.com/rust-lang/crates.io-index")
    });
    let broken: Vec<_> = foreign
        .map(|package| format!("{} from {}", text(package, "name"), package["source"]))
        .collect();
    none("Dependencies come from crates.io:", &broken);
}

/// `(name, reason)` of the entries of a list in `[bans]`.
fn entries(rules: &toml::Table, key: &str) -> Vec<(String, String)> {
    let entry = |value: &toml::Value| {
        let part = |key: &str| {
            value
                .get(key)
                .and_then(toml::Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        (part("crate"), part("reason"))
    };
    names(rules, "bans", key).into_iter().map(entry).collect()
}

#[test]
fn no_banned_crate_and_no_unexplained_duplicate() {
    let rules = rules();
    let (deny, skip) = (entries(&rules, "deny"), entries(&rules, "skip"));
    let mut broken = Vec::new();
    for (name, reason) in deny.iter().chain(&skip) {
        if name.is_empty() || reason.is_empty() {
            broken.push(format!("deny.toml: {name:?} needs a crate and a reason"));
        }
    }
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in list(metadata(), "packages") {
        versions
            .entry(text(package, "name"))
            .or_default()
            .insert(text(package, "version"));
    }
    for (name, why) in deny
        .iter()
        .filter(|(name, _)| versions.contains_key(name.as_str()))
    {
        broken.push(format!("{name} is banned: {why}"));
    }
    for (name, twice) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        // `crate = "name@version"` or `"name"`: one version of a pair is skipped.
        let skipped = skip
            .iter()
            .any(|(entry, _)| entry.split('@').next() == Some(name));
        if !skipped {
            broken.push(format!("{name} in {} versions: {twice:?}", twice.len()));
        }
    }
    for (entry, _) in &skip {
        let name = entry.split('@').next().unwrap_or_default();
        if versions.get(name).is_none_or(|versions| versions.len() < 2) {
            broken.push(format!("deny.toml skips {entry}, which is not there twice"));
        }
    }
    none("Bans and duplicates of deny.toml:", &broken);
}
