//! `/etc/passwd` and `/etc/group`, as bytes.

use wire::MAX_GROUPS;

/// A user, borrowed from the file it was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserAccount<'a> {
    /// Login name.
    pub name: &'a [u8],
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: &'a [u8],
    /// Login shell.
    pub shell: &'a [u8],
}

/// The two files' contents.
#[derive(Debug, Clone, Copy)]
pub struct AccountFiles<'a> {
    /// Of `/etc/passwd`.
    pub passwd: &'a [u8],
    /// Of `/etc/group`.
    pub group: &'a [u8],
}

/// The user a guest without a readable `/etc/passwd` still has.
const ROOT: UserAccount<'static> = UserAccount {
    name: b"root",
    uid: 0,
    gid: 0,
    home: b"/root",
    shell: b"/bin/sh",
};

impl<'a> AccountFiles<'a> {
    /// The user that `name` means, with its group: `user` or `user:group`, each a name or a number.
    ///
    /// An empty name means root, and root always exists. A name that is digits and that no account
    /// has is a user id. Without an account of this id its home is `/`, its shell `/bin/sh` and its
    /// group 0, as container engines have it.
    #[must_use]
    pub fn user<'n>(&self, name: &'n [u8]) -> Option<UserAccount<'n>>
    where
        'a: 'n,
    {
        let (user, group) = match name.iter().position(|&b| b == b':') {
            Some(colon) => (&name[..colon], Some(&name[colon + 1..])),
            None => (name, None),
        };
        let found = self.account(user)?;
        let Some(group) = group else {
            return Some(found);
        };
        let gid = self.named_group(group).or_else(|| number(group))?;
        Some(UserAccount { gid, ..found })
    }

    fn account<'n>(&self, name: &'n [u8]) -> Option<UserAccount<'n>>
    where
        'a: 'n,
    {
        let name = if name.is_empty() { b"root" } else { name };
        let find = |is: &dyn Fn(&UserAccount<'_>) -> bool| {
            lines(self.passwd).filter_map(account).find(|a| is(a))
        };
        if let Some(found) = find(&|a| a.name == name) {
            return Some(found);
        }
        if name == b"root" {
            return Some(ROOT);
        }
        let uid = number(name)?;
        Some(find(&|a| a.uid == uid).unwrap_or(UserAccount {
            name,
            uid,
            gid: 0,
            home: b"/",
            shell: b"/bin/sh",
        }))
    }

    fn named_group(&self, name: &[u8]) -> Option<u32> {
        let mut groups = lines(self.group).filter_map(group);
        groups.find(|g| g.0 == name).map(|g| g.1)
    }

    /// The name of a user id, empty when it has none.
    #[must_use]
    pub fn user_name(&self, uid: u32) -> &'a [u8] {
        lines(self.passwd)
            .filter_map(account)
            .find(|a| a.uid == uid)
            .map_or(b"", |a| a.name)
    }

    /// The name of a group id, empty when it has none.
    #[must_use]
    pub fn group_name(&self, gid: u32) -> &'a [u8] {
        lines(self.group)
            .filter_map(group)
            .find(|g| g.1 == gid)
            .map_or(b"", |g| g.0)
    }

    /// The supplementary groups of a user, its primary group first; at most [`MAX_GROUPS`].
    pub fn groups<'b>(&self, user: &UserAccount<'_>, out: &'b mut [u32; MAX_GROUPS]) -> &'b [u32] {
        out[0] = user.gid;
        let mut n = 1;
        for (_, gid, members) in lines(self.group).filter_map(group) {
            let member = members.split(|&b| b == b',').any(|m| m == user.name);
            if member && n < MAX_GROUPS && !out[..n].contains(&gid) {
                out[n] = gid;
                n += 1;
            }
        }
        &out[..n]
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&b| b == b'\n')
}

/// `name:password:uid:gid:comment:home:shell`
fn account(line: &[u8]) -> Option<UserAccount<'_>> {
    let mut fields = line.split(|&b| b == b':');
    let name = fields
        .next()
        .filter(|n| !n.is_empty() && n.len() <= wire::MAX_NAME)?;
    let _password = fields.next()?;
    let uid = number(fields.next()?)?;
    let gid = number(fields.next()?)?;
    let _comment = fields.next()?;
    let home = fields.next().filter(|h| h.len() <= wire::MAX_PATH)?;
    let shell = fields.next().filter(|s| s.len() <= wire::MAX_PATH)?;
    let home = if home.is_empty() { b"/" } else { home };
    Some(UserAccount {
        name,
        uid,
        gid,
        home,
        shell,
    })
}

/// `name:password:gid:member,member`
fn group(line: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let mut fields = line.split(|&b| b == b':');
    let name = fields
        .next()
        .filter(|n| !n.is_empty() && n.len() <= wire::MAX_NAME)?;
    let _password = fields.next()?;
    Some((name, number(fields.next()?)?, fields.next()?))
}

/// A user or group id. The kernel takes the largest number as "unchanged", so it is none.
fn number(digits: &[u8]) -> Option<u32> {
    let digits = core::str::from_utf8(digits).ok()?;
    let number = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|&id| number && id != u32::MAX)
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    const FILES: AccountFiles<'static> = AccountFiles {
        passwd: b"root:x:0:0:root:/root:/bin/bash\n# odd\nuser:x:1000:1001:,,,:/home/user:/bin/sh\nbad:x:-1:0::/:\n",
        group: b"root:x:0:\nsudo:x:27:user,other\nuser:x:1001:\ndocker:x:99:other,user\n",
    };

    #[test]
    fn finds_a_user_with_its_groups() {
        let user = FILES.user(b"user").unwrap();
        assert_eq!(
            (user.uid, user.gid, user.home),
            (1000, 1001, &b"/home/user"[..])
        );
        assert_eq!(FILES.groups(&user, &mut [0; MAX_GROUPS]), [1001, 27, 99]);
        assert_eq!(FILES.user_name(1000), b"user");
        assert_eq!(FILES.group_name(27), b"sudo");
        assert_eq!(FILES.group_name(28), b"");
    }

    #[test]
    fn unknown_and_broken_users_are_not_found_and_root_always_is() {
        assert_eq!(FILES.user(b"bad"), None);
        assert_eq!(FILES.user(b"nobody"), None);
        assert_eq!(FILES.user(b"").unwrap().home, b"/root");
        let empty = AccountFiles {
            passwd: b"",
            group: b"",
        };
        assert_eq!(empty.user(b"root").unwrap().uid, 0);
    }

    #[test]
    fn numbers_are_users_too() {
        let of = |name: &'static [u8]| {
            let user = FILES.user(name)?;
            Some((user.name, user.uid, user.gid, user.home))
        };
        let user = &b"user"[..];
        let home = &b"/home/user"[..];
        assert_eq!(of(b"1000"), Some((user, 1000, 1001, home)));
        assert_eq!(of(b"1000:27"), Some((user, 1000, 27, home)));
        assert_eq!(of(b"user:docker"), Some((user, 1000, 99, home)));
        assert_eq!(of(b"4321"), Some((&b"4321"[..], 4321, 0, &b"/"[..])));
        assert_eq!(of(b"4321:4322").unwrap().2, 4322);
        for unknown in [
            &b"+5"[..],
            b"-1",
            b"4294967295",
            b"4294967296",
            b"user:",
            b"user:nobody",
            b"1000:4294967295",
            b"1 ",
        ] {
            assert_eq!(of(unknown), None, "{}", unknown.escape_ascii());
        }
        let evil = AccountFiles {
            passwd: b"evil:x:4294967295:0::/:/bin/sh\n",
            group: b"",
        };
        assert_eq!(evil.user(b"evil"), None, "the kernel would leave it root");
    }

    proptest! {
        #[test]
        fn any_file_is_survived(passwd: Vec<u8>, group: Vec<u8>, name: Vec<u8>) {
            let files = AccountFiles { passwd: &passwd, group: &group };
            if let Some(user) = files.user(&name) {
                files.groups(&user, &mut [0; MAX_GROUPS]);
            }
        }
    }
}
