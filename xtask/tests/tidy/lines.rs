//! Lines that rustfmt leaves too long: comments, literals, and what is inside of macros.

use crate::exceptions::LONG_LINES;
use crate::modules::{Source, sources, test_files};
use crate::{none, unless};

/// Most columns of a line, as in `rustfmt.toml`.
const WIDEST: usize = 100;

/// Lines of a file that are too long. What is quoted may be as long as it is where it cannot be
/// broken: an address, a test's data, the inside of a raw string, a row of a table.
fn too_long(source: &Source, is_test: bool) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut in_tests = is_test;
    for (at, (text, code)) in source.text.lines().zip(source.code.lines()).enumerate() {
        in_tests |= code.starts_with("mod test");
        let columns = text.chars().count();
        if columns <= WIDEST {
            continue;
        }
        let comment = text.trim_start().starts_with("//");
        // In `code` a literal is as many spaces as it has bytes.
        let last = text.trim_end_matches([',', ';', ')', '.']).len();
        let quoted = !comment && code.get(..last).is_some_and(|code| code.ends_with(' '));
        let opens = text.contains("r\"") || text.contains("r#\"");
        let inside = code.trim().is_empty() && !text.ends_with('\\');
        let raw = quoted && (opens || inside);
        let row = comment && text.contains("| ") && text.trim_end().ends_with('|');
        if !(quoted && (in_tests || raw) || row || text.contains("://")) {
            found.push((at + 1, columns));
        }
    }
    found
}

#[test]
fn lines_fit_a_screen() {
    let tests = test_files();
    let mut broken = Vec::new();
    for (name, source) in sources() {
        for (line, columns) in too_long(source, tests.contains(name.as_str())) {
            broken.push((name.clone(), format!("{name}:{line}: {columns} columns")));
        }
    }
    let broken = unless(LONG_LINES, broken);
    none(&format!("A line has at most {WIDEST} columns:"), &broken);
}

#[test]
fn what_cannot_be_broken_may_be_long() {
    let long = "x".repeat(WIDEST);
    let lines = |text: String| {
        let code = crate::lexer::blanked(&text);
        let name = "x.rs".into();
        too_long(&Source { name, text, code }, false).len()
    };
    assert_eq!(lines(format!("// {long}\n")), 1);
    assert_eq!(lines(format!("let a = \"{long}\";\n")), 1);
    assert_eq!(
        lines(format!("mod test {{\n    let a = \"{long}\";\n}}\n")),
        0
    );
    assert_eq!(lines(format!("mod test {{\n    // {long}\n}}\n")), 1);
    assert_eq!(lines(format!("// <https://{long}>\n")), 0);
    assert_eq!(lines(format!("//! | a | {long} |\n")), 0);
    assert_eq!(lines(format!("let a = r\"\n{long}\n\";\n")), 0);
    assert_eq!(lines(format!("let {long} = 1;\n")), 1);
}
