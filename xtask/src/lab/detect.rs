//! Whether this machine can run Linux guests itself.

use std::path::Path;

/// What was found, and why.
pub(crate) struct HostFinding {
    /// Guests can run on this machine's own `/dev/kvm`.
    pub(crate) usable: bool,
    /// One sentence for the user.
    pub(crate) reason: String,
}

/// Looks for hardware virtualization that a Linux guest can use.
pub(crate) fn hardware_virtualization() -> HostFinding {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = Path::new("/dev/kvm");
    let open = std::fs::File::options()
        .read(true)
        .write(true)
        .open(device)
        .map(drop);
    judge(
        extension(&cpuinfo),
        device.exists(),
        open.map_err(|error| error.to_string()),
    )
}

/// The processor's virtualization extension, by the flags of its first core.
fn extension(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))?
        .split_once(':')?
        .1;
    flags.split_whitespace().find_map(|flag| match flag {
        "vmx" => Some("vmx"),
        "svm" => Some("svm"),
        _ => None,
    })
}

fn judge(extension: Option<&str>, exists: bool, open: Result<(), String>) -> HostFinding {
    let (usable, reason) = match (extension, exists, open) {
        (Some(flag), true, Ok(())) => (
            true,
            format!("the processor has {flag} and /dev/kvm can be opened"),
        ),
        (Some(flag), true, Err(error)) => (
            false,
            format!("the processor has {flag}, but /dev/kvm cannot be opened ({error})"),
        ),
        (Some(flag), false, _) => (
            false,
            format!(
                "the processor has {flag}, but there is no /dev/kvm (load kvm_intel or kvm_amd)"
            ),
        ),
        (None, true, _) => (
            false,
            "there is a /dev/kvm, but the processor has neither vmx nor svm: this KVM interprets \
             guest kernels in software, a thousand times too slowly for Linux"
                .to_owned(),
        ),
        (None, false, _) => (
            false,
            "the processor has neither vmx nor svm, and there is no /dev/kvm".to_owned(),
        ),
    };
    HostFinding { usable, reason }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn flags_are_matched_as_words() {
        assert_eq!(
            extension("processor : 0\nflags\t\t: fpu vmx sse\n"),
            Some("vmx")
        );
        assert_eq!(extension("flags\t\t: fpu svm_lock svmx sse\n"), None);
        assert_eq!(extension("vmx flags\t: nested\n"), None);
        assert_eq!(extension(""), None);
    }

    #[test]
    fn only_extension_and_device_together_are_usable() {
        assert!(judge(Some("svm"), true, Ok(())).usable);
        for (extension, exists, open, why) in [
            (Some("svm"), true, Err("denied".to_owned()), "denied"),
            (Some("vmx"), false, Err(String::new()), "no /dev/kvm"),
            (None, true, Ok(()), "in software"),
            (None, false, Err(String::new()), "neither vmx nor svm, and"),
        ] {
            let finding = judge(extension, exists, open);
            assert!(
                !finding.usable && finding.reason.contains(why),
                "{}",
                finding.reason
            );
        }
    }
}
