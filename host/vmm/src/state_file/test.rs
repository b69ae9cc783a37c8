//! States as each version wrote them, in `goldens/`: this version's is read and would be written so
//! again, byte for byte; the one before is read; others are refused in words. They are named by the
//! version of the section that changed last, `cpu`. When any section's version is raised, keep the
//! last golden and make another:
//!
//! ```text
//! cargo test -p vmm --test clone -- --ignored make_golden
//! ```

use super::*;
use crate::error::chain;
use rustix::fs::{MemfdFlags, memfd_create};

const OLDER: &[u8] = include_bytes!("goldens/state-v1");
const BEFORE: &[u8] = include_bytes!("goldens/state-v2");
const GOLDEN: &[u8] = include_bytes!("goldens/state-v3");
/// Of its memory.
const PAGES: u64 = 128 << 20 >> 12;

fn read(bytes: &[u8]) -> Result<SavedState, SaveError> {
    let mut file = File::from(memfd_create("state", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    SavedState::read(&file, PAGES)
}

fn refused(bytes: &[u8]) -> String {
    chain(&read(bytes).unwrap_err())
}

/// The golden with another version of one section.
fn with(name: &str, version: u16) -> Vec<u8> {
    let golden = SectionFile::parse(GOLDEN).unwrap();
    let mut sections = golden.sections().to_vec();
    let section = sections.iter_mut().find(|s| s.name.as_str() == name);
    section.unwrap().version = version;
    SectionFile::encode(&sections).unwrap()
}

#[test]
fn this_version_is_read_and_still_written_so() {
    let state = read(GOLDEN).unwrap();
    assert_eq!(state.vm.memory_bytes, 128 << 20);
    assert_eq!((state.vm.vcpus, state.vcpus.len()), (2, 2));
    let golden = SectionFile::parse(GOLDEN).unwrap();
    for (name, version, payload) in [
        (CPU, CPU_VERSION, encode(CPU, &state.cpu).unwrap()),
        (VM, VERSION, encode(VM, &state.vm).unwrap()),
        (VCPUS, VERSION, encode(VCPUS, &state.vcpus).unwrap()),
        (IOAPIC, VERSION, state.ioapic),
        (DEVICES, VERSION, encode(DEVICES, &state.devices).unwrap()),
    ] {
        assert!(golden.get(name, version) == Ok(&payload), "{name}");
    }
}

#[test]
fn the_version_before_is_read_and_what_it_does_not_say_is_not_compared() {
    let before = read(BEFORE).unwrap().cpu;
    assert_eq!(
        (before.vendor.as_str(), before.xsave_size),
        ("AnotherVendor", 832)
    );
    assert!(before.xsave_parts.is_empty());
    let mut host = read(GOLDEN).unwrap().cpu;
    assert!(!host.xsave_parts.is_empty());
    assert_eq!(before.fits(&host), Ok(()));
    host.features.clear();
    before.fits(&host).unwrap_err();
}

#[test]
fn another_processor_is_refused() {
    let seen = read(GOLDEN).unwrap().cpu;
    let host = CpuContract {
        vendor: "AuthenticAMD".into(),
        ..seen.clone()
    };
    let said = seen.fits(&host).unwrap_err().to_string();
    assert_eq!(
        said,
        r#"it is from "AnotherVendor", this host has "AuthenticAMD""#
    );
}

#[test]
fn older_and_newer_ones_are_refused() {
    let said = refused(OLDER);
    let wanted = r#"A section "cpu" of version 1; this program reads version 3: an older program"#;
    assert!(said.contains(wanted), "{said}");
    for name in [CPU, VM, VCPUS, IOAPIC, DEVICES] {
        let said = refused(&with(name, 99));
        assert!(
            said.contains(name) && said.contains("update this program"),
            "{said}"
        );
    }
}

#[test]
fn damaged_ones_are_refused() {
    for len in (0..GOLDEN.len()).step_by(97) {
        let said = refused(&GOLDEN[..len]);
        assert!(said.contains("Truncated"), "{len} bytes: {said}");
    }
    let payloads = 12 + 40 * SectionFile::parse(GOLDEN).unwrap().sections().len();
    for at in (payloads..GOLDEN.len()).step_by(97) {
        let mut bytes = GOLDEN.to_vec();
        bytes[at] ^= 1;
        let said = refused(&bytes);
        assert!(
            said.contains("Corrupt: the checksum of section"),
            "{at}: {said}"
        );
    }
}
