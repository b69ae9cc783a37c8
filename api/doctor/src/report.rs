//! Findings for people and for programs.

use crate::{Finding, Level, verdict};
use serde_json::json;
use std::fmt::Write as _;

/// One line per finding, with what follows below what is not fine; the last line is the verdict.
#[must_use]
pub fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Fine => "ok      ",
            Level::Note => "note    ",
            Level::Degraded => "DEGRADED",
            Level::Unusable => "UNUSABLE",
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "{mark}  {}: {}", finding.name, finding.found);
        if finding.level != Level::Fine {
            let _ = writeln!(out, "            {}", finding.consequence);
            let _ = writeln!(out, "            -> {}", finding.remedy);
        }
    }
    let _ = writeln!(out, "\n{}", conclusion(verdict(findings)));
    out
}

/// `{"verdict": …, "findings": […]}`
#[must_use]
pub fn json(findings: &[Finding]) -> String {
    format!(
        "{:#}",
        json!({ "verdict": conclusion_word(verdict(findings)), "findings": findings })
    )
}

fn conclusion(verdict: Level) -> &'static str {
    match verdict {
        Level::Fine | Level::Note => "fine: sandboxes run here",
        Level::Degraded => "degraded: sandboxes run here, with the limits above",
        Level::Unusable => "unusable: sandboxes do not run here until the above is remedied",
    }
}

fn conclusion_word(verdict: Level) -> &'static str {
    match verdict {
        Level::Fine | Level::Note => "fine",
        Level::Degraded => "degraded",
        Level::Unusable => "unusable",
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let findings = [
            Finding::fine("a", "good"),
            Finding::bad(Level::Degraded, "b", "less", "slow", "do this"),
        ];
        let people = text(&findings);
        assert!(
            people.contains("ok        a: good") && people.contains("-> do this"),
            "{people}"
        );
        assert!(people.trim_end().ends_with("with the limits above"));
        let program: serde_json::Value = serde_json::from_str(&json(&findings)).unwrap();
        assert_eq!(program["verdict"], "degraded");
        assert_eq!(program["findings"][1]["level"], "degraded");
    }
}
