//! The environment of a process: base, defaults and request, later wins.

use crate::UserAccount;
use wire::{MAX_ENV, MAX_PATH, StringList};

/// The `PATH` of processes that bring none.
pub const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The `LANG` of processes that bring none: UTF-8, in an order and with messages of no country. The
/// C libraries of today's distributions all know it, and with none at all many programs take text
/// for ASCII.
const LANG: &[u8] = b"C.UTF-8";

/// Most entries of a process: the base, the defaults and its own.
pub const MAX_ENTRIES: usize = BASE_ENTRIES + 2 * MAX_ENV;
/// Those that every process has, unless it or the defaults bring their own: `PATH`, `LANG`, `HOME`,
/// `USER` and `LOGNAME`.
pub const BASE_ENTRIES: usize = 5;
const SCRATCH: usize = 2 * (MAX_PATH + 1) + 1024;

/// A table of NUL-terminated `NAME=value` entries.
pub struct ProcessEnvironment {
    scratch: [u8; SCRATCH],
    used: usize,
}

impl ProcessEnvironment {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            scratch: [0; SCRATCH],
            used: 0,
        }
    }

    /// Calls `each` with every entry, terminator included, at most once per name: an entry of `own`
    /// hides one of `defaults`, which hides `PATH`, `LANG`, `HOME`, `USER` and `LOGNAME`.
    pub fn build<'a>(
        &'a mut self,
        user: &UserAccount<'_>,
        defaults: StringList<'a>,
        own: StringList<'a>,
        mut each: impl FnMut(&'a [u8]),
    ) {
        self.used = 0;
        let base = [
            self.put(b"PATH=", PATH),
            self.put(b"LANG=", LANG),
            self.put(b"HOME=", user.home),
            self.put(b"USER=", user.name),
            self.put(b"LOGNAME=", user.name),
        ];
        let scratch = &self.scratch;
        let mut left = MAX_ENTRIES;
        for entry in base.into_iter().flatten().filter_map(|r| scratch.get(r)) {
            if !hidden(entry, defaults) && !hidden(entry, own) {
                each(entry);
            }
        }
        for entry in terminated(defaults)
            .filter(|e| !hidden(e, own))
            .chain(terminated(own))
        {
            left = left.saturating_sub(1);
            if left > 0 {
                each(entry);
            }
        }
    }

    fn put(&mut self, name: &[u8], value: &[u8]) -> Option<core::ops::Range<usize>> {
        let start = self.used;
        let end = start + name.len() + value.len() + 1;
        let room = self.scratch.get_mut(start..end)?;
        room[..name.len()].copy_from_slice(name);
        room[name.len()..name.len() + value.len()].copy_from_slice(value);
        room[name.len() + value.len()] = 0;
        self.used = end;
        Some(start..end)
    }
}

impl Default for ProcessEnvironment {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for ProcessEnvironment {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Environment")
    }
}

/// The entries of a decoded list, each with its NUL.
fn terminated(list: StringList<'_>) -> impl Iterator<Item = &[u8]> {
    list.packed().unwrap_or(&[]).split_inclusive(|&b| b == 0)
}

/// Whether `list` has an entry with the name of `entry`. A list may name something twice itself:
/// the kernel keeps both, programs take the first, as with any `execve`.
fn hidden(entry: &[u8], list: StringList<'_>) -> bool {
    let name = match entry.iter().position(|&b| b == b'=') {
        Some(end) => &entry[..=end],
        None => return false,
    };
    list.iter().any(|other| other.starts_with(name))
}

#[cfg(test)]
mod test {
    use super::*;

    const USER: UserAccount<'static> = UserAccount {
        name: b"user",
        uid: 1,
        gid: 1,
        home: b"/home/user",
        shell: b"",
    };

    #[test]
    fn a_language_of_ones_own_wins() {
        for (defaults, own, lang) in [
            (b"".as_slice(), b"LANG=\0".as_slice(), "LANG=\0"),
            (b"LANG=de_DE.UTF-8\0", b"", "LANG=de_DE.UTF-8\0"),
            (b"LANGUAGE=de\0", b"LC_ALL=C\0", "LANG=C.UTF-8\0"),
        ] {
            let mut found = Vec::new();
            let (defaults, own) = (StringList::Packed(defaults), StringList::Packed(own));
            ProcessEnvironment::new().build(&USER, defaults, own, |e| {
                found.extend(e.starts_with(b"LANG=").then(|| e.to_vec()));
            });
            assert_eq!(found, [lang.as_bytes()]);
        }
    }

    #[test]
    fn later_wins() {
        let defaults = StringList::Packed(b"A=1\0B=2\0HOME=/d\0");
        let own = StringList::Packed(b"B=3\0LOGNAME=me\0");
        let mut found = Vec::new();
        ProcessEnvironment::new().build(&USER, defaults, own, |e| {
            found.push(String::from_utf8(e.to_vec()).unwrap());
        });
        let path = format!("PATH={}\0", std::str::from_utf8(PATH).unwrap());
        assert_eq!(
            found,
            [
                &path,
                "LANG=C.UTF-8\0",
                "USER=user\0",
                "A=1\0",
                "HOME=/d\0",
                "B=3\0",
                "LOGNAME=me\0"
            ]
        );
    }
}
