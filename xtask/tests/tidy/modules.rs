//! The modules of our crates: which file each is in, what it defines and what it names.
//!
//! This reads declarations (`mod`, `use`, items) and paths, no types: enough to tell who names
//! whom.

use crate::lexer::{Token, blanked, tokens};
use crate::{files, top};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::OnceLock;

/// A source file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its name, from the top.
    pub(crate) name: String,
    /// All of it.
    pub(crate) text: String,
    /// With comments and the insides of literals blanked.
    pub(crate) code: String,
}

/// Every Rust file of the repository, by name.
pub(crate) fn sources() -> &'static BTreeMap<String, Source> {
    static SOURCES: OnceLock<BTreeMap<String, Source>> = OnceLock::new();
    SOURCES.get_or_init(|| {
        let rust = files().into_iter().filter(|name| name.ends_with(".rs"));
        rust.map(|name| {
            let text = fs::read_to_string(top().join(&name)).unwrap();
            let code = blanked(&text);
            (name.clone(), Source { name, text, code })
        })
        .collect()
    })
}

/// One `use` of one name.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    /// What the name stands for.
    pub(crate) path: Vec<String>,
    /// The name it is given here; `*` for all names.
    pub(crate) name: String,
    /// Whether others may use the name too.
    pub(crate) public: bool,
    /// The line of the name.
    pub(crate) line: usize,
}

/// An item that a module defines itself.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// `struct`, `fn` and so on.
    pub(crate) kind: String,
    pub(crate) name: String,
}

/// A module: a file, or braces in one.
#[derive(Debug, Default)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) parent: Option<usize>,
    /// The file that it is in.
    pub(crate) file: String,
    /// The line of its declaration in its parent; 0 for a root.
    pub(crate) line: usize,
    /// Whether its text is between braces in its parent's file.
    pub(crate) inline: bool,
    /// Whether it is compiled for tests only.
    pub(crate) test: bool,
    pub(crate) children: BTreeMap<String, usize>,
    pub(crate) items: Vec<Item>,
    pub(crate) imports: Vec<Import>,
    /// Paths named in its code outside of `use`, with their lines.
    pub(crate) mentions: Vec<(Vec<String>, usize)>,
    /// All single names in its code outside of `use`.
    pub(crate) words: BTreeSet<String>,
}

/// What cargo compiles as one crate, with all its modules; the root is the first.
#[derive(Debug)]
pub(crate) struct Crate {
    /// The folder of its package.
    pub(crate) folder: String,
    pub(crate) modules: Vec<Module>,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Module(usize),
    /// Something that this module defines.
    Within(usize),
}

/// All crates: libraries, programs and tests of every package.
pub(crate) fn crates() -> &'static [Crate] {
    static CRATES: OnceLock<Vec<Crate>> = OnceLock::new();
    CRATES.get_or_init(|| {
        let all = files();
        let manifests = all
            .iter()
            .filter(|name| name.ends_with("Cargo.toml") && name.contains('/'));
        let one = |manifest: &String| -> Vec<Crate> {
            let folder = manifest.trim_end_matches("/Cargo.toml");
            let roots = roots(folder, manifest, &all);
            roots
                .into_iter()
                .map(|(root, test)| Crate::read(folder, &root, test))
                .collect()
        };
        manifests.flat_map(one).collect()
    })
}

/// Files with nothing but tests.
pub(crate) fn test_files() -> BTreeSet<&'static str> {
    let all = crates().iter().flat_map(|of| &of.modules);
    let (tests, own): (Vec<_>, Vec<_>) = all.partition(|module| module.test);
    let own: BTreeSet<_> = own.iter().map(|module| module.file.as_str()).collect();
    let tests = tests.iter().map(|module| module.file.as_str());
    tests.filter(|file| !own.contains(file)).collect()
}

/// The root files of a package's crates, and whether each is a test.
fn roots(folder: &str, manifest: &str, all: &[String]) -> BTreeMap<String, bool> {
    let text = fs::read_to_string(top().join(manifest)).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let mut found = BTreeMap::new();
    for name in all.iter().filter(|name| name.ends_with(".rs")) {
        let Some(inside) = name.strip_prefix(&format!("{folder}/")) else {
            continue;
        };
        let parts: Vec<_> = inside.split('/').collect();
        let root = match parts[..] {
            ["build.rs"] | ["src", "lib.rs" | "main.rs"] => Some(false),
            ["src", "bin", _] | ["src", "bin", _, "main.rs"] => Some(false),
            ["tests" | "benches" | "examples", _] => Some(true),
            ["tests" | "benches" | "examples", _, "main.rs"] => Some(true),
            _ => None,
        };
        found.extend(root.map(|test| (name.clone(), test)));
    }
    for (kind, test) in [
        ("lib", false),
        ("bin", false),
        ("test", true),
        ("bench", true),
    ] {
        let entries = match table.get(kind) {
            Some(toml::Value::Array(list)) => list.iter().collect(),
            Some(one) => vec![one],
            None => Vec::new(),
        };
        let paths = entries
            .iter()
            .filter_map(|entry| entry.get("path")?.as_str());
        found.extend(paths.map(|path| (format!("{folder}/{path}"), test)));
    }
    found.retain(|name, _| all.contains(name));
    found
}

impl Crate {
    fn read(folder: &str, root: &str, test: bool) -> Self {
        let mut this = Self {
            folder: folder.into(),
            modules: Vec::new(),
        };
        let module = Module {
            name: "crate".into(),
            file: root.into(),
            test,
            ..Module::default()
        };
        this.modules.push(module);
        let below = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        this.file(0, below);
        this
    }

    /// Reads the file of a module; those of its children are in the folder `below`.
    fn file(&mut self, module: usize, below: &str) {
        let name = self.modules[module].file.clone();
        let source = &sources()[&name];
        let tokens = tokens(&source.code);
        Reader {
            krate: self,
            source,
            tokens: &tokens,
        }
        .module(module, 0, tokens.len(), below);
    }

    /// What `path`, named in the module `from`, leads to; nothing if it is not in this crate.
    pub(crate) fn resolve(&self, from: usize, path: &[String]) -> Option<Found> {
        self.follow(from, path, 12)
    }

    fn follow(&self, from: usize, path: &[String], fuel: u32) -> Option<Found> {
        let (first, rest) = path.split_first()?;
        let mut here = match first.as_str() {
            "crate" => Found::Module(0),
            "self" => Found::Module(from),
            "super" => Found::Module(self.modules[from].parent?),
            name => self.look_up(from, name, fuel)?,
        };
        for name in rest {
            let Found::Module(module) = here else {
                return Some(here); // a variant, a method
            };
            here = match name.as_str() {
                "self" => here,
                "super" => Found::Module(self.modules[module].parent?),
                name => self
                    .look_up(module, name, fuel)
                    .unwrap_or(Found::Within(module)),
            };
        }
        Some(here)
    }

    fn look_up(&self, at: usize, name: &str, fuel: u32) -> Option<Found> {
        let fuel = fuel.checked_sub(1)?;
        let module = &self.modules[at];
        if module.items.iter().any(|item| item.name == name) {
            return Some(Found::Within(at));
        }
        if let Some(child) = module.children.get(name) {
            return Some(Found::Module(*child));
        }
        let named = module.imports.iter().filter(|import| import.name == name);
        // `use x;` of an outer crate leads to itself.
        let named = named.filter(|import| import.path != [name]);
        if let Some(found) = named.filter_map(|i| self.follow(at, &i.path, fuel)).next() {
            return Some(found);
        }
        let globs = module.imports.iter().filter(|import| import.name == "*");
        let mut all = globs.filter_map(|i| match self.follow(at, &i.path, fuel)? {
            Found::Module(other) if other != at => self.look_up(other, name, fuel),
            _ => None,
        });
        all.next()
    }

    /// Whether `module` is `above` or inside of it.
    pub(crate) fn is_within(&self, module: usize, above: usize) -> bool {
        let mut next = Some(module);
        while let Some(at) = next {
            if at == above {
                return true;
            }
            next = self.modules[at].parent;
        }
        false
    }
}

struct Reader<'a> {
    krate: &'a mut Crate,
    source: &'a Source,
    tokens: &'a [Token<'a>],
}

/// What declares something with a name.
const ITEMS: &[&str] = &[
    "struct", "enum", "union", "trait", "type", "fn", "const", "static", "mod",
];

impl<'a> Reader<'a> {
    fn word(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |token| token.word)
    }

    /// Reads the tokens from `at` to `end` as the module's.
    fn module(&mut self, module: usize, mut at: usize, end: usize, below: &str) {
        let (mut depth, mut test, mut public, mut elsewhere) = (0_usize, false, false, None);
        while at < end {
            let token = self.tokens[at];
            match token.word {
                "#" if matches!(self.word(at + 1), "[" | "!") => {
                    let close = self.close(if self.word(at + 1) == "!" {
                        at + 2
                    } else {
                        at + 1
                    });
                    test |= self.is_test(at, close);
                    elsewhere = self.path_of(at, close).or(elsewhere);
                    at = close + 1;
                    continue;
                }
                "pub" => {
                    public = true;
                    at = if self.word(at + 1) == "(" {
                        self.close(at + 1) + 1
                    } else {
                        at + 1
                    };
                    continue;
                }
                "mod" if depth == 0 && self.is_named(at) => {
                    let other = elsewhere.take();
                    at = self.child(module, at, test, below, other);
                }
                // What is for tests only is not the module's.
                _ if test => at = self.item_end(at),
                "use" => at = self.imports(module, at, public),
                "enum" if self.is_named(at) => {
                    if depth == 0 {
                        self.item(module, "enum", at + 1);
                    }
                    at = self.variants(module, at + 2);
                }
                "{" => (depth, at) = (depth + 1, at + 1),
                "}" => (depth, at) = (depth.saturating_sub(1), at + 1),
                word if depth == 0 && ITEMS.contains(&word) && self.is_named(at) => {
                    self.item(module, word, at + 1);
                    at += 2;
                }
                "macro_rules" if self.word(at + 1) == "!" => {
                    self.item(module, "macro", at + 2);
                    at += 3;
                }
                _ => at = self.mention(module, at),
            }
            (test, public, elsewhere) = (false, false, None);
        }
    }

    /// Whether the token behind `at` is the name of what the one at `at` declares.
    fn is_named(&self, at: usize) -> bool {
        const NOT: &[&str] = &["fn", "unsafe", "extern", "async", "mut", "_", "move"];
        self.tokens
            .get(at + 1)
            .is_some_and(|next| next.is_name() && !NOT.contains(&next.word))
    }

    fn item(&mut self, module: usize, kind: &str, at: usize) {
        let Some(token) = self.tokens.get(at) else {
            return;
        };
        let item = Item {
            kind: kind.into(),
            name: token.word.into(),
        };
        self.krate.modules[module].items.push(item);
    }

    /// Where the bracket at `open` is closed.
    fn close(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for at in open..self.tokens.len() {
            match self.word(at) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return at;
            }
        }
        self.tokens.len()
    }

    /// Behind the item that begins at `at`.
    fn item_end(&self, mut at: usize) -> usize {
        let is_use = self.word(at) == "use";
        while at < self.tokens.len() {
            match self.word(at) {
                ";" | "," => return at + 1,
                "{" if is_use => at = self.close(at) + 1,
                "{" => return self.close(at) + 1,
                "(" | "[" => at = self.close(at) + 1,
                "}" => return at,
                _ => at += 1,
            }
        }
        at
    }

    /// Whether the attribute from `at` to `close` leaves what follows to tests.
    fn is_test(&self, at: usize, close: usize) -> bool {
        let words: Vec<_> = self.tokens[at..close].iter().map(|t| t.word).collect();
        words.contains(&"cfg") && words.contains(&"test") && !words.contains(&"not")
    }

    /// The file named by `#[path = "…"]`.
    fn path_of(&self, at: usize, close: usize) -> Option<String> {
        let text = &self.source.text[self.tokens[at].at..self.tokens[close].at];
        let quoted = text.strip_prefix("#[path")?.split('"').nth(1)?;
        Some(quoted.to_owned())
    }

    /// Reads `mod name;` or `mod name { … }`; where it ends.
    fn child(
        &mut self,
        parent: usize,
        at: usize,
        test: bool,
        below: &str,
        elsewhere: Option<String>,
    ) -> usize {
        let (name, line) = (self.word(at + 1).to_owned(), self.tokens[at].line);
        let inline = self.word(at + 2) == "{";
        let file = self.source.name.clone();
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        let id = self.krate.modules.len();
        let test = test || self.krate.modules[parent].test;
        let inside = format!("{below}/{name}");
        let mut child = Module {
            name: name.clone(),
            parent: Some(parent),
            line,
            inline,
            test,
            ..Module::default()
        };
        if inline {
            child.file = file;
            self.add(parent, id, child);
            let close = self.close(at + 2);
            self.module(id, at + 3, close, &inside);
            return close + 1;
        }
        let here = elsewhere.map(|path| format!("{folder}/{path}"));
        let names = here
            .into_iter()
            .chain([format!("{inside}.rs"), format!("{inside}/mod.rs")]);
        if let Some(file) = names.into_iter().find(|name| sources().contains_key(name)) {
            child.file = file;
            self.add(parent, id, child);
            self.krate.file(id, &inside);
        }
        at + 3
    }

    fn add(&mut self, parent: usize, id: usize, child: Module) {
        self.krate.modules[parent]
            .children
            .insert(child.name.clone(), id);
        self.krate.modules.push(child);
    }

    /// Reads a `use`; where it ends.
    fn imports(&mut self, module: usize, at: usize, public: bool) -> usize {
        let mut end = at + 1;
        while end < self.tokens.len() && self.word(end) != ";" {
            end += 1;
        }
        let mut next = at + 1;
        let mut found = Vec::new();
        self.tree(&[], &mut next, end, &mut found);
        for import in &mut found {
            import.public = public;
        }
        self.krate.modules[module].imports.append(&mut found);
        end + 1
    }

    /// One branch of a `use`, below `path`.
    fn tree(&self, path: &[String], at: &mut usize, end: usize, found: &mut Vec<Import>) {
        let mut path = path.to_vec();
        while *at < end {
            let token = self.tokens[*at];
            *at += 1;
            match token.word {
                "{" => {
                    while *at < end && self.word(*at) != "}" {
                        self.tree(&path, at, end, found);
                        if self.word(*at) == "," {
                            *at += 1;
                        }
                    }
                    *at += 1;
                    return;
                }
                "*" => {
                    found.push(Import {
                        path,
                        name: "*".into(),
                        public: false,
                        line: token.line,
                    });
                    return;
                }
                "::" => {}
                word => {
                    let own = word == "self" && !path.is_empty();
                    if !own {
                        path.push(word.into());
                    }
                    if self.word(*at) == "::" {
                        continue;
                    }
                    let mut name = path.last().cloned().unwrap_or_default();
                    if self.word(*at) == "as" {
                        name = self.word(*at + 1).into();
                        *at += 2;
                    }
                    found.push(Import {
                        path,
                        name,
                        public: false,
                        line: token.line,
                    });
                    return;
                }
            }
        }
    }

    /// Reads an enum behind its name: the names of its variants are nobody else's. Where it ends.
    fn variants(&mut self, module: usize, mut at: usize) -> usize {
        while at < self.tokens.len() && !matches!(self.word(at), "{" | ";") {
            at = self.mention(module, at);
        }
        let close = self.close(at);
        let mut name = true;
        at += 1;
        while at < close {
            match self.word(at) {
                "#" => at = self.close(at + 1) + 1,
                _ if name => (name, at) = (false, at + 1),
                "," => (name, at) = (true, at + 1),
                "(" | "{" => {
                    let end = self.close(at);
                    while at < end {
                        at = self.mention(module, at);
                    }
                }
                _ => at = self.mention(module, at),
            }
        }
        close + 1
    }

    /// Notes the path or word at `at`; behind it.
    fn mention(&mut self, module: usize, at: usize) -> usize {
        let token = self.tokens[at];
        let before = if at > 0 { self.word(at - 1) } else { "" };
        if !token.is_name() || before == "." {
            return at + 1;
        }
        let mut path = vec![token.word.to_owned()];
        let mut end = at + 1;
        while self.word(end) == "::" && self.tokens.get(end + 1).is_some_and(Token::is_name) {
            path.push(self.word(end + 1).into());
            end += 2;
        }
        let module = &mut self.krate.modules[module];
        if path.len() == 1 || before != "::" {
            module.words.insert(path[0].clone());
        }
        if path.len() > 1 && before != "::" {
            module.mentions.push((path, token.line));
        }
        end
    }
}
