//! Processes of others, as the kernel's files tell of them.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The descriptor of a virtual machine, as the kernel names it.
const MACHINE: &str = "anon_inode:kvm-vm";

/// The fields of a process's `stat` behind its name: the first is its state.
pub(crate) fn stat_fields(pid: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').context("stat without a name")?;
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// The numbers of all processes that there are.
pub(crate) fn all() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("Listing /proc")?.flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(entries.filter_map(number).collect())
}

fn parent(pid: u32) -> Option<u32> {
    const PARENT: usize = 1;
    stat_fields(&pid.to_string())
        .ok()?
        .get(PARENT)?
        .parse()
        .ok()
}

/// What a process has started, what that has started, and so on.
pub(crate) fn descendants(pid: u32) -> Result<BTreeSet<u32>> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for process in all()? {
        if let Some(parent) = parent(process) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = BTreeSet::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.insert(child);
            next.push(child);
        }
    }
    Ok(found)
}

/// The processes below `server` that have a virtual machine, which a zygote's is not: it does
/// nothing.
pub(crate) fn machines(server: u32) -> Result<Vec<u32>> {
    let has_machine = |pid: &u32| {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false; // it has ended
        };
        let mut links = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        links.any(|link| link.as_os_str() == MACHINE)
    };
    Ok(descendants(server)?
        .into_iter()
        .filter(|pid| !is_zygote(*pid) && has_machine(pid))
        .collect())
}

/// The processes that `server` has started itself.
pub(crate) fn children(server: u32) -> Result<Vec<u32>> {
    let own = |pid: &u32| parent(*pid) == Some(server) && !is_zygote(*pid);
    Ok(all()?.into_iter().filter(own).collect())
}

/// Whether a process only makes VM processes and is none.
pub(crate) fn is_zygote(pid: u32) -> bool {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_ascii_end() == control::ZYGOTE_NAME.to_bytes()
}

/// How long the threads of a process that are still there have run, nanoseconds.
pub(crate) fn ran_ns(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let ran = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    threads.flatten().filter_map(ran).sum()
}

/// How many descriptors a process has open.
pub(crate) fn descriptors(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/fd");
    let fds = fs::read_dir(&path).with_context(|| format!("Listing {path}"))?;
    Ok(u64::try_from(fds.count())?)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_childs_child_is_found_and_has_run() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "/bin/sleep 60 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let below: u32 = line.trim().parse().unwrap();
        let found = descendants(std::process::id()).unwrap();
        let own = children(std::process::id()).unwrap();
        let none = machines(std::process::id()).unwrap();
        let ran = ran_ns(child.id());
        Command::new("/bin/kill").arg(line.trim()).status().unwrap();
        child.wait().unwrap();
        assert!(
            found.contains(&below) && found.contains(&child.id()),
            "{found:?}"
        );
        assert!(
            own.contains(&child.id()) && !own.contains(&below),
            "{own:?}"
        );
        assert!(none.is_empty() && ran > 0, "{none:?} {ran}");
    }
}
