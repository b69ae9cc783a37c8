//! The published E2B SDKs: environments with known versions, and the suites that run in them.
//!
//! The versions are pinned in `api/tests/sdk/python/requirements.txt` and
//! `api/tests/sdk/js/package-lock.json`; environments are built once and kept in the cache.

use crate::dist::{target_dir, workspace};
use crate::kernel::output;
use crate::test::runner::tee;
use crate::test::tally::Tally;
use crate::{cache, deps};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The newest Python SDK that creates sandboxes by the first API, `POST /sandboxes`.
const FIRST_API: &str = "2.45.1";

/// Which published version of an SDK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SdkRelease {
    /// The one this repository names.
    Pinned,
    /// The newest that the registry has.
    Latest,
    /// The newest of those that speak the first API (Python only).
    FirstApi,
}

/// A server under test, as environment variables for the suites.
#[derive(Clone, Debug)]
pub(crate) struct SdkTarget {
    env: Vec<(&'static str, String)>,
    /// Where pytest remembers what failed there.
    memory: PathBuf,
}

impl SdkTarget {
    /// The server at `url` that accepts `key`; `name` is that of where it runs.
    pub(crate) fn new(name: &str, url: &str, key: &str) -> Self {
        let mut target = Self {
            env: Vec::new(),
            memory: target_dir().join(format!("pytest-{name}")),
        };
        target
            .set("E2B_API_URL", url)
            .set("E2B_SANDBOX_URL", url)
            .set("E2B_API_KEY", key);
        target
    }

    /// Sets one more of the variables that `api/tests/sdk/README.md` lists.
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) -> &mut Self {
        self.env.push((name, value.into()));
        self
    }

    /// Has a program find the server, and nothing that the user has set for another one.
    pub(crate) fn apply(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("E2B_") || name == "HATCHERY_TIME_SCALE" {
                command.env_remove(&*name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
    }
}

fn sources() -> PathBuf {
    workspace().join("api/tests/sdk")
}

/// A Python with the pinned SDK.
pub(crate) fn python() -> Result<PathBuf> {
    let requirements = fs::read_to_string(sources().join("python/requirements.txt"))?;
    python_with(&requirements)
}

fn python_with(requirements: &str) -> Result<PathBuf> {
    deps::ensure(&["python3", "python3-venv"])?;
    let version = output(Command::new("/usr/bin/python3").arg("--version"))?;
    let key = cache::key([requirements.as_bytes(), version.as_bytes()]);
    let environment = cache::entry("sdk", &format!("py-{key}"), |dir| {
        eprintln!("installing {}", requirements.replace('\n', " "));
        run(Command::new("/usr/bin/python3")
            .args(["-m", "venv"])
            .arg(dir))?;
        let list = dir.join("requirements.txt");
        fs::write(&list, requirements)?;
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ];
        run(Command::new(dir.join("bin/python")).args(pip).arg(list))
    })?;
    // Programs beside it name the folder it was built in; modules (`python -m`) do not.
    Ok(environment.join("bin/python"))
}

/// A Python with this release, and its version; nothing if it is the pinned one again.
fn python_release(release: &SdkRelease) -> Result<Option<(PathBuf, String)>> {
    let requirements = fs::read_to_string(sources().join("python/requirements.txt"))?;
    let pinned = requirements
        .lines()
        .find_map(|line| line.strip_prefix("e2b=="))
        .context("requirements.txt pins no e2b")?;
    let version = match release {
        SdkRelease::Pinned => pinned.to_owned(),
        SdkRelease::FirstApi => FIRST_API.to_owned(),
        SdkRelease::Latest => {
            let pip = ["-m", "pip", "index", "versions", "e2b"];
            let text = output(Command::new(python()?).args(pip))?;
            let latest = text.split(['(', ')']).nth(1);
            latest
                .context("`pip index versions e2b` names no version")?
                .to_owned()
        }
    };
    if *release != SdkRelease::Pinned && version == pinned {
        return Ok(None);
    }
    let wanted = requirements.replace(&format!("e2b=={pinned}"), &format!("e2b=={version}"));
    Ok(Some((python_with(&wanted)?, version)))
}

/// A folder whose `node_modules` has this release, and its version; nothing if it is the pinned
/// one again.
fn node_release(release: &SdkRelease) -> Result<Option<(PathBuf, String)>> {
    deps::ensure_node()?;
    let manifest = fs::read_to_string(sources().join("js/package.json"))?;
    let lock = fs::read_to_string(sources().join("js/package-lock.json"))?;
    let json: serde_json::Value = serde_json::from_str(&manifest).context("js/package.json")?;
    let pinned = json["dependencies"]["e2b"]
        .as_str()
        .context("package.json pins no e2b")?;
    let version = match release {
        SdkRelease::Pinned => pinned.to_owned(),
        SdkRelease::FirstApi => bail!("The suite has no JavaScript SDK of the first API"),
        SdkRelease::Latest => output(Command::new("npm").args(["view", "e2b", "version"]))?
            .trim()
            .to_owned(),
    };
    if *release != SdkRelease::Pinned && version == pinned {
        return Ok(None);
    }
    let node = output(Command::new("node").arg("--version"))?;
    let key = cache::key([lock.as_bytes(), version.as_bytes(), node.as_bytes()]);
    let folder = cache::entry("sdk", &format!("js-{key}"), |dir| {
        eprintln!("installing e2b@{version} for Node");
        fs::write(dir.join("package.json"), &manifest)?;
        let mut npm = Command::new("npm");
        npm.current_dir(dir)
            .args(["--no-fund", "--no-audit", "--ignore-scripts", "--silent"]);
        if version == pinned {
            fs::write(dir.join("package-lock.json"), &lock)?;
            run(npm.arg("ci"))
        } else {
            run(npm.args(["install", "--save-exact", &format!("e2b@{version}")]))
        }
    })?;
    Ok(Some((folder, version)))
}

/// Which tests of a suite run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestRound {
    /// All.
    First,
    /// Those that failed before.
    Failed,
}

/// Runs the Python suite, or the part that `args` (pytest's) select.
pub(crate) fn pytest(
    target: &SdkTarget,
    release: &SdkRelease,
    args: &[&str],
    round: TestRound,
) -> Result<Tally> {
    let Some((python, version)) = python_release(release)? else {
        return Ok(Tally::default()); // the pinned suite has run with this very version
    };
    eprintln!("Python SDK {version}");
    let mut command = Command::new(python);
    command
        .args(["-m", "pytest", "--quiet", "--color=no", "-o"])
        .arg(format!("cache_dir={}", target.memory.display()))
        .args(args);
    if round == TestRound::Failed {
        command.args(["--last-failed", "--last-failed-no-failures=none"]);
    }
    command
        .current_dir(sources().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    target.apply(&mut command);
    let (status, text) = tee(&mut command)?;
    Ok(Tally::of_pytest(&text).or_failed(status, &format!("pytest with e2b {version}")))
}

/// Runs the JavaScript suite.
pub(crate) fn node_tests(target: &SdkTarget, release: &SdkRelease) -> Result<Tally> {
    let Some((folder, version)) = node_release(release)? else {
        return Ok(Tally::default());
    };
    eprintln!("JavaScript SDK {version}");
    let copy = beside_modules(&folder, "js")?;
    let mut command = Command::new("node");
    command
        .args(["--test", "--test-reporter=tap"])
        .current_dir(&copy);
    for entry in fs::read_dir(&copy)? {
        let name = entry?.file_name();
        if name.to_string_lossy().ends_with(".test.mjs") {
            command.arg(name);
        }
    }
    target.apply(&mut command);
    let (status, text) = tee(&mut command)?;
    fs::remove_dir_all(&copy)?;
    Ok(Tally::of_tap(&text).or_failed(status, &format!("node --test with e2b {version}")))
}

/// Runs the README's programs as they are; each counts as one test.
pub(crate) fn snippets(target: &SdkTarget) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut python = Command::new(python()?);
    python.arg(sources().join("snippets/quickstart.py"));
    let mut branches = Command::new(python.get_program());
    branches.arg(sources().join("snippets/branches.py"));
    let mut checkpoints = Command::new(python.get_program());
    checkpoints.arg(sources().join("snippets/checkpoints.py"));
    let mut ports = Command::new(python.get_program());
    ports.arg(sources().join("snippets/ports.py"));
    let mut network = Command::new(python.get_program());
    network.arg(sources().join("snippets/network.py"));
    let (folder, _) = node_release(&SdkRelease::Pinned)?.context("No JavaScript SDK")?;
    let copy = beside_modules(&folder, "snippets")?;
    let mut node = Command::new("node");
    node.arg(copy.join("quickstart.mjs"));
    for (name, command) in [
        ("quickstart.py", &mut python),
        ("quickstart.mjs", &mut node),
        ("branches.py", &mut branches),
        ("checkpoints.py", &mut checkpoints),
        ("ports.py", &mut ports),
        ("network.py", &mut network),
    ] {
        eprintln!("{name}");
        target.apply(command);
        let (status, _) = tee(command)?;
        tally.add(Tally::of_status(status, name));
    }
    fs::remove_dir_all(&copy)?;
    Ok(tally)
}

/// A copy of a source folder where Node finds the modules: it looks upward from the file.
fn beside_modules(folder: &Path, from: &str) -> Result<PathBuf> {
    let copy = folder.join(format!("run-{}-{from}", std::process::id()));
    fs::create_dir_all(&copy)?;
    for entry in fs::read_dir(sources().join(from))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "mjs") {
            fs::copy(
                &path,
                copy.join(path.file_name().context("A file without a name")?),
            )?;
        }
    }
    Ok(copy)
}

/// Runs to success; what it says is passed through.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("Running {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed ({status}): see its messages above");
    }
    Ok(())
}
