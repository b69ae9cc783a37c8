//! The house's own rules, checked: who may know whom, where `unsafe` may be, how long a file may
//! get, what may stand at the top. Each test is one rule; each exception has its reason here.
//!
//! Functions over 70 lines, unsafe blocks without a SAFETY note and the like are clippy's work;
//! [`lints`] only makes sure that nobody switches it off.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests: to panic is to fail")]

mod circles;
mod dead;
mod exceptions;
mod graph;
mod imports;
mod lexer;
mod licences;
mod lines;
mod lints;
mod log_lines;
mod modules;
mod names;
mod pages;
mod source;
mod style;
mod text;

use exceptions::Excused;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's top folder, or that of another checkout: `$TIDY_TOP`.
fn top() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let top = std::env::var_os("TIDY_TOP").map_or_else(own, PathBuf::from);
    fs::canonicalize(&top).unwrap()
}

/// Every file of the repository, relative to [`top`]: committed, or new and not ignored.
fn files() -> Vec<String> {
    let git = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ])
        .current_dir(top())
        .output();
    if let Ok(listing) = git
        && listing.status.success()
    {
        let text = String::from_utf8(listing.stdout).unwrap();
        let mut names: Vec<_> = text.split_terminator('\0').map(str::to_owned).collect();
        names.retain(|name| top().join(name).is_file()); // a deleted file is still listed
        names.sort();
        names.dedup();
        return names;
    }
    // Not a clone (an unpacked archive): everything that is there.
    let mut found = Vec::new();
    walk(&top(), &mut found);
    found.sort();
    found
}

fn walk(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path
            .strip_prefix(top())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        if path.is_dir() && !["target", ".git", "node_modules"].contains(&name.as_str()) {
            walk(&path, found);
        } else if path.is_file() {
            found.push(name);
        }
    }
}

/// What breaks a rule in files that are not excused, and what excuses a file, or a folder whose
/// name ends in `/`, that does not break it. `broken` names the file of each.
fn unless(excused: Excused, broken: Vec<(String, String)>) -> Vec<String> {
    let covers = |excuse: &str, file: &str| {
        file == excuse || excuse.ends_with('/') && file.starts_with(excuse)
    };
    let excuses: Vec<&str> = excused
        .iter()
        .flat_map(|(_, files)| *files)
        .copied()
        .collect();
    let idle = excuses
        .iter()
        .filter(|excuse| !broken.iter().any(|(file, _)| covers(excuse, file)));
    let mut told: Vec<_> = idle
        .map(|excuse| format!("{excuse} is excused, and keeps the rule"))
        .collect();
    for (file, what) in broken {
        if !excuses.iter().any(|excuse| covers(excuse, &file)) {
            told.push(what);
        }
    }
    told
}

/// Fails with all `broken` rules at once.
#[track_caller]
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}
