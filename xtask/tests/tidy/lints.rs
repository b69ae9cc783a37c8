//! The lints that carry the rest of the rules must stay on.

use crate::{none, top};
use std::fs;

/// Lints and how strict they must be at least, by their tables in the root `Cargo.toml`.
const RUST: &[(&str, &str)] = &[
    ("unsafe_code", "deny"),
    ("unsafe_op_in_unsafe_fn", "forbid"),
    ("missing_docs", "warn"),
];
const CLIPPY: &[(&str, &str)] = &[
    ("undocumented_unsafe_blocks", "deny"),
    ("too_many_lines", "warn"),
    ("unwrap_used", "warn"),
    ("allow_attributes_without_reason", "warn"),
    ("cast_possible_truncation", "warn"),
];

#[test]
fn the_lints_are_on() {
    let root: toml::Table = fs::read_to_string(top().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let clippy: toml::Table = fs::read_to_string(top().join("clippy.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let mut broken = Vec::new();
    for (tool, lints) in [("rust", RUST), ("clippy", CLIPPY)] {
        for (lint, level) in lints {
            let found = root["workspace"]["lints"][tool]
                .get(*lint)
                .and_then(toml::Value::as_str);
            if found != Some(level) {
                broken.push(format!("{tool}: {lint} is {found:?}, not {level:?}"));
            }
        }
    }
    let longest = clippy
        .get("too-many-lines-threshold")
        .and_then(toml::Value::as_integer);
    if longest != Some(70) {
        broken.push(format!("a function may have {longest:?} lines, not 70"));
    }
    none(
        "Clippy keeps functions short and unsafe code explained:",
        &broken,
    );
}
