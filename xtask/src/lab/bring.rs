//! Copies an image into the memory of a counting lab.
//!
//! The counting lab skips the time in which it waits, from timer to timer: while this machine
//! fetches a block for it, minutes may pass on its clock. So nothing that is measured, or that has
//! a deadline, may wait for this machine; and nothing that is measured should pay for 9p, of which
//! a single open is 3 million instructions. This machine knows which parts of a sparse image hold
//! data; the lab's 9p does not, and would read all the zeros too.

use super::Lab;
use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom;
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

impl Lab {
    /// Copies an image of this machine's cache to a path in the lab, unless it is there already.
    pub(crate) fn bring(&self, here: &Path, there: &str) -> Result<()> {
        let image = here.strip_prefix(&self.place.images);
        let image = image.with_context(|| format!("{} is not in the cache", here.display()))?;
        let shared = Path::new("/image").join(image);
        let shared = shared
            .to_str()
            .context("An image's path must be plain text")?;
        if self.exec(&["test", "-e", there])?.status.success() {
            return Ok(());
        }
        eprintln!("lab: copying {} into the lab's memory", here.display());
        let ranges = ranges(here)?;
        let running = self.spawn(&["/sbin/xtask", "lab", "copy", shared, there])?;
        let control = running.control();
        let feeder = std::thread::spawn(move || control.feed(ranges.as_bytes()));
        let mut said = Vec::new();
        let status = running.wait(|_, bytes| {
            said.extend_from_slice(bytes);
            Ok(())
        })?;
        if !status.success() {
            bail!(
                "Copying {shared} to {there} in the lab: {}",
                String::from_utf8_lossy(&said).trim()
            );
        }
        feeder
            .join()
            .ok()
            .context("The thread that lists the ranges panicked")?
    }
}

/// The parts of a sparse file that hold data, a line with start and end for each.
fn ranges(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("Opening {}", path.display()))?;
    let mut lines = String::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => return Ok(lines), // only a hole is left
            other => other.context("Looking for data in an image")?,
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).context("Looking for a hole")?;
        writeln!(lines, "{start} {at}")?;
    }
}

/// Inside the lab: copies the ranges that are listed; the rest of the copy is a hole. It has its
/// name when it is whole.
pub(super) fn copy(from: &Path, to: &Path, list: impl BufRead) -> Result<()> {
    let file = File::open(from).with_context(|| format!("Opening {}", from.display()))?;
    let folder = to.parent().context("A copy needs a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("Creating {}", folder.display()))?;
    let part = to.with_extension("part");
    let out = File::create(&part).with_context(|| format!("Creating {}", part.display()))?;
    out.set_len(file.metadata()?.len())?;
    let mut buffer = vec![0; CHUNK];
    for line in list.lines() {
        let line = line?;
        let (start, end) = line
            .split_once(' ')
            .context("Expected a start and an end")?;
        let (mut at, end) = (start.parse::<u64>()?, end.parse::<u64>()?);
        while at < end {
            let rest = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            match file.read_at(&mut buffer[..rest], at) {
                Ok(0) => break,
                Ok(length) => {
                    out.write_all_at(&buffer[..length], at)
                        .with_context(|| format!("Writing at {at}"))?;
                    at += u64::try_from(length)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(format!("Reading at {at}")),
            }
        }
    }
    std::fs::rename(&part, to).with_context(|| format!("Naming {}", to.display()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_data_is_listed_and_copied() {
        let path = std::env::temp_dir().join(format!("lab-bring-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 4096], 16 << 20).unwrap();
        file.write_all_at(&[1; 4096], 32 << 20).unwrap();
        let found = ranges(&path).unwrap();
        let to = path.with_extension("copy");
        copy(&path, &to, found.as_bytes()).unwrap();
        let copied = std::fs::read(&to).unwrap();
        assert!(copied == std::fs::read(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&to).unwrap();
        let numbers: Vec<u64> = found
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        assert_eq!(numbers.len() % 2, 0);
        let listed = |at: u64| {
            numbers
                .chunks(2)
                .any(|range| (range[0]..range[1]).contains(&at))
        };
        assert!(listed(16 << 20) && listed(32 << 20), "{found}");
        // A file system without holes may list everything as data.
        assert!(
            !listed(0) || found == format!("0 {}\n", 64_u64 << 20),
            "{found}"
        );
    }

    #[test]
    fn a_damaged_list_leaves_no_copy() {
        let to = std::env::temp_dir().join(format!("lab-list-{}", std::process::id()));
        let from = Path::new("/proc/self/exe");
        for list in ["1", "1 x\n"] {
            copy(from, &to, list.as_bytes()).unwrap_err();
            assert!(!to.exists());
            let _ = std::fs::remove_file(to.with_extension("part"));
        }
        copy(from, &to, &b"0 4096\n"[..]).unwrap();
        std::fs::remove_file(&to).unwrap();
    }
}
