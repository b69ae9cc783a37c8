//! The targets: what a guest does to its devices, what it
//! sends to its network and to a host in requests, and devices that were saved by nobody.

use control::fuzz_messages;
use devices::fuzz::{fuzz_devices, fuzz_ioapic, fuzz_load};
use usernet::{fuzz_frames, fuzz_requests};

/// A fuzz target: its name, which is its corpus' too, and what is run.
pub(crate) type Target = (&'static str, fn(&[u8]));

pub(crate) const TARGETS: &[Target] = &[
    ("control", fuzz_messages),
    ("devices", fuzz_devices),
    ("ioapic", fuzz_ioapic),
    ("load", fuzz_load),
    ("net_frames", fuzz_frames),
    ("net_requests", fuzz_requests),
];
