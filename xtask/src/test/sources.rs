//! The stages that need nothing but the sources: format, lints, tests, documentation, the house's
//! rules.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use super::runner::{cargo, check, has, tee};
use super::stage::TestStage;
use super::tally::Tally;
use crate::dist::workspace;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

/// Formatting.
pub(crate) const FMT: TestStage = TestStage {
    name: "fmt",
    about: "formatting",
    beside: false,
    run: fmt,
};
/// Lints.
pub(crate) const CLIPPY: TestStage = TestStage {
    name: "clippy",
    about: "clippy over everything, without warnings",
    beside: false,
    run: clippy,
};
/// Tests.
pub(crate) const UNIT: TestStage = TestStage {
    name: "unit",
    about: "unit, property and integration tests",
    beside: false,
    run: unit,
};
/// Documentation, and the examples in it.
pub(crate) const DOC: TestStage = TestStage {
    name: "doc",
    about: "documentation without warnings, and the examples in it",
    beside: false,
    run: doc,
};
/// Documentation.
pub(crate) const DOC_WARNINGS: TestStage = TestStage {
    name: "doc",
    about: "documentation without warnings",
    beside: false,
    run: doc_warnings,
};
/// The house's rules.
pub(crate) const TIDY: TestStage = TestStage {
    name: "tidy",
    about: "the house's rules: structure, licences, dependencies",
    beside: false,
    run: tidy,
};

fn fmt() -> Result<Tally> {
    check(&["fmt", "--all", "--check"])
}

fn clippy() -> Result<Tally> {
    check(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ])
}

/// Everything but the tidy test, which is a stage of its own.
fn unit() -> Result<Tally> {
    if has("nextest") {
        let filter = "not binary(tidy)";
        let args = [
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--color=never",
            "-E",
            filter,
        ];
        let (status, text) = tee(cargo(&args).args(["--status-level", "slow"]))?;
        return Ok(Tally::of_nextest(&text).or_failed(status, "cargo nextest"));
    }
    let mut tally = Tally::default();
    let rest = [
        "test",
        "--workspace",
        "--exclude",
        "xtask",
        "--no-fail-fast",
        "--all-targets",
    ];
    for args in [&rest[..], &["test", "-p", "xtask", "--bins"]] {
        let (status, text) = tee(&mut cargo(args))?;
        tally.add(Tally::of_cargo_test(&text).or_failed(status, "cargo test"));
    }
    Ok(tally)
}

fn doc() -> Result<Tally> {
    let mut all = doc_warnings()?;
    let (status, text) = tee(&mut cargo(&[
        "test",
        "--workspace",
        "--doc",
        "--no-fail-fast",
    ]))?;
    let tally = Tally::of_cargo_test(&text);
    // There need not be any example.
    all.add(if status.success() {
        tally
    } else {
        tally.or_failed(status, "cargo test --doc")
    });
    Ok(all)
}

/// Builds the pages of our crates, private items too, and shows what rustdoc warns of.
fn doc_warnings() -> Result<Tally> {
    let mut command = cargo(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--quiet",
        "--message-format=json",
    ]);
    let done = command
        .stderr(Stdio::inherit())
        .output()
        .context("Running cargo doc")?;
    let top = std::fs::canonicalize(workspace())?;
    let warnings = doc_messages(&String::from_utf8_lossy(&done.stdout), &top)?;
    let mut tally = Tally::of_status(done.status, "cargo doc");
    for (package, texts) in &warnings {
        texts.iter().for_each(|text| println!("{text}"));
        let count = texts.len();
        tally.add(Tally::fail(format!(
            "{count} warnings of rustdoc in {package}"
        )));
    }
    Ok(tally)
}

/// What rustdoc says in cargo's lines of JSON, by the folder of the package.
fn doc_messages(lines: &str, top: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for line in lines.lines().filter(|line| line.starts_with('{')) {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let Some(text) = line["message"]["rendered"].as_str() else {
            continue;
        };
        let manifest = Path::new(line["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().unwrap_or(manifest);
        let folder = folder
            .strip_prefix(top)
            .unwrap_or(folder)
            .display()
            .to_string();
        // “3 warnings emitted” has no code and no place.
        let place = line["message"]["spans"].as_array();
        if place.is_some_and(|spans| !spans.is_empty()) {
            found.entry(folder).or_default().insert(text.to_owned());
        }
    }
    Ok(found)
}

fn tidy() -> Result<Tally> {
    let (status, text) = tee(&mut cargo(&["test", "-p", "xtask", "--test", "tidy"]))?;
    let mut tally = Tally::of_cargo_test(&text).or_failed(status, "the tidy test");
    if has("deny") {
        tally.add(check(&[
            "deny",
            "--offline",
            "check",
            "bans",
            "licenses",
            "sources",
        ])?);
    } else {
        // The tidy test itself checks licences, sources, bans and duplicates against deny.toml.
        println!("cargo-deny is not installed: the tidy test has checked deny.toml's rules");
    }
    Ok(tally)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn warnings_are_told_by_package() {
        let line = |manifest: &str, text: &str, spans: &str| {
            format!(
                "{{\"reason\":\"compiler-message\",\"manifest_path\":\"{manifest}\",\
                 \"message\":{{\"rendered\":\"{text}\",\"spans\":[{spans}]}}}}\n"
            )
        };
        let text = [
            line("/top/host/vmm/Cargo.toml", "unresolved link", "{}"),
            line("/top/host/vmm/Cargo.toml", "unresolved link", "{}"),
            line("/top/host/vmm/Cargo.toml", "1 warning emitted", ""),
            "{\"reason\":\"build-finished\",\"success\":true}\n".into(),
        ];
        let found = doc_messages(&text.concat(), Path::new("/top")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found["host/vmm"], ["unresolved link".to_owned()].into());
    }
}
