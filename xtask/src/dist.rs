//! The folder that a running Hatchery needs: programs, guest kernel and images side by side.

use crate::{deps, image, kernel};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The template image that every distribution carries.
pub(crate) const BASE: &str = "base";

/// `target/dist/` of this workspace.
pub(crate) struct Dist {
    /// Holds `hatchery`, `hatchery-vmm`, `hatchery-net`, `hatchery-pager`, `hatchery-agent`,
    /// `vmlinux`, `base.ext4`.
    pub(crate) dir: PathBuf,
    /// The base image's own place in the cache.
    pub(crate) image: PathBuf,
}

/// The workspace's top folder.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .components()
        .collect::<PathBuf>()
}

/// Cargo's target folder for this workspace.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), PathBuf::from)
}

fn top() -> PathBuf {
    std::fs::canonicalize(workspace()).unwrap_or_else(|_| workspace())
}

impl Dist {
    /// Builds what is missing or stale and lays it out; says what it is doing.
    ///
    /// # Errors
    /// The first build that fails.
    pub(crate) fn ensure() -> Result<Self> {
        // Stages that run side by side ask for the same.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = target_dir().join("dist");
        std::fs::create_dir_all(&dir).with_context(|| format!("Creating {}", dir.display()))?;
        let built = release()?;
        cargo(&["--profile", "agent", "-p", "guest-agent"])?;
        for name in [
            "hatchery",
            "hatchery-vmm",
            "hatchery-net",
            "hatchery-pager",
            "hatchery-bench",
        ] {
            install(&built.join(name), &dir.join(name))?;
        }
        install(
            &target_dir().join("agent/hatchery-agent"),
            &dir.join("hatchery-agent"),
        )?;
        install(&kernel::ensure()?, &dir.join("vmlinux"))?;
        let image = image::ensure(BASE)?;
        install(&image, &dir.join("base.ext4"))?;
        Ok(Self { dir, image })
    }
}

/// Builds the programs as a release has them; their folder. All at once, whoever asks: cargo builds
/// what they share anew for each choice of packages, and measures should be of what is shipped.
pub(crate) fn release() -> Result<PathBuf> {
    let packages = ["hatchery", "vmm", "usernet", "perf", "snapshot-memory"];
    let chosen = packages.iter().flat_map(|package| ["-p", *package]);
    let args: Vec<_> = ["--release"].into_iter().chain(chosen).collect();
    cargo(&args)?;
    Ok(target_dir().join("release"))
}

/// Runs `cargo build` with `args` in the workspace.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    deps::ensure(deps::TO_BUILD)?;
    let status = Command::new(env!("CARGO"))
        .arg("build")
        .args(args)
        .current_dir(top())
        .status()
        .context("Running cargo build")?;
    if !status.success() {
        bail!(
            "`cargo build {}` failed: see its messages above",
            args.join(" ")
        );
    }
    Ok(())
}

/// Puts `from` at `to` as a link to the same file (a copy across file systems), atomically, and
/// only if it is not there already: a server may be running from it.
fn install(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let source = std::fs::metadata(from).with_context(|| format!("Reading {}", from.display()))?;
    if let Ok(there) = std::fs::metadata(to)
        && (there.ino(), there.dev()) == (source.ino(), source.dev())
    {
        return Ok(());
    }
    let fresh = to.with_extension(format!("new{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    link_or_copy(from, &fresh)?;
    std::fs::rename(&fresh, to).with_context(|| format!("Installing {}", to.display()))
}

/// Makes `to` another name of the file `from`, or a copy across file systems: with its time, and
/// with the holes of an image.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let copied = Command::new("cp")
        .args(["-p", "--sparse=always"])
        .args([from, to])
        .status()
        .context("Running cp")?;
    if !copied.success() {
        bail!("Copying {} to {} failed", from.display(), to.display());
    }
    Ok(())
}
