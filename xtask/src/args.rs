//! The command line of `cargo xtask`.

use crate::{bench, fuzz, image, kernel, lab, up};
use clap::{Parser, Subcommand};

/// The command line.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, runs, tests and measures Hatchery"
)]
pub(crate) struct XtaskArgs {
    #[command(subcommand)]
    pub(crate) command: XtaskCommand,
}

/// What it asks for.
#[derive(Subcommand)]
pub(crate) enum XtaskCommand {
    /// From nothing to a running server, checked with the published E2B SDK
    Up(up::UpArgs),
    /// Format, lints, the house's rules and documentation, within a minute
    Check,
    /// Everything that must pass, ending in a count
    Test(crate::test::TestArgs),
    /// Measure, and compare with the targets
    Bench(bench::BenchArgs),
    /// Drive the decoders by libFuzzer, and keep what it finds
    Fuzz(fuzz::FuzzArgs),
    /// Build the guest kernel, or check a built one against its fragments
    Kernel(kernel::KernelArgs),
    /// Build the guest images
    Image(image::ImageArgs),
    /// The emulated host: real KVM on machines without hardware virtualization
    Lab(lab::LabArgs),
}

#[cfg(test)]
mod test {
    use super::XtaskArgs;
    use clap::{Command, CommandFactory};
    use std::path::Path;

    /// The word of `rest` that should be a subcommand of `command` and is none.
    fn stranger<'a>(mut command: &Command, rest: &'a str) -> Option<&'a str> {
        for word in rest.split([' ', '`', '\n']) {
            let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
            if !plain || !command.has_subcommands() {
                return None;
            }
            match command.find_subcommand(word) {
                Some(found) => command = found,
                None => return Some(word),
            }
        }
        None
    }

    #[test]
    fn a_command_that_does_not_exist_is_found() {
        let command = XtaskArgs::command();
        for (rest, expected) in [
            ("lab exec -- true", None),
            ("test --only vm", None),
            ("up`, then", None),
            ("lab …", None),
            ("lab execute -- true", Some("execute")),
            ("bench everything", Some("everything")),
        ] {
            assert_eq!(stranger(&command, rest), expected, "{rest}");
        }
    }

    /// The suites and people type what the pages and scripts say.
    #[test]
    fn every_command_that_the_tree_names_is_there() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let files = std::process::Command::new("git")
            .args(["ls-files", "-z"])
            .current_dir(&top)
            .output()
            .unwrap();
        let files = String::from_utf8(files.stdout).unwrap();
        let command = XtaskArgs::command();
        let mut named = 0;
        let mut missing = Vec::new();
        for file in files.split_terminator('\0') {
            let Ok(text) = std::fs::read_to_string(top.join(file)) else {
                continue; // not text, or removed and not committed yet
            };
            for rest in text.split("cargo xtask ").skip(1) {
                named += 1;
                if let Some(word) = stranger(&command, rest.lines().next().unwrap_or_default()) {
                    missing.push(format!("{file}: {word}"));
                }
            }
        }
        assert!(named > 50, "only {named} were found");
        assert!(missing.is_empty(), "{missing:#?}");
    }

    #[test]
    fn what_the_suites_call_is_understood() {
        for line in [
            "xtask lab exec -- sh -c true",
            "xtask lab start --name other --forward 3000:3000",
            "xtask lab push a b /tmp/",
            "xtask lab agent",
        ] {
            let parsed = <XtaskArgs as clap::Parser>::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {}", parsed.err().unwrap());
        }
    }
}
