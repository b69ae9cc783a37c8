//! What a test waits for in a log is what some program says: the words of either are in both.

use crate::{files, none, top};
use std::fs;

/// The call of the SDK suites that looks for words in the server's log.
const CALL: &str = "said(box, \"";

#[test]
fn tests_wait_for_words_that_are_logged() {
    let read = |ending: &str| -> Vec<(String, String)> {
        let names = files().into_iter().filter(|name| name.ends_with(ending));
        names
            .map(|name| {
                let text = fs::read_to_string(top().join(&name)).unwrap();
                (name, text)
            })
            .collect()
    };
    let sources = read(".rs");
    let logged = |words: &str| {
        let quoted = format!("\"{words}\"");
        sources.iter().any(|(_, text)| text.contains(&quoted))
    };
    let mut seen = 0;
    let mut wrong = Vec::new();
    for (name, text) in read(".py") {
        for part in text.split(CALL).skip(1) {
            let words = part.split('"').next().unwrap_or_default();
            seen += 1;
            if !logged(words) {
                wrong.push(format!("{name}: nothing logs {words:?}"));
            }
        }
    }
    assert!(seen > 1, "no test asks by `{CALL}…`: has it another name?");
    none("words that no program logs", &wrong);
}
