//! Saving a machine and restoring others from it, with the real process.

mod common;

use common::saved::{
    Change, base_memory, clone, empty, from, on_another, save, save_spec, start, whole,
};
use common::{Machine, RESET, file, kvm, print, refused};
use control::{Event, ExitCause, Request};
use machine::{CpuContract, XsavePart};
use snapshot_memory::BaseMemory;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Prints 1, counts down for about a second, prints 2, resets.
fn counting() -> Vec<u8> {
    // mov rcx, 200000; again: inc qword [0x200000]; dec rcx; jnz again
    let count = [
        &[0x48, 0xc7, 0xc1, 0x40, 0x0d, 0x03, 0x00][..],
        &[0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00],
        &[0x48, 0xff, 0xc9, 0x75, 0xf3],
    ];
    [print("1"), count.concat(), print("2"), RESET.to_vec()].concat()
}

fn console(machine: Machine) -> Vec<u8> {
    let report = machine.end();
    assert_eq!(report.cause, ExitCause::GuestShutdown);
    report.console_tail
}

#[test]
fn clones_resume_where_the_first_was_saved_and_so_does_it() {
    if !kvm() {
        return;
    }
    let first = Machine::start(&counting());
    std::thread::sleep(Duration::from_millis(50));
    let (files, saved) = save(&first);
    assert!(saved.memory_pages > 0 && saved.write_ns > 0, "{saved:?}");
    let base = base_memory(vec![&files.memory]);
    // All are built before any of them runs.
    let clones: Vec<_> = (0..3).map(|_| clone(&base, &files, None)).collect();
    clones.iter().for_each(start);
    for clone in clones {
        assert_eq!(console(clone), b"2", "a clone does not begin anew");
    }
    start(&first);
    assert_eq!(console(first), b"12");
}

#[test]
fn what_a_clone_changed_is_saved_over_its_base_memory() {
    if !kvm() {
        return;
    }
    let first = Machine::start(&counting());
    let (files, whole) = save(&first);
    let base = base_memory(vec![&files.memory]);
    let second = clone(&base, &files, None);
    start(&second);
    std::thread::sleep(Duration::from_millis(30));
    let (changes, difference) = save(&second);
    assert!(
        difference.memory_pages < whole.memory_pages,
        "{difference:?} of {whole:?}"
    );
    let in_place = clone(&base, &changes, Some(&changes.memory));
    let merged = base_memory(vec![&changes.memory, &files.memory]);
    let of_merged = clone(&merged, &changes, None);
    for machine in [in_place, of_merged, second] {
        start(&machine);
        assert!(console(machine).ends_with(b"2"));
    }
}

const AVX: XsavePart = XsavePart {
    size: 256,
    offset: 576,
    flags: 0,
};

#[test]
fn what_cannot_be_resumed_is_refused() {
    if !kvm() {
        return;
    }
    let first = Machine::start(&counting());
    let (files, _) = save(&first);
    let sealed = base_memory(vec![&files.memory]);
    let attempt = |memory: &dyn AsFd, state: &dyn AsFd| {
        let (link, _) = UnixStream::pair().unwrap();
        let (spec, fds) = from(memory, state, None, link);
        refused(&Request::Configure(Box::new(spec)), &fds)
    };
    let open = file(&vec![0; 128 << 20]);
    assert!(attempt(&open, &files.state).contains("not sealed"));
    let short = BaseMemory::merge_layers(7, &[]).unwrap();
    assert!(attempt(&short, &files.state).contains("28672 bytes"));
    assert!(attempt(&sealed, &empty()).contains("section file"));
    // One bit of the state anywhere is noticed.
    let mut bytes = whole(&files.state);
    for (seen, why) in [
        (
            Box::new(|cpu: &mut CpuContract| cpu.vendor = "AnotherVendor".into()) as Change,
            "AnotherVendor",
        ),
        (
            Box::new(|cpu| {
                cpu.features.insert("00000001.0.ecx".into(), u32::MAX);
            }),
            "00000001.0.ecx",
        ),
        (Box::new(|cpu| cpu.xsave_size = u32::MAX), "XSAVE"),
        (
            Box::new(|cpu| {
                cpu.xsave_parts.insert(62, AVX);
            }),
            "part 62",
        ),
    ] {
        let said = attempt(&sealed, &file(&on_another(&bytes, &seen)));
        assert!(
            said.contains("another kind of processor") && said.contains(why),
            "{said}"
        );
    }
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    assert!(attempt(&sealed, &file(&bytes)).contains("checksum"));
    first.send(&Request::Stop, &[]);
    assert_eq!(first.end().cause, ExitCause::Stopped);
}

#[test]
fn a_paused_machine_is_not_saved_again() {
    if !kvm() {
        return;
    }
    let machine = Machine::start(&counting());
    let (files, _) = save(&machine);
    let (spec, fds) = save_spec(&files, false);
    machine.send(&Request::Save(spec.clone()), &fds);
    assert!(matches!(machine.receive(), Some(Event::SaveFailed { .. })));
    start(&machine);
    // Without files it cannot be saved, and runs on.
    machine.send(&Request::Save(spec), &[]);
    assert!(matches!(machine.receive(), Some(Event::SaveFailed { .. })));
    assert_eq!(console(machine), b"12");
}

/// Stores a machine's state, which has seen a processor that nobody has, for
/// `src/state_file/test.rs`.
#[test]
#[ignore = "writes into the tree"]
fn make_golden() {
    let machine = Machine::start(&counting());
    let (files, _) = save(&machine);
    let nobodys: Change = Box::new(|cpu| {
        *cpu = CpuContract {
            vendor: "AnotherVendor".into(),
            features: [("00000001.0.ecx".into(), 1)].into(),
            xsave_size: 832,
            xsave_parts: [(2, AVX)].into(),
        };
    });
    let place = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/state_file/goldens/state-v3"
    );
    std::fs::write(place, on_another(&whole(&files.state), &nobodys)).unwrap();
    machine.send(&Request::Stop, &[]);
    assert_eq!(machine.end().cause, ExitCause::Stopped);
}
