//! All files: what stands at the top, what each room must have, what no file may say.

use crate::graph::packages;
use crate::{files, none, top};
use std::collections::BTreeSet;
use std::fs;

/// What may stand at the top. A new room is a decision about the house: make it in its design.
const TOP: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "GLOSSARY.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "api",
    "clippy.toml",
    "deny.toml",
    "guest-agent",
    "guest-kernel-config",
    "host",
    "perf",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "snapshot",
    "xtask",
];

/// A file may not be larger; data belongs elsewhere. Bytes.
const LARGEST: u64 = 512 << 10;

/// Files that must hold other people's text, and so are not searched.
const UNSEARCHED: &[&str] = &["Cargo.lock", "LICENSE", "xtask/tests/tidy/text.rs"];

/// What would tie the house to one machine, or says that it is not finished.
const BANNED: &[(&str, &str)] = &[
    ("/work/", "a path of one machine"),
    ("/root/.", "a path of one user's home"),
    (".pyenv", "a path of one user's home"),
    ("/tmp/t-", "a path of one machine"),
    ("artifactory", "one site's package mirror"),
    ("FIXME", "unfinished work"),
    ("XXX:", "unfinished work"),
    ("TODO", "unfinished work"),
    ("Under construction", "unfinished work"),
];

#[test]
fn nothing_else_stands_at_the_top() {
    let found: BTreeSet<_> = files()
        .iter()
        .map(|name| name.split('/').next().unwrap().to_owned())
        .collect();
    let extra: Vec<_> = found
        .into_iter()
        .filter(|name| !TOP.contains(&name.as_str()))
        .collect();
    none("The top holds only:", &extra);
}

#[test]
fn every_room_has_a_readme() {
    let mut rooms: Vec<_> = packages()
        .into_iter()
        .map(|package| package.folder)
        .collect();
    rooms.extend(["", "guest-kernel-config"].map(str::to_owned));
    let mut broken = Vec::new();
    for room in rooms {
        let text = fs::read_to_string(top().join(&room).join("README.md")).unwrap_or_default();
        if !text.starts_with("# ") || text.lines().count() < 3 {
            broken.push(format!(
                "{room}/README.md: a title and at least a paragraph"
            ));
        }
    }
    none("Every room says what it is:", &broken);
}

#[test]
fn files_are_text_of_modest_size_without_banned_words() {
    let mut broken = Vec::new();
    for name in files() {
        let path = top().join(&name);
        if fs::metadata(&path).unwrap().len() > LARGEST {
            broken.push(format!("{name}: larger than {LARGEST} bytes"));
            continue;
        }
        if UNSEARCHED.contains(&name.as_str()) {
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        for (number, line) in text.lines().enumerate() {
            for (word, why) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
                broken.push(format!("{name}:{}: {word:?} is {why}", number + 1));
            }
        }
    }
    none(
        "No file says what ties it to a machine, or that it is not finished:",
        &broken,
    );
}

#[test]
fn the_readme_shows_the_tested_programs() {
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    let mut broken = Vec::new();
    for name in [
        "quickstart.py",
        "quickstart.mjs",
        "branches.py",
        "checkpoints.py",
        "ports.py",
        "network.py",
    ] {
        let program = fs::read_to_string(top().join("api/tests/sdk/snippets").join(name)).unwrap();
        if !readme.contains(program.trim_end()) {
            broken.push(format!(
                "api/tests/sdk/snippets/{name} is not in it, word for word"
            ));
        }
    }
    for command in ["cargo xtask up", "cargo xtask test"] {
        if !readme.contains(command) {
            broken.push(format!("`{command}` is not in it"));
        }
    }
    none("README.md shows what the tests run:", &broken);
}

/// The section numbers that a text cites: `PROTOCOL.md §7.2, §7.3`.
fn cited(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in text.split("PROTOCOL.md ").skip(1) {
        for number in rest.split(", ").map_while(|part| part.strip_prefix('§')) {
            let end = number.find(|c: char| !c.is_ascii_digit() && c != '.');
            let number = &number[..end.unwrap_or(number.len())];
            found.push(number.trim_end_matches('.').to_owned());
        }
    }
    found
}

/// The numbers of the headings of `api/PROTOCOL.md`.
fn sections() -> BTreeSet<String> {
    let text = fs::read_to_string(top().join("api/PROTOCOL.md")).unwrap();
    let headings = text
        .lines()
        .filter(|line| line.starts_with("## ") || line.starts_with("### "));
    headings
        .filter_map(|line| line.trim_start_matches('#').split_whitespace().next())
        .map(|number| number.trim_end_matches('.').to_owned())
        .collect()
}

#[test]
fn sections_of_the_protocol_that_are_cited_are_there() {
    assert_eq!(
        cited("(api/PROTOCOL.md §7.2, §10). PROTOCOL.md §3.\n"),
        ["7.2", "10", "3"]
    );
    let sections = sections();
    assert!(sections.len() > 50, "{sections:?}");
    let protocol = fs::read_to_string(top().join("api/PROTOCOL.md")).unwrap();
    let own = protocol.split('§').skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let number = &rest[..end.unwrap_or(rest.len())];
        (
            "api/PROTOCOL.md".to_owned(),
            number.trim_end_matches('.').to_owned(),
        )
    });
    let mut all: Vec<_> = own.collect();
    for name in files() {
        let kind = name.rsplit('.').next().unwrap_or_default();
        if ["rs", "md", "py", "mjs", "toml"].contains(&kind) && name != UNSEARCHED[2] {
            let text = fs::read_to_string(top().join(&name)).unwrap();
            all.extend(
                cited(&text)
                    .into_iter()
                    .map(|number| (name.clone(), number)),
            );
        }
    }
    assert!(all.len() > 40, "the citations are found");
    let broken: Vec<_> = all
        .iter()
        .filter(|(_, number)| !sections.contains(number))
        .map(|(name, number)| format!("{name} cites §{number}"))
        .collect();
    none("api/PROTOCOL.md has no such section:", &broken);
}

#[test]
fn the_glossary_is_in_order_and_points_at_what_is_there() {
    let text = fs::read_to_string(top().join("GLOSSARY.md")).unwrap();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Term "));
    let rows: Vec<Vec<&str>> = rows
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let mut broken = Vec::new();
    let terms: Vec<_> = rows.iter().map(|row| row[0].to_lowercase()).collect();
    for pair in terms.windows(2).filter(|pair| pair[0] >= pair[1]) {
        broken.push(format!("{:?} stands before {:?}", pair[0], pair[1]));
    }
    for row in &rows {
        let [term, meaning, place] = row[..] else {
            broken.push(format!("{:?} has not three columns", row[0]));
            continue;
        };
        if meaning.is_empty() {
            broken.push(format!("{term:?} says nothing"));
        }
        let names = place.split('`').skip(1).step_by(2);
        for name in names.filter(|name| !name.starts_with(|c: char| c.is_uppercase())) {
            if !top().join(name).exists() {
                broken.push(format!("{term:?}: there is no {name}"));
            }
        }
    }
    assert!(rows.len() > 50, "{} terms", rows.len());
    none("GLOSSARY.md:", &broken);
}

#[test]
fn readmes_name_the_tests() {
    let mut broken = Vec::new();
    for package in packages().iter().filter(|package| package.name != "xtask") {
        let folder = top().join(&package.folder);
        let Ok(tests) = fs::read_dir(folder.join("tests")) else {
            continue;
        };
        // A crate of a folder may leave it to the folder's page.
        let pages = ["README.md", "../README.md"].map(|page| folder.join(page));
        let text: String = pages
            .iter()
            .filter_map(|page| fs::read_to_string(page).ok())
            .collect();
        for test in tests {
            let name = test.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".rs") && !text.contains(&name) {
                broken.push(format!(
                    "{}/README.md does not name tests/{name}",
                    package.folder
                ));
            }
        }
    }
    none("A README says what each file of tests is about:", &broken);
}
