//! Template images: raw ext4 file systems made from Debian packages, and from npm's for Node.js.
//!
//! A cache entry `image/<name>-<key>/` holds `root.ext4` (sparse, as large as a sandbox's disk) and
//! `packages` (what is in it). The key covers the recipe and the version of every package, which
//! are known only when Debian has been asked; so `image/<name>-<recipe key>.current` names the
//! entry that was built last from the recipe as it stands, and nothing is fetched while that entry
//! is there. `image build --refresh` asks Debian again, for security updates.

mod build;
mod node;
mod recipe;
mod times;

use crate::cache;
use anyhow::{Context, Result};
use recipe::ImageRecipe;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The file system in a cache entry.
const IMAGE: &str = "root.ext4";

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    action: ImageAction,
}

#[derive(clap::Subcommand)]
enum ImageAction {
    /// Build an image unless the cache has it; print its path
    Build {
        /// Template name
        #[arg(default_value = "base")]
        name: String,
        /// Build from the newest packages even if an image is there
        #[arg(long)]
        refresh: bool,
    },
}

/// Runs `cargo xtask image …`.
pub(crate) fn run(args: &ImageArgs) -> Result<ExitCode> {
    let ImageAction::Build { name, refresh } = &args.action;
    let path = if *refresh {
        build(&ImageRecipe::named(name)?)?
    } else {
        ensure(name)?
    };
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(ExitCode::SUCCESS)
}

/// The raw ext4 image of template `name` in the cache, built first if it is not there.
///
/// # Errors
/// An unknown name, or a failing build.
pub(crate) fn ensure(name: &str) -> Result<PathBuf> {
    let recipe = ImageRecipe::named(name)?;
    match current(&recipe)? {
        Some(image) => Ok(image),
        None => build(&recipe),
    }
}

/// The image last built from this very recipe, if it is still in the cache.
fn current(recipe: &ImageRecipe) -> Result<Option<PathBuf>> {
    let Ok(key) = std::fs::read_to_string(pointer(recipe)?) else {
        return Ok(None);
    };
    let image = folder()?.join(key.trim()).join(IMAGE);
    Ok(image.is_file().then_some(image))
}

/// Builds the image from the newest packages and remembers it as the current one.
fn build(recipe: &ImageRecipe) -> Result<PathBuf> {
    let scratch = BuildFolder::new(&folder()?, recipe.name)?;
    let tree = build::bootstrap(recipe, &scratch.0)?;
    let packages = build::packages(&tree)?;
    let key = cache::key([recipe.key().as_bytes(), packages.as_bytes()]);
    let key = format!("{}-{key}", recipe.name);
    let entry = cache::entry("image", &key, |dir| {
        std::fs::write(dir.join("packages"), &packages).context("Writing the package list")?;
        build::pack(recipe, &tree, &dir.join(IMAGE))
    })?;
    let pointer = pointer(recipe)?;
    let fresh = scratch.0.join("current");
    std::fs::write(&fresh, &key)
        .and_then(|()| std::fs::rename(&fresh, &pointer))
        .with_context(|| format!("Writing {}", pointer.display()))?;
    Ok(entry.join(IMAGE))
}

fn pointer(recipe: &ImageRecipe) -> Result<PathBuf> {
    Ok(folder()?.join(format!("{}-{}.current", recipe.name, recipe.key())))
}

fn folder() -> Result<PathBuf> {
    Ok(cache::root()?.join("image"))
}

/// A folder for half-made things, gone when the build ends, well or badly.
struct BuildFolder(PathBuf);

impl BuildFolder {
    fn new(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(format!(".{name}.{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("Creating {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for BuildFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!(
                "Could not remove {}: {error}; remove it by hand",
                self.0.display()
            );
        }
    }
}
