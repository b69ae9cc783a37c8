//! What the parameters of the kernel's modules mean.

use crate::kvm_module::KvmModules;
use crate::{Finding, Level};

/// A finding for each parameter that the host has.
pub(super) fn judge(modules: &KvmModules) -> Vec<Finding> {
    let all = [
        modules.ept.as_deref().map(ept),
        modules.unrestricted_guest.as_deref().map(unrestricted),
        modules.nx_huge_pages.as_deref().map(nx_huge_pages),
        modules.l1d_flush.as_deref().map(l1d_flush),
    ];
    all.into_iter().flatten().collect()
}

fn ept(value: &str) -> Finding {
    let found = format!("kvm_intel.ept={value}");
    if value == "Y" {
        return Finding::fine("ept", found);
    }
    Finding::bad(
        Level::Degraded,
        "ept",
        found,
        "The kernel keeps page tables of its own for each guest: every page that a guest maps \
         first costs exits, and sandboxes are several times slower.",
        "Load kvm_intel with ept=1; on a virtual host, have the host above offer EPT to it.",
    )
}

/// Our guests begin in 64-bit mode; what remains is how their other vCPUs start.
fn unrestricted(value: &str) -> Finding {
    let found = format!("kvm_intel.unrestricted_guest={value}");
    if value == "Y" {
        return Finding::fine("unrestricted guest", found);
    }
    Finding::bad(
        Level::Note,
        "unrestricted guest",
        found,
        "The first steps of each vCPU but the first are interpreted by the kernel.",
        "Load kvm_intel with unrestricted_guest=1 (it needs EPT). Processors before 2010 lack it.",
    )
}

fn nx_huge_pages(value: &str) -> Finding {
    let found = format!("kvm.nx_huge_pages={value}");
    if value != "Y" {
        return Finding::fine("executable huge pages", found);
    }
    Finding::bad(
        Level::Note,
        "executable huge pages",
        found,
        "Huge pages of guests are split where they execute, and each virtual machine has a \
         kernel thread more, which makes its start longer.",
        "Needed where /sys/devices/system/cpu/vulnerabilities/itlb_multihit says that the \
         processor is vulnerable. Elsewhere load kvm with nx_huge_pages=never.",
    )
}

fn l1d_flush(value: &str) -> Finding {
    let found = format!("kvm_intel.vmentry_l1d_flush={value}");
    let (level, consequence, remedy) = match value {
        "never" => (
            Level::Degraded,
            "This processor is vulnerable (L1TF): a sandbox can read what others left in its \
             first-level cache.",
            "Load kvm_intel with vmentry_l1d_flush=cond, and boot without mitigations=off.",
        ),
        "always" => (
            Level::Note,
            "The first-level cache is emptied each time a guest runs on, which makes exits dear.",
            "vmentry_l1d_flush=cond empties it only where something may be left in it.",
        ),
        _ => return Finding::fine("cache flush", found),
    };
    Finding::bad(level, "cache flush", found, consequence, remedy)
}
