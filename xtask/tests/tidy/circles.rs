//! No file of a crate needs another that needs it: a circle of files can only be read as one.
//!
//! A file needs another if it names something that is defined there, by a `use` or by a path. What
//! is re-exported counts for where it is defined, so a parent that only declares its children, or
//! passes their names on, needs none of them. Tests need whom they like.
//!
//! `TIDY_TOP=<a checkout> cargo test -p xtask --test tidy circles -- --nocapture` lists those of
//! another checkout.

use crate::exceptions::CIRCLES;
use crate::modules::{Crate, Found, Import, Item, Module, crates, sources};
use crate::none;
use std::collections::{BTreeMap, BTreeSet};

/// A file that another needs, and the first line that says so.
type Needs<'a> = BTreeMap<&'a str, BTreeMap<&'a str, usize>>;

/// Files that each need the others, by way of them all.
struct Circle<'a> {
    files: Vec<&'a str>,
    needs: Needs<'a>,
}

/// Who needs whom among the files of a crate.
fn needs(of: &Crate) -> Needs<'_> {
    let mut found = Needs::new();
    for (id, module) in of.modules.iter().enumerate().filter(|(_, m)| !m.test) {
        let mut need = |found_at: Option<Found>, line: usize| {
            let Some(Found::Within(other)) = found_at else {
                return; // a module by itself: what is named in it counts
            };
            let file = of.modules[other].file.as_str();
            if file != module.file && !of.modules[other].test {
                let lines = found.entry(module.file.as_str()).or_default();
                let first = lines.entry(file).or_insert(line);
                *first = line.min(*first);
            }
        };
        for import in &module.imports {
            let leads = of.resolve(id, &import.path);
            let own_child = match leads {
                Some(Found::Module(other) | Found::Within(other)) => {
                    other != id && of.is_within(other, id)
                }
                None => false,
            };
            let passed_on = import.public && own_child && !module.words.contains(&import.name);
            if passed_on {
                continue;
            }
            match (leads, import.name.as_str()) {
                (Some(Found::Module(other)), "*") => need(Some(Found::Within(other)), import.line),
                _ => need(leads, import.line),
            }
        }
        for (path, line) in &module.mentions {
            need(of.resolve(id, path), *line);
        }
    }
    found
}

/// All files that `from` leads to.
fn reach<'a>(needs: &Needs<'a>, from: &'a str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        for other in needs.get(file).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(*other) {
                next.push(other);
            }
        }
    }
    seen
}

fn circles(of: &Crate) -> Vec<Circle<'_>> {
    let needs = needs(of);
    let reach: BTreeMap<_, _> = needs
        .keys()
        .map(|&file| (file, reach(&needs, file)))
        .collect();
    let (mut placed, mut found) = (BTreeSet::new(), Vec::new());
    for (file, leads) in reach.iter().filter(|(file, leads)| leads.contains(*file)) {
        let back = |other: &&&str| reach.get(**other).is_some_and(|back| back.contains(file));
        let files: Vec<_> = leads.iter().filter(back).copied().collect();
        if placed.insert(*file) {
            placed.extend(files.iter().copied());
            let mut inside = Needs::new();
            for file in &files {
                let mut others = needs[file].clone();
                others.retain(|other, _| files.contains(other));
                inside.insert(file, others);
            }
            found.push(Circle {
                files,
                needs: inside,
            });
        }
    }
    found
}

impl Circle<'_> {
    /// Whether it is a pair, and both files say in their heads why.
    fn is_explained(&self) -> bool {
        let says = |file: &&str| {
            let head = sources()[*file].text.lines();
            let mut head = head.take_while(|line| line.starts_with("//") || line.is_empty());
            head.any(|line| line.contains("Circle:"))
        };
        self.files.len() == 2 && self.files.iter().all(says)
    }

    /// Its files in one line.
    fn named(&self) -> String {
        self.files.join(" ")
    }

    /// Its files, and under each the others that it needs, with the first line that says so.
    fn told(&self) -> String {
        let mut text = format!("a circle of {} files:", self.files.len());
        for (file, others) in &self.needs {
            text += &format!("\n  {file}");
            for (other, line) in others {
                let says = sources()[*file]
                    .text
                    .lines()
                    .nth(line - 1)
                    .unwrap_or_default();
                text += &format!("\n    :{line} needs {other}: {}", says.trim());
            }
        }
        text
    }
}

/// Those of all crates.
fn all() -> Vec<Circle<'static>> {
    crates().iter().flat_map(circles).collect()
}

/// How many circles there are in a folder.
pub(crate) fn count(folder: &str) -> usize {
    let inside = |circle: &Circle| circle.files[0].starts_with(&format!("{folder}/"));
    all().iter().filter(|circle| inside(circle)).count()
}

#[test]
fn circles_are_pairs_that_say_why() {
    let still: BTreeSet<&str> = CIRCLES
        .iter()
        .flat_map(|(_, files)| *files)
        .copied()
        .collect();
    let (mut broken, mut seen) = (Vec::new(), BTreeSet::new());
    for circle in all() {
        println!("{}\n", circle.told());
        if circle.is_explained() {
            continue;
        }
        seen.extend(circle.files.iter().copied());
        if circle.files.iter().any(|file| !still.contains(file)) {
            broken.push(circle.named());
        }
    }
    let over = still.difference(&seen);
    broken.extend(over.map(|file| format!("{file} is listed as in a circle but is not any more")));
    none(
        "Files need each other in one direction, or are a pair that says in both heads why \
         (`Circle: …`):",
        &broken,
    );
}

#[test]
fn a_circle_is_found_by_where_names_are_defined() {
    let module = |name: &str, parent, file: &str| Module {
        name: name.into(),
        parent,
        file: file.into(),
        ..Module::default()
    };
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
    let import = |text: &str, public| Import {
        name: text.rsplit("::").next().unwrap().into(),
        path: path(text),
        public,
        line: 1,
    };
    let item = |name: &str| Item {
        kind: "struct".into(),
        name: name.into(),
    };
    let mut root = module("crate", None, "lib.rs");
    root.children = [("a".into(), 1), ("b".into(), 2)].into();
    let mut a = module("a", Some(0), "a.rs");
    a.children = [("c".into(), 3)].into();
    a.imports = vec![import("c::C", true)];
    let mut b = module("b", Some(0), "b.rs");
    b.items = vec![item("B")];
    b.imports = vec![import("crate::a::C", false)];
    let mut c = module("c", Some(1), "a/c.rs");
    c.items = vec![item("C")];
    let mut of = Crate {
        folder: "x".into(),
        modules: vec![root, a, b, c],
    };
    // `a` only passes C on: `b` needs the child, and nobody needs `b`.
    assert_eq!(needs(&of), [("b.rs", [("a/c.rs", 1)].into())].into());
    assert!(circles(&of).is_empty());
    of.modules[3].mentions.push((path("super::super::b::B"), 7));
    let found = circles(&of);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].files, ["a/c.rs", "b.rs"]);
    // A parent that uses what it passes on needs its child.
    of.modules[1].words.insert("C".into());
    assert_eq!(needs(&of)["a.rs"], [("a/c.rs", 1)].into());
}
