//! Files and dependencies that nothing names.

use crate::graph::{list, metadata, packages, text};
use crate::lexer::has_word;
use crate::modules::{crates, sources};
use crate::{files, none, top};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// Names that a tool looks for by itself.
const BY_TOOL: &[&str] = &[
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "config.toml",
    "conftest.py",
    "deny.toml",
    "package-lock.json",
    "package.json",
    "pytest.ini",
    "rust-toolchain.toml",
    "rustfmt.toml",
];
/// Pages at the top that people look for.
const PAGES: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "GLOSSARY.md",
    "SECURITY.md",
];
/// Folders that a test or a tool reads as a whole.
const WHOLE: &[&str] = &["corpus", "goldens", "patches", "seeds"];

#[test]
fn every_source_file_is_a_module() {
    let modules = crates().iter().flat_map(|of| &of.modules);
    let reached: BTreeSet<_> = modules.map(|module| module.file.as_str()).collect();
    let broken: Vec<_> = sources()
        .keys()
        .filter(|name| !reached.contains(name.as_str()))
        .cloned()
        .collect();
    none("No `mod` and no target of cargo reaches:", &broken);
}

/// Whether another file has this one's name, or it goes with a file beside it.
fn named_elsewhere(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap();
    texts()
        .iter()
        .any(|(other, text)| other != name && text.contains(file))
}

/// All files that may name others, with their texts.
fn texts() -> &'static [(String, String)] {
    static TEXTS: std::sync::OnceLock<Vec<(String, String)>> = std::sync::OnceLock::new();
    TEXTS.get_or_init(|| {
        let named = files().into_iter().filter(|name| name != "Cargo.lock");
        named
            .filter_map(|name| Some((name.clone(), fs::read_to_string(top().join(&name)).ok()?)))
            .collect()
    })
}

/// Whether something is known to read a file that no other file names.
fn is_read(name: &str) -> bool {
    let parts: Vec<_> = name.split('/').collect();
    let (file, folders) = parts.split_last().unwrap();
    let whole = |folder: &&str| WHOLE.contains(folder);
    let regressions = name.strip_suffix(".proptest-regressions");
    BY_TOOL.contains(file)
        || folders.is_empty() && PAGES.contains(file)
        || folders.iter().any(whole)
        || regressions.is_some_and(|source| sources().contains_key(&format!("{source}.rs")))
        // Runners of tests find these by their names.
        || file.starts_with("test_") && file.ends_with(".py")
        || file.ends_with(".test.mjs")
}

#[test]
fn every_other_file_is_named_by_one() {
    let others = files().into_iter().filter(|name| !name.ends_with(".rs"));
    let broken: Vec<_> = others
        .filter(|name| !is_read(name) && !named_elsewhere(name))
        .collect();
    none("Nothing names:", &broken);
}

/// What sources call a package: its library's name.
fn library(package: &str) -> String {
    let all = list(metadata(), "packages").iter();
    let mut targets = all
        .filter(|found| text(found, "name") == package)
        .flat_map(|found| list(found, "targets"));
    let is_library = |target: &&Value| {
        let kinds = list(target, "kind").iter().filter_map(Value::as_str);
        kinds
            .into_iter()
            .any(|kind| kind.ends_with("lib") || kind == "proc-macro")
    };
    let found = targets.find(is_library).map(|target| text(target, "name"));
    found.unwrap_or(package).replace('-', "_")
}

/// The dependencies of one kind in a manifest, by the names that sources have for them.
fn dependencies(table: &toml::Table, kind: &str) -> Vec<String> {
    let entries = table.get(kind).and_then(toml::Value::as_table);
    entries
        .into_iter()
        .flat_map(toml::Table::keys)
        .cloned()
        .collect()
}

fn manifest(path: &str) -> toml::Table {
    fs::read_to_string(top().join(path))
        .unwrap()
        .parse()
        .unwrap()
}

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

#[test]
fn every_dependency_is_named_by_its_sources() {
    let all = packages();
    let mut broken = Vec::new();
    for package in &all {
        let path = format!("{}/Cargo.toml", package.folder);
        let table = manifest(&path);
        let nested = |name: &str| {
            let mut deeper = all
                .iter()
                .filter(|other| other.folder.len() > package.folder.len());
            deeper.any(|other| name.starts_with(&format!("{}/", other.folder)))
        };
        let own = sources()
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("{}/", package.folder)) && !nested(name));
        let own: Vec<_> = own.collect();
        for kind in KINDS {
            for name in dependencies(&table, kind) {
                let word = library(&name);
                // What only tests need is a dev-dependency.
                let built = |file: &str| kind != "dependencies" || !file.contains("/tests/");
                let names = |code: &str| code.lines().any(|line| has_word(line, &word));
                if !own
                    .iter()
                    .any(|(file, source)| built(file) && names(&source.code))
                {
                    broken.push(format!("{path}: {name} of {kind}"));
                }
            }
        }
    }
    none("Dependencies that no source names:", &broken);
}

#[test]
fn every_dependency_of_the_workspace_is_somebodys() {
    let root = manifest("Cargo.toml");
    let workspace = root["workspace"].as_table().unwrap();
    let mut used = BTreeSet::new();
    for package in packages() {
        let table = manifest(&format!("{}/Cargo.toml", package.folder));
        used.extend(KINDS.iter().flat_map(|kind| dependencies(&table, kind)));
    }
    let mut broken = dependencies(workspace, "dependencies");
    broken.retain(|name| !used.contains(name));
    none(
        "Dependencies of the root Cargo.toml that no crate has:",
        &broken,
    );
}
