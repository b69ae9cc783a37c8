//! One program for all targets of this folder: `HATCHERY_FUZZ_TARGET` names the one that libFuzzer
//! drives.

#![no_main]
#![forbid(unsafe_code)]

mod targets;

use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();
    TARGET.get_or_init(chosen)(data);
});

fn chosen() -> fn(&[u8]) {
    let wanted = std::env::var("HATCHERY_FUZZ_TARGET").unwrap_or_default();
    let found = targets::TARGETS.iter().find(|(name, _)| *name == wanted);
    let Some((_, run)) = found else {
        let names: Vec<_> = targets::TARGETS.iter().map(|(name, _)| name).collect();
        panic!("HATCHERY_FUZZ_TARGET is {wanted:?}, not one of {names:?}");
    };
    *run
}
