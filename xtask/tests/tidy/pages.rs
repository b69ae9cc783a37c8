//! Pages: where their links lead, and whether the files and functions that they name are there.

use crate::modules::sources;
use crate::{files, none, top};
use std::collections::BTreeSet;
use std::fs;

/// Says what was, so it may name what is not there any more.
const HISTORY: &str = "CHANGELOG.md";

/// The page that names functions, as ``[file.rs](path) → `function()` ``.
const MAP: &str = "ARCHITECTURE.md";

/// A page of the tree, split at its fences.
struct MarkdownPage {
    name: String,
    /// Lines outside of fenced blocks.
    prose: Vec<String>,
    text: String,
}

impl MarkdownPage {
    fn new(name: &str, text: &str) -> Self {
        let mut fenced = false;
        let mut prose = Vec::new();
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if !fenced {
                prose.push(line.to_owned());
            }
        }
        Self {
            name: name.to_owned(),
            prose,
            text: text.to_owned(),
        }
    }

    fn read(name: &str) -> Self {
        Self::new(name, &fs::read_to_string(top().join(name)).unwrap())
    }

    /// The folder that its links begin at, empty or with a `/` at its end.
    fn folder(&self) -> &str {
        self.name.rfind('/').map_or("", |end| &self.name[..=end])
    }

    /// Where its links lead, sites of others left out.
    fn links(&self) -> Vec<&str> {
        let lines = self.prose.iter();
        let after = lines.flat_map(|line| line.split("](").skip(1));
        let targets = after.filter_map(|rest| rest.split([')', ' ']).next());
        targets
            .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
            .collect()
    }

    /// What its headings are called in links.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose.iter().filter(|line| line.starts_with('#'));
        headings
            .map(|line| anchor(line.trim_start_matches('#').trim()))
            .collect()
    }

    /// The Rust files that it names.
    fn sources(&self) -> BTreeSet<&str> {
        let inside = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        let words = self.text.split(|c| !inside(c));
        words
            .map(|word| word.trim_start_matches("./").trim_end_matches('.'))
            .filter(|word| {
                word.strip_suffix(".rs")
                    .is_some_and(|stem| !stem.is_empty())
            })
            .collect()
    }
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(kept)
        .collect::<String>();
    kept.replace(' ', "-")
}

/// `folder/../name` without its dots; `None`: above the top.
fn resolved(folder: &str, path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn pages() -> Vec<MarkdownPage> {
    let names = files().into_iter().filter(|name| name.ends_with(".md"));
    names.map(|name| MarkdownPage::read(&name)).collect()
}

/// What is wrong with a page's link.
fn broken_link(page: &MarkdownPage, link: &str) -> Option<String> {
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => Some(page.name.clone()),
        path => resolved(page.folder(), path),
    };
    let there = target.filter(|target| top().join(target).exists());
    let Some(target) = there else {
        return Some(format!("{}: {link}", page.name));
    };
    let known = heading.is_empty()
        || target == page.name && page.anchors().contains(heading)
        || target.ends_with(".md") && MarkdownPage::read(&target).anchors().contains(heading);
    (!known).then(|| format!("{}: {link}: no such heading", page.name))
}

#[test]
fn links_lead_somewhere() {
    let text = "# A b, `c`\n[x](gone.rs) [y](#a-b-c) [z](#d) [w](https://e)\n```\n[v](gone)\n```";
    let page = MarkdownPage::new("README.md", text);
    assert_eq!(page.links(), ["gone.rs", "#a-b-c", "#d"]);
    let broken = page.links().into_iter();
    let broken: Vec<_> = broken.filter_map(|link| broken_link(&page, link)).collect();
    assert_eq!(
        broken,
        ["README.md: gone.rs", "README.md: #d: no such heading"]
    );

    let pages = pages();
    let links = |page: &MarkdownPage| page.links().len();
    assert!(
        pages.iter().map(links).sum::<usize>() > 200,
        "they are found"
    );
    let broken = pages.iter().flat_map(|page| {
        let links = page.links().into_iter();
        links.filter_map(|link| broken_link(page, link))
    });
    none("Links that lead nowhere:", &broken.collect::<Vec<_>>());
}

/// Whether a page means one of these files: by a name alone one below its folder, by a path any
/// that ends so.
fn is_there(page: &MarkdownPage, named: &str, all: &[String]) -> bool {
    if !named.contains('/') {
        let end = format!("/{named}");
        let own = |file: &&String| file.starts_with(page.folder());
        return all
            .iter()
            .filter(own)
            .any(|file| file.ends_with(&end) || file == named);
    }
    let target = match named.starts_with("..") {
        true => resolved(page.folder(), named),
        false => Some(named.trim_start_matches('/').to_owned()),
    };
    target.is_some_and(|target| {
        let end = format!("/{target}");
        all.iter()
            .any(|file| *file == target || file.ends_with(&end))
    })
}

#[test]
fn sources_that_are_named_are_there() {
    let page = MarkdownPage::new("a/README.md", "`x.rs` and b/x.rs, not rs. (../b/x.rs).");
    assert_eq!(
        page.sources().into_iter().collect::<Vec<_>>(),
        ["../b/x.rs", "b/x.rs", "x.rs"]
    );
    let all = ["b/x.rs".to_owned()];
    assert!(is_there(&page, "b/x.rs", &all) && is_there(&page, "../b/x.rs", &all));
    assert!(!is_there(&page, "x.rs", &all) && !is_there(&page, "c/x.rs", &all));

    let all = files();
    let mut broken = Vec::new();
    for page in pages().iter().filter(|page| page.name != HISTORY) {
        let gone = page.sources();
        let gone = gone
            .into_iter()
            .filter(|named| !is_there(page, named, &all));
        broken.extend(gone.map(|named| format!("{}: {named}", page.name)));
    }
    none("Pages name files that are not there:", &broken);
}

/// The functions that a text names, each with its file.
fn functions(text: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for link in text.split("](").skip(1) {
        let Some((path, mut rest)) = link.split_once(") → ") else {
            continue;
        };
        while let Some((name, more)) = rest.strip_prefix('`').and_then(|r| r.split_once("()`")) {
            found.push((path, name));
            rest = more.strip_prefix(", ").unwrap_or_default();
        }
    }
    found
}

/// The functions in a drawing: the word after the number of a step.
fn drawn(drawing: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut words = drawing
        .split([' ', '\n', '(', ')', ','])
        .map(|word| word.trim_end_matches([':', '.']))
        .peekable();
    while let Some(word) = words.next() {
        let step = word.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let is_step = word.len() - step.len() < 2 && step.parse::<u8>().is_ok();
        let name = |next: &&str| next.starts_with(|c: char| c.is_ascii_lowercase());
        if is_step && let Some(next) = words.next_if(name) {
            found.push(next);
        }
    }
    found
}

#[test]
fn the_map_names_functions_that_are_there() {
    let text = "[a.rs](x/a.rs) → `one()`, `two()`: `three()`. [b](b.md)\n";
    assert_eq!(functions(text), [("x/a.rs", "one"), ("x/a.rs", "two")]);
    assert_eq!(
        drawn("1 one ─> 2a two() (3a 3b) ═K: Save═> 4 Five"),
        ["one", "two"]
    );

    let map = fs::read_to_string(top().join(MAP)).unwrap();
    let mut broken = Vec::new();
    let mut count = 0;
    for section in map.split("\n## ").flat_map(|part| part.split("\n### ")) {
        let mut parts = section.split("```");
        let (mut prose, mut drawings) = (String::new(), String::new());
        while let Some(text) = parts.next() {
            prose.push_str(&text.split_whitespace().collect::<Vec<_>>().join(" "));
            drawings.push_str(parts.next().unwrap_or_default());
        }
        let named = functions(&prose);
        count += named.len();
        for (path, name) in &named {
            let has = |code: &str| {
                ["(", "<"]
                    .iter()
                    .any(|c| code.contains(&format!("fn {name}{c}")))
            };
            if !sources().get(*path).is_some_and(|source| has(&source.code)) {
                broken.push(format!("{path} has no {name}()"));
            }
        }
        for name in drawn(&drawings) {
            if !named.iter().any(|(_, known)| *known == name) {
                let title = section.lines().next().unwrap_or_default();
                broken.push(format!("{title}: {name} is drawn, and no step names it"));
            }
        }
    }
    assert!(count > 200, "{count} functions are found");
    none("ARCHITECTURE.md:", &broken);
}
