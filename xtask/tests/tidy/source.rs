//! Rust sources: how long, how named, where unsafe.

use crate::lexer::has_word;
use crate::modules::{Source, sources, test_files};
use crate::{none, top};

/// Lines of code a file may have without its tests, blank lines and comments.
pub(crate) const LONGEST: usize = 400;

/// Files that may be longer, and why.
const LONGER: &[(&str, &str)] = &[
    (
        "guest-agent/agent/src/procs.rs",
        "the table of processes and its transitions, which must be read together",
    ),
    (
        "host/devices/src/block/device.rs",
        "one request's way through the layer, from its checks to its completion",
    ),
];

impl Source {
    /// Lines of code before the tests at its end.
    fn lines(&self) -> usize {
        let tests = ["#[cfg(test)]\nmod test {", "#[cfg(test)]\nmod tests {"];
        let end = tests.iter().filter_map(|tests| self.code.find(tests)).min();
        let code = &self.code[..end.unwrap_or(self.code.len())];
        code.lines().filter(|line| !line.trim().is_empty()).count()
    }

    /// Whether it, or an item in it, expects unsafe code and gives the reason. (The reason is
    /// blanked in `code`.)
    fn says_why_unsafe(&self) -> bool {
        let text = self.text.split_whitespace().collect::<Vec<_>>().join(" ");
        text.contains("[expect(unsafe_code, reason = \"")
            || text.contains("[expect( unsafe_code, reason = \"")
    }

    /// The lines on which `found` says yes, as `file:line: text`.
    fn lines_where(&self, found: impl Fn(&str) -> bool) -> Vec<String> {
        let pairs = self.code.lines().zip(self.text.lines()).enumerate();
        let hits = pairs.filter(|(_, (code, _))| found(code));
        hits.map(|(at, (_, text))| format!("{}:{}: {}", self.name, at + 1, text.trim()))
            .collect()
    }
}

/// How many files of a folder are longer than they may be without a reason.
pub(crate) fn long(folder: &str) -> usize {
    let of_folder = |source: &&Source| source.name.starts_with(&format!("{folder}/"));
    let own = sources().values().filter(of_folder);
    let tests = test_files();
    own.filter(|source| !tests.contains(source.name.as_str()) && source.lines() > LONGEST)
        .count()
}

#[test]
fn a_file_is_one_idea() {
    let mut broken = Vec::new();
    let tests = test_files();
    let own = sources()
        .iter()
        .filter(|(name, _)| !tests.contains(name.as_str()));
    for (_, source) in own {
        let listed = LONGER.iter().any(|(name, _)| *name == source.name);
        let long = source.lines() > LONGEST;
        if long && !listed {
            broken.push(format!("{}: {} lines", source.name, source.lines()));
        }
        if !long && listed {
            broken.push(format!(
                "{} is listed as longer but is not any more",
                source.name
            ));
        }
    }
    for (name, _) in LONGER
        .iter()
        .filter(|(name, _)| !top().join(name).is_file())
    {
        broken.push(format!("{name} is listed as longer but is not there"));
    }
    let rule =
        format!("A file has at most {LONGEST} lines of code without tests, or a reason here:");
    none(&rule, &broken);
}

#[test]
fn unsafe_files_say_why_and_the_rest_forbids_it() {
    let mut broken = Vec::new();
    let all: Vec<_> = sources().values().collect();
    for source in &all {
        let uses = source.code.lines().any(|line| has_word(line, "unsafe"));
        // A folder may say it once, in its `mod.rs`.
        let folder = format!("{}/mod.rs", source.name.rsplit_once('/').unwrap().0);
        let above = all
            .iter()
            .any(|other| other.name == folder && other.says_why_unsafe());
        if uses && !above && !source.says_why_unsafe() {
            broken.push(format!(
                "{} uses unsafe without `#![expect(unsafe_code, reason = …)]`",
                source.name
            ));
        }
        let excused = source.code.contains("allow(unsafe_code");
        if excused {
            broken.push(format!(
                "{} allows unsafe: expect it, file by file",
                source.name
            ));
        }
    }
    for root in all.iter().filter(|source| {
        source.name.ends_with("/src/lib.rs") || source.name.ends_with("/src/main.rs")
    }) {
        let folder = root.name.rsplit_once('/').unwrap().0;
        let inside = all
            .iter()
            .filter(|other| other.name.starts_with(&format!("{folder}/")));
        let uses = inside
            .into_iter()
            .any(|other| other.code.lines().any(|line| has_word(line, "unsafe")));
        if !uses && !root.code.contains("#![forbid(unsafe_code)]") {
            broken.push(format!(
                "{} has no unsafe code below it: let it forbid it",
                root.name
            ));
        }
    }
    none("Unsafe code is where its file says why:", &broken);
}

#[test]
fn devices_never_name_kvm_and_machine_never_names_a_device() {
    let mut broken = Vec::new();
    for (folder, words) in [
        ("host/devices/src/", &["kvm"][..]),
        ("host/machine/src/", &["virtio", "vsock"]),
        ("host/jail/src/", &["kvm", "virtio", "vsock", "vcpu"]),
        ("guest-agent/", &["json", "kvm", "virtio"]),
    ] {
        for source in sources()
            .values()
            .filter(|source| source.name.starts_with(folder))
        {
            for word in words {
                let named = |line: &str| {
                    let lower = line.to_lowercase();
                    has_word(&lower, word)
                        || lower.contains(&format!("{word}_"))
                        || lower.contains(&format!("{word}::"))
                };
                broken.extend(source.lines_where(named));
            }
        }
    }
    none("A room names only what it knows:", &broken);
}

#[test]
fn no_async_outside_the_service_and_the_tools() {
    let mut broken = Vec::new();
    for folder in ["host/", "snapshot/", "guest-agent/"] {
        for source in sources()
            .values()
            .filter(|source| source.name.starts_with(folder))
        {
            broken.extend(
                source.lines_where(|line| has_word(line, "async") || line.contains(".await")),
            );
        }
    }
    none(
        "Threads and io_uring below, async only in api/ and perf/:",
        &broken,
    );
}

#[test]
fn nothing_is_left_for_later() {
    let mut broken = Vec::new();
    for source in sources().values() {
        for word in ["todo!", "unimplemented!", "dbg!"] {
            broken.extend(source.lines_where(|line| line.contains(word)));
        }
        broken.extend(source.lines_where(|line| line.contains("#[ignore]")));
    }
    none(
        "Code is finished, and a test that is ignored says why:",
        &broken,
    );
}
