//! Kernel configuration fragments: reading them, and comparing a built `.config` with them.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// One line of a fragment that means something.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ConfigSetting {
    /// `CONFIG_…`.
    option: String,
    /// What follows `=`; `None` for "is not set".
    value: Option<String>,
    /// Fragment and line, for messages.
    place: String,
}

/// All fragments of the folder, in the order of their names.
#[derive(Debug)]
pub(crate) struct ConfigFragments {
    settings: Vec<ConfigSetting>,
}

/// An option of a built configuration that is not what its fragment says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigDifference {
    wanted: String,
    found: String,
    place: String,
}

impl fmt::Display for ConfigDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: wanted {}, found {}",
            self.place, self.wanted, self.found
        )
    }
}

impl ConfigFragments {
    /// Reads every `*.config` in `folder`.
    ///
    /// # Errors
    /// A folder without fragments; a line that is neither an option nor a comment; an option
    /// without a reason above it; an option that is set twice.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .with_context(|| format!("Listing the fragments in {}", folder.display()))?
            .collect::<std::io::Result<Vec<_>>>()?
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "config"))
            .collect();
        files.sort();
        if files.is_empty() {
            bail!("{} holds no *.config fragment", folder.display());
        }
        let mut texts = Vec::new();
        for path in &files {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("Reading {}", path.display()))?;
            texts.push((name, text));
        }
        Self::parse(
            texts
                .iter()
                .map(|(name, text)| (name.as_str(), text.as_str())),
        )
    }

    /// Reads fragments from memory: name and text of each.
    fn parse<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut settings: Vec<ConfigSetting> = Vec::new();
        for (name, text) in texts {
            let mut reason = false;
            for (number, line) in text.lines().enumerate() {
                let place = format!("{name}:{}", number + 1);
                match setting(line) {
                    Some((option, value)) => {
                        if !std::mem::take(&mut reason) {
                            bail!("{place}: {option} has no reason on the line above it");
                        }
                        if let Some(first) = settings.iter().find(|s| s.option == option) {
                            bail!("{place}: {option} is already set at {}", first.place);
                        }
                        settings.push(ConfigSetting {
                            option,
                            value,
                            place,
                        });
                    }
                    None if line.starts_with("# ") => reason = true,
                    None if line.is_empty() => reason = false,
                    None => bail!("{place}: `{line}` is neither an option nor a comment"),
                }
            }
        }
        Ok(Self { settings })
    }

    /// All settings without comments, as `KCONFIG_ALLCONFIG` takes them.
    pub(crate) fn merged(&self) -> String {
        self.settings
            .iter()
            .map(|s| line(&s.option, s.value.as_deref()) + "\n")
            .collect()
    }

    /// How many options are wanted, and how many must stay off.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let forbidden = self.settings.iter().filter(|s| s.value.is_none()).count();
        (self.settings.len() - forbidden, forbidden)
    }

    /// What `built`, the text of a `.config`, says differently.
    pub(crate) fn differences(&self, built: &str) -> Vec<ConfigDifference> {
        let built: BTreeMap<_, _> = built.lines().filter_map(setting).collect();
        let differs = |s: &&ConfigSetting| built.get(&s.option).cloned().flatten() != s.value;
        self.settings
            .iter()
            .filter(differs)
            .map(|s| ConfigDifference {
                wanted: line(&s.option, s.value.as_deref()),
                found: match built.get(&s.option) {
                    Some(value) => line(&s.option, value.as_deref()),
                    None => "no such option (a dependency is off, or the name is wrong)".into(),
                },
                place: s.place.clone(),
            })
            .collect()
    }
}

/// Option and value of a configuration line; `None` for any other line.
fn setting(line: &str) -> Option<(String, Option<String>)> {
    if let Some(option) = line
        .strip_prefix("# ")
        .and_then(|l| l.strip_suffix(" is not set"))
    {
        return option
            .starts_with("CONFIG_")
            .then(|| (option.to_owned(), None));
    }
    let (option, value) = line.split_once('=')?;
    option
        .starts_with("CONFIG_")
        .then(|| (option.to_owned(), Some(value.to_owned())))
}

/// The configuration line for an option.
fn line(option: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{option}={value}"),
        None => format!("# {option} is not set"),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFragments> {
        ConfigFragments::parse([("a.config", text)])
    }

    const TEXT: &str =
        "# Why.\nCONFIG_A=y\n# How many.\nCONFIG_N=8\n\n# No.\n# CONFIG_B is not set\n";

    #[test]
    fn merged_fragments_hold_the_settings_only() {
        let merged = parse(TEXT).unwrap().merged();
        assert_eq!(merged, "CONFIG_A=y\nCONFIG_N=8\n# CONFIG_B is not set\n");
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let fragments = parse(TEXT).unwrap();
        let found = |built| -> Vec<String> {
            fragments
                .differences(built)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert!(found("CONFIG_A=y\nCONFIG_N=8\n").is_empty());
        assert!(found("CONFIG_A=y\nCONFIG_N=8\n# CONFIG_B is not set\n").is_empty());
        assert_eq!(
            found("# CONFIG_A is not set\nCONFIG_N=64\nCONFIG_B=y\n"),
            [
                "a.config:2: wanted CONFIG_A=y, found # CONFIG_A is not set",
                "a.config:4: wanted CONFIG_N=8, found CONFIG_N=64",
                "a.config:7: wanted # CONFIG_B is not set, found CONFIG_B=y",
            ]
        );
        assert_eq!(
            found("CONFIG_A=y\n").len(),
            1,
            "an absent wanted option is a difference"
        );
    }

    #[test]
    fn an_option_needs_a_reason_of_its_own() {
        for text in [
            "CONFIG_A=y\n",
            "# Why.\nCONFIG_A=y\nCONFIG_B=y\n",
            "# Why.\n\nCONFIG_A=y\n",
        ] {
            assert!(
                parse(text).unwrap_err().to_string().contains("no reason"),
                "{text}"
            );
        }
    }

    #[test]
    fn doubtful_fragments_are_refused() {
        let twice = "# Why.\nCONFIG_A=y\n# Again.\n# CONFIG_A is not set\n";
        assert!(
            parse(twice)
                .unwrap_err()
                .to_string()
                .contains("already set at a.config:2")
        );
        assert!(
            parse("CONFG_A=y\n")
                .unwrap_err()
                .to_string()
                .contains("neither")
        );
    }

    #[test]
    fn the_fragments_of_this_workspace_are_well_formed() {
        let fragments = ConfigFragments::load(&crate::kernel::folder()).unwrap();
        let (wanted, forbidden) = fragments.counts();
        assert!(
            wanted > 100 && forbidden > 30,
            "{wanted} wanted, {forbidden} forbidden"
        );
    }
}
