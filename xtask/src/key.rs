//! The key of `up`: random, made once, kept beside the server's data where only its owner reads it.

use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The file's name in the data folder; the README has it, too.
const FILE: &str = "api-key";
/// Nobody but its owner.
const MODE: u32 = 0o600;

/// The key that is kept in `dir`; made if there is none.
pub(crate) fn kept_in(dir: &Path) -> Result<String> {
    let path = dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let key = text.trim().to_owned();
            if !is_key(&key) {
                bail!(
                    "{} holds no key (`e2b_` and 40 hex digits): remove it, and another is made",
                    path.display()
                );
            }
            std::fs::set_permissions(&path, Permissions::from_mode(MODE))?;
            Ok(key)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => make(&path),
        Err(error) => Err(error).with_context(|| format!("Reading {}", path.display())),
    }
}

fn make(path: &Path) -> Result<String> {
    let mut random = [0; 20];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let key = format!("e2b_{}", hex::encode(random));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut new = OpenOptions::new();
    let file = new.write(true).create_new(true).mode(MODE).open(path);
    let mut file = file.with_context(|| format!("Making {}", path.display()))?;
    writeln!(file, "{key}")?;
    Ok(key)
}

/// What every SDK accepts.
fn is_key(text: &str) -> bool {
    let digits = text.strip_prefix("e2b_").unwrap_or_default();
    digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one/data", "other/data"].map(|name| dir.path().join(name));
        let key = kept_in(&one).unwrap();
        assert!(is_key(&key), "{key}");
        assert_eq!(kept_in(&one).unwrap(), key);
        assert_ne!(kept_in(&other).unwrap(), key);
        let file = one.join(FILE);
        let mode = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), MODE);
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(kept_in(&one).unwrap(), key);
        assert_eq!(mode(), MODE);
        std::fs::write(&file, "e2b_short").unwrap();
        assert!(kept_in(&one).unwrap_err().to_string().contains("remove it"));
    }
}
