//! The guest kernel: Debian's kernel source, configured by the fragments in
//! `guest-kernel-config/`, built once and cached by content.
//!
//! The cache entry `kernel/<key>/` holds `vmlinux` (what the VMM loads), `config` (what it was
//! really built with) and `System.map`. The key covers the fragments, the patches, the version of
//! the source package, the compiler and [`RECIPE`], so an edited fragment is a new kernel.

mod elf;
pub(crate) mod fragments;
pub(crate) mod progress;

use crate::{cache, deps};
use anyhow::{Context, Result, bail};
use fragments::ConfigFragments;
use progress::BuildProgress;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

/// Debian package that carries the source, as a tar archive in `/usr/src`.
const SOURCE: &str = "linux-source-6.12";

/// What compiling it needs on a machine that has only a Rust toolchain.
const TOOLS: &[&str] = &[
    "bc",
    "binutils",
    "bison",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "patch",
    "xz-utils",
];

/// Version of the steps in this file: raise it when they would give a different kernel.
const RECIPE: &str = "2";

/// Lines that make prints for one build; only the progress line depends on it.
const EXPECTED_STEPS: u64 = 1_976;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct KernelArgs {
    #[command(subcommand)]
    action: KernelAction,
}

#[derive(clap::Subcommand)]
enum KernelAction {
    /// Build the kernel unless the cache has it; print the path of its vmlinux
    Build,
    /// Prove that a built kernel's configuration says what the fragments say
    Check {
        /// A `.config` to check in place of the cached kernel's
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

/// Runs `cargo xtask kernel …`.
pub(crate) fn run(args: &KernelArgs) -> Result<ExitCode> {
    match &args.action {
        KernelAction::Build => {
            let path = ensure()?;
            writeln!(std::io::stdout(), "{}", path.display())?;
            Ok(ExitCode::SUCCESS)
        }
        KernelAction::Check { config } => check(config.as_deref()),
    }
}

/// The guest kernel's `vmlinux` in the cache, built first if it is not there.
///
/// # Errors
/// A package that cannot be installed, a failing build, or a configuration that does not say what
/// the fragments say.
pub(crate) fn ensure() -> Result<PathBuf> {
    let fragments = ConfigFragments::load(&folder())?;
    let patches = patches()?;
    let key = key(&fragments, &patches)?;
    let entry = cache::entry("kernel", &key, |dir| build(dir, &fragments, &patches))?;
    Ok(entry.join("vmlinux"))
}

/// The folder of the fragments.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-kernel-config")
}

/// The changes that our configuration needs in the source, in the order of their names.
fn patches() -> Result<Vec<PathBuf>> {
    let folder = folder().join("patches");
    let mut patches = std::fs::read_dir(&folder)
        .with_context(|| format!("Listing {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    patches.retain(|path| path.extension().is_some_and(|e| e == "patch"));
    patches.sort();
    Ok(patches)
}

/// The cache key: everything the built kernel depends on.
fn key(fragments: &ConfigFragments, patches: &[PathBuf]) -> Result<String> {
    deps::ensure(&[SOURCE, "gcc"])?;
    let source = output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", SOURCE]))?;
    let compiler = output(Command::new("gcc").arg("-dumpfullversion"))?;
    let mut parts = [RECIPE, source.trim(), compiler.trim()]
        .map(String::from)
        .to_vec();
    parts.push(fragments.merged());
    for patch in patches {
        parts.push(read(patch)?);
    }
    Ok(cache::key(parts.iter().map(String::as_bytes)))
}

/// Compares a built configuration with the fragments and names each difference.
fn check(config: Option<&Path>) -> Result<ExitCode> {
    let fragments = ConfigFragments::load(&folder())?;
    let path = match config {
        Some(path) => path.to_owned(),
        None => cache::root()?
            .join("kernel")
            .join(key(&fragments, &patches()?)?)
            .join("config"),
    };
    if !path.is_file() {
        bail!(
            "{} does not exist; run `cargo xtask kernel build` first",
            path.display()
        );
    }
    let wrong = fragments.differences(&read(&path)?);
    let mut out = std::io::stdout().lock();
    for difference in &wrong {
        writeln!(out, "{difference}")?;
    }
    let (wanted, forbidden) = fragments.counts();
    writeln!(
        out,
        "{}: {wanted} options wanted, {forbidden} forbidden, {} differ",
        path.display(),
        wrong.len()
    )?;
    Ok(if wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the kernel into `dir`.
fn build(dir: &Path, fragments: &ConfigFragments, patches: &[PathBuf]) -> Result<()> {
    deps::ensure(TOOLS)?;
    let (source, out) = (dir.join("source"), dir.join("out"));
    std::fs::create_dir_all(&source)?;
    std::fs::create_dir_all(&out)?;

    eprintln!("guest kernel: unpacking {SOURCE}");
    let archive = format!("/usr/src/{SOURCE}.tar.xz");
    let mut tar = Command::new("tar");
    tar.args(["xf", &archive, "--strip-components=1", "-C"])
        .arg(&source);
    output(&mut tar)?;
    for patch in patches {
        let mut apply = Command::new("patch");
        apply
            .args(["-p1", "--no-backup-if-mismatch", "-d"])
            .arg(&source)
            .arg("-i")
            .arg(patch);
        output(&mut apply)?;
    }

    configure(&source, &out, fragments)?;
    compile(&source, &out)?;
    collect(&out, dir)?;
    for folder in [&source, &out] {
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("Removing {}", folder.display()))?;
    }
    Ok(())
}

/// Writes `out/.config`: nothing but the fragments and what they need.
fn configure(source: &Path, out: &Path, fragments: &ConfigFragments) -> Result<()> {
    let merged = out.join("fragments.config");
    std::fs::write(&merged, fragments.merged())
        .with_context(|| format!("Writing {}", merged.display()))?;
    let mut make = make(source, out);
    make.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &merged);
    output(&mut make)?;
    let wrong = fragments.differences(&read(&out.join(".config"))?);
    if !wrong.is_empty() {
        let list = wrong
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n  ");
        bail!(
            "The kernel's configuration cannot be what the fragments say; a dependency is missing \
             or another option forces it:\n  {list}"
        );
    }
    Ok(())
}

/// Compiles `vmlinux`, showing how far it is.
fn compile(source: &Path, out: &Path) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    let log = out.join("build.log");
    let errors = std::fs::File::create(&log)
        .with_context(|| format!("Creating the build's log {}", log.display()))?;
    let mut child = make(source, out)
        .arg(format!("-j{jobs}"))
        .arg("vmlinux")
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .context("Starting make")?;
    let lines = child.stdout.take().map(BufReader::new);
    follow(lines);
    finish(&mut child, &log)
}

/// Counts make's lines until it closes its output.
fn follow(lines: Option<BufReader<ChildStdout>>) {
    let mut progress = BuildProgress::new("guest kernel", "objects", EXPECTED_STEPS);
    let compiled = lines
        .into_iter()
        .flat_map(BufRead::lines)
        .map_while(Result::ok)
        .filter(|line| line.starts_with("  "));
    let mut steps = 0;
    for _ in compiled {
        steps += 1;
        progress.set(steps);
    }
    progress.finish();
}

/// Waits for make; a failure carries the end of its messages.
fn finish(child: &mut Child, log: &Path) -> Result<()> {
    let status = child.wait().context("Waiting for make")?;
    if !status.success() {
        let messages = std::fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<_> = messages.lines().rev().take(30).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        bail!("Compiling the guest kernel failed ({status}):\n  {tail}");
    }
    Ok(())
}

/// Keeps what is needed later. Symbols are in `System.map`, not in the file that is loaded.
fn collect(out: &Path, dir: &Path) -> Result<()> {
    let linked = out.join("vmlinux");
    let whole = std::fs::read(&linked).with_context(|| format!("Reading {}", linked.display()))?;
    let kernel = elf::compact(&whole).context("Compacting vmlinux")?;
    std::fs::write(dir.join("vmlinux"), kernel).context("Keeping vmlinux")?;
    for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
        std::fs::copy(out.join(from), dir.join(to)).with_context(|| format!("Keeping {from}"))?;
    }
    Ok(())
}

/// `make` for this source and output folder, with everything fixed that a build would otherwise
/// take from the machine and the minute.
fn make(source: &Path, out: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("-C").arg(source).arg("ARCH=x86_64");
    let mut folder = OsString::from("O=");
    folder.push(out.as_os_str());
    make.arg(folder)
        .env("KBUILD_BUILD_USER", "hatchery")
        .env("KBUILD_BUILD_HOST", "hatchery")
        .env("KBUILD_BUILD_TIMESTAMP", "2026-01-01")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("LC_ALL", "C")
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL");
    make
}

/// Runs a command to its end and returns what it printed; a failure carries its messages.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = command.get_program().to_owned();
    let result = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("Starting {}", shown.display()))?;
    if !result.status.success() {
        bail!(
            "`{} {}` failed ({}): {}",
            shown.display(),
            command
                .get_args()
                .map(OsStr::to_string_lossy)
                .collect::<Vec<_>>()
                .join(" "),
            result.status,
            String::from_utf8_lossy(&result.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("Reading {}", path.display()))
}
