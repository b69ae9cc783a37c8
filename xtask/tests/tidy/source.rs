//! Rust sources: how long, how named, where unsafe.

use crate::{files, none, top};
use std::fs;

/// Lines of code a file may have without its tests, blank lines and comments.
const LONGEST: usize = 400;

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

/// A source file, and its text with comments, strings and characters blanked.
struct Source {
    name: String,
    text: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let rust = files().into_iter().filter(|name| name.ends_with(".rs"));
    rust.map(|name| {
        let text = fs::read_to_string(top().join(&name)).unwrap();
        let code = blanked(&text);
        Source { name, text, code }
    })
    .collect()
}

impl Source {
    /// Whether all of it is test code.
    fn is_test(&self) -> bool {
        let file = self.name.rsplit('/').next().unwrap();
        if self.name == "xtask/src/test.rs" {
            return false; // the test command
        }
        self.name.contains("/tests/")
            || ["test.rs", "tests.rs"].contains(&file)
            || file.ends_with("_test.rs")
    }

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

/// `text` with the same lines, where comments and the insides of literals are spaces.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).unwrap()
}

/// Where the comment or literal that begins at `at` ends; `at` if none begins there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    let find = |from: usize, what: &[u8]| {
        let hit = bytes[from..]
            .windows(what.len())
            .position(|window| window == what);
        hit.map_or(bytes.len(), |hit| from + hit + what.len())
    };
    match rest {
        [b'/', b'/', ..] => rest
            .iter()
            .position(|&b| b == b'\n')
            .map_or(bytes.len(), |n| at + n),
        [b'/', b'*', ..] => find(at + 2, b"*/"),
        [b'"', ..] => quoted_end(bytes, at, b'"'),
        [b'r', b'"' | b'#', ..] if !after_name || bytes[at - 1] == b'b' => {
            let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return at; // a raw identifier
            }
            let close = [&b"\""[..], &vec![b'#'; hashes]].concat();
            find(at + 2 + hashes, &close)
        }
        // A character, not a lifetime: closed after one character or an escape.
        [b'\'', b'\\', ..] => quoted_end(bytes, at, b'\''),
        [b'\'', first, ..] => {
            let width = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            if rest.get(1 + width) == Some(&b'\'') {
                at + width + 2
            } else {
                at
            }
        }
        _ => at,
    }
}

fn quoted_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != quote {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

/// Whether `word` stands in `line` by itself.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.chars().next_back().is_some_and(part) && !after.chars().next().is_some_and(part)
    })
}

#[test]
fn blanking_keeps_lines_and_code() {
    let text = "let a = \"unsafe \\\" {\"; // unsafe\nlet b = 'x'; let c: &'static str = r#\"un\"safe\"#;\n\
                /* unsafe\n */ let d = b'\\''; let é = '雪'; unsafe { f() }\n";
    let code = blanked(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(code.matches("unsafe").count(), 1);
    assert!(code.contains("&'static str") && code.contains("let é") && code.contains("let d"));
}

#[test]
fn a_file_is_one_idea() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
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
    let all = sources();
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
            .iter()
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
            .iter()
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
    for source in &sources() {
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
