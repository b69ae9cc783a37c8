//! What this program prints for people, and for whoever runs it.

/// Prints a line.
#[expect(clippy::print_stdout, reason = "the report is this program's output")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
