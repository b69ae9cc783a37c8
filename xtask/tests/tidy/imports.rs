//! One style of imports: a `use` for each module path, in one block that rustfmt sorts, without
//! groups in groups, and `*` only where everything is meant.

use crate::exceptions::IMPORTS;
use crate::modules::sources;
use crate::{none, unless};

/// A `use` as it is written.
#[derive(Debug, PartialEq, Eq)]
struct UseStatement {
    /// Where it begins and ends, from 1.
    lines: (usize, usize),
    indent: usize,
    /// `pub` and the like; empty if there is none.
    visibility: String,
    /// Behind `use`, without white space.
    path: String,
    /// Whether an attribute is above it.
    is_conditional: bool,
}

impl UseStatement {
    /// The module path whose names it brings: before the braces, or before the last name.
    fn module(&self) -> &str {
        let end = self.path.find('{').or_else(|| self.path.rfind("::"));
        self.path[..end.unwrap_or(0)].trim_end_matches(':')
    }

    fn is_nested(&self) -> bool {
        let inside = self.path.split_once('{').map_or("", |(_, inside)| inside);
        inside.contains("::")
    }

    /// Whether it brings all names of something whose names nobody can guess.
    fn is_blind(&self) -> bool {
        self.path.ends_with('*') && self.path != "super::*" && !self.path.ends_with("prelude::*")
    }
}

/// Every `use` in `code`, whose literals and comments are blanked.
fn statements(code: &str) -> Vec<UseStatement> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        let Some((visibility, _)) = format!(" {text}")
            .split_once(" use ")
            .map(|(visibility, rest)| (visibility.trim().to_owned(), rest.to_owned()))
        else {
            continue;
        };
        if !visibility.is_empty() && !visibility.starts_with("pub") {
            continue;
        }
        let length = lines[at..]
            .iter()
            .take_while(|line| !line.contains(';'))
            .count();
        let end = (at + length).min(lines.len() - 1);
        let whole = lines[at..=end].join(" ");
        let path = whole.split_once("use ").map_or("", |(_, path)| path);
        let path: String = path
            .split(';')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let above = at.checked_sub(1).map_or("", |above| lines[above].trim());
        found.push(UseStatement {
            lines: (at + 1, end + 1),
            indent: line.len() - text.len(),
            visibility,
            path,
            is_conditional: above.starts_with("#[") || above.ends_with(")]"),
        });
    }
    found
}

/// What is wrong with the imports of a file, with their lines.
fn broken(code: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = code.lines().collect();
    let all = statements(code);
    let mut found = Vec::new();
    for (at, this) in all.iter().enumerate() {
        let line = this.lines.0;
        if this.is_nested() {
            found.push((
                line,
                "groups in a group: a `use` for each module path".into(),
            ));
        }
        if this.is_blind() {
            found.push((
                line,
                format!("`{}` brings names that nobody sees", this.path),
            ));
        }
        // Only in the same module: what stands further left would end it.
        let inside = |other: &&UseStatement| {
            let between = lines[other.lines.1..line - 1].iter();
            let mut between = between.filter(|text| !text.trim().is_empty());
            between.all(|text| text.len() - text.trim_start().len() >= this.indent)
        };
        let like = |other: &&UseStatement| {
            other.indent == this.indent && other.visibility == this.visibility
        };
        let mut earlier = all[..at].iter().rev().filter(like).take_while(inside);
        let twin = |other: &&UseStatement| other.module() == this.module();
        let twin = earlier
            .clone()
            .find(twin)
            .filter(|_| !this.module().is_empty());
        if let Some(twin) = twin.filter(|twin| !this.is_conditional && !twin.is_conditional) {
            let (module, other) = (this.module(), twin.lines.0);
            found.push((
                line,
                format!("`{module}` is in line {other} too: one `use`"),
            ));
        }
        let gap = |other: &UseStatement| {
            other.lines.1 + 2 == line && lines[other.lines.1].trim().is_empty()
        };
        if earlier.next().is_some_and(gap) {
            found.push((
                line,
                "an empty line in the block, which rustfmt sorts as one".into(),
            ));
        }
    }
    found
}

#[test]
fn imports_are_written_one_way() {
    let mut all = Vec::new();
    for source in sources().values() {
        for (line, what) in broken(&source.code) {
            all.push((
                source.name.clone(),
                format!("{}:{line}: {what}", source.name),
            ));
        }
    }
    none("Imports:", &unless(IMPORTS, all));
}

#[test]
fn what_is_another_style_is_found() {
    for (code, count) in [
        ("use a::{b, c};\nuse std::fs;\nuse std::fs::File;\n", 0),
        ("use a::b;\n\npub use c::d;\n", 0),
        ("use super::*;\nuse proptest::prelude::*;\n", 0),
        ("use a::b;\n#[cfg(test)]\nuse a::c;\n", 0),
        ("mod x {\n    use a::b;\n}\nmod y {\n    use a::c;\n}\n", 0),
        ("use a::{\n    b,\n    c::d,\n};\n", 1),
        ("use a::b;\nuse a::c;\n", 1),
        ("use a::b;\n\nuse c::d;\n", 1),
        ("    use Route::*;\n", 1),
    ] {
        let found = broken(code);
        assert_eq!(found.len(), count, "{code}: {found:?}");
    }
}
