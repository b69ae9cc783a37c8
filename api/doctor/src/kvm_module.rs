//! What the kernel's modules for virtual machines were loaded with.

use std::path::Path;

/// The parameters that change what sandboxes cost or how they are kept apart, as the kernel writes
/// them; `None` where it does not have them (`kvm_intel`'s on AMD).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmModules {
    /// `kvm_intel`'s `ept`: the processor translates guests' addresses itself.
    pub ept: Option<String>,
    /// `kvm_intel`'s `unrestricted_guest`: the processor runs real mode itself.
    pub unrestricted_guest: Option<String>,
    /// `kvm`'s `nx_huge_pages`: huge pages of guests are split where guests execute.
    pub nx_huge_pages: Option<String>,
    /// `kvm_intel`'s `vmentry_l1d_flush`: when the first-level cache is emptied before a guest
    /// runs.
    pub l1d_flush: Option<String>,
}

/// Most bytes of a parameter.
const MAX_VALUE: usize = 64;

impl KvmModules {
    /// Reads them below `modules`, which is `/sys/module`. Modules that are built into the kernel
    /// have their folders there too.
    #[must_use]
    pub fn read(modules: &Path) -> Self {
        let parameter = |module: &str, name: &str| {
            let path = modules.join(module).join("parameters").join(name);
            let text = std::fs::read_to_string(path).ok()?;
            let value = text.trim();
            (!value.is_empty() && value.len() <= MAX_VALUE).then(|| value.to_owned())
        };
        Self {
            ept: parameter("kvm_intel", "ept"),
            unrestricted_guest: parameter("kvm_intel", "unrestricted_guest"),
            nx_huge_pages: parameter("kvm", "nx_huge_pages"),
            l1d_flush: parameter("kvm_intel", "vmentry_l1d_flush"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn parameters_are_read_and_those_that_are_not_there_left_out() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(KvmModules::read(root.path()), KvmModules::default());
        for (module, name, value) in [
            ("kvm_intel", "ept", "Y\n"),
            ("kvm_intel", "vmentry_l1d_flush", "EPT disabled\n"),
            ("kvm", "nx_huge_pages", "never\n"),
        ] {
            let folder = root.path().join(module).join("parameters");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(name), value).unwrap();
        }
        let read = KvmModules::read(root.path());
        let word = |word: &str| Some(word.to_owned());
        let expected = KvmModules {
            ept: word("Y"),
            unrestricted_guest: None,
            nx_huge_pages: word("never"),
            l1d_flush: word("EPT disabled"),
        };
        assert_eq!(read, expected);
    }
}
