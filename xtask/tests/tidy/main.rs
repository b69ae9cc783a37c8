//! The house's own rules, checked: who may know whom, where `unsafe` may be, how long a file may
//! get, what may stand at the top. Each test is one rule; each exception has its reason here.
//!
//! Functions over 70 lines, unsafe blocks without a SAFETY note and the like are clippy's work;
//! [`lints`] only makes sure that nobody switches it off.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests: to panic is to fail")]

mod graph;
mod licences;
mod lints;
mod source;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's top folder.
fn top() -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
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

/// Fails with all `broken` rules at once.
#[track_caller]
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}
