//! Resetting a machine in place, with the real process.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::saved::{Files, base_memory, clone, save, start, with_working_set};
use common::{HALT, Machine, RESET, kvm, print};
use control::{
    Descriptors, DeviceReset, Event, ExitCause, Request, Reset, ResetSpec, SavedLink, VsockSpec,
};
use snapshot_memory::{PageRange, WorkingSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ChildStderr;

/// Counts 200,000 steps in a register and in memory, prints whether the two agree, and `then`.
fn counting(then: &[u8]) -> Vec<u8> {
    let count = [
        &[0x48, 0xc7, 0xc1, 0x40, 0x0d, 0x03, 0x00][..], // mov rcx, 200000
        &[0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00], // again: inc qword [0x200000]
        &[0x48, 0xff, 0xc9, 0x75, 0xf3],                 // dec rcx; jnz again
        // cmp qword [0x200000], 200000
        &[
            0x48, 0x81, 0x3c, 0x25, 0x00, 0x00, 0x20, 0x00, 0x40, 0x0d, 0x03, 0x00,
        ],
    ];
    let (wrong, right) = (print("wrong\n"), print("right\n"));
    let over = |code: &[u8]| u8::try_from(code.len()).unwrap();
    // je right; wrong…; jmp end; right: …
    let branch = [
        &[0x74, over(&wrong) + 2][..],
        &wrong,
        &[0xeb, over(&right)],
        &right,
    ];
    [
        print("begin\n"),
        count.concat(),
        branch.concat(),
        then.to_vec(),
    ]
    .concat()
}

/// What the guest writes, line by line.
struct Console(std::io::Lines<BufReader<ChildStderr>>);

impl Console {
    fn of(machine: &mut Machine) -> Self {
        Self(BufReader::new(machine.process.stderr.take().unwrap()).lines())
    }

    fn line(&mut self) -> String {
        loop {
            let line = self.0.next().unwrap().unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(said) = line["console"].as_str() {
                return said.into();
            }
        }
    }
}

/// A request to reset a machine without disks to `files`.
fn reset_spec(files: &Files, layer: Option<&OwnedFd>) -> (ResetSpec, Vec<OwnedFd>) {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let mut fds = Descriptors::default();
    let spec = ResetSpec {
        state: fds.add(files.state.try_clone().unwrap()),
        delta_layer: layer.map(|fd| fds.add(fd.try_clone().unwrap())),
        devices: vec![
            DeviceReset::Vsock(VsockSpec {
                link: fds.add(theirs),
                connection: SavedLink::Kept,
            }),
            DeviceReset::Rng,
        ],
    };
    (spec, fds.into())
}

fn reset_to(machine: &Machine, files: &Files, layer: Option<&OwnedFd>) -> Option<Event> {
    let (spec, fds) = reset_spec(files, layer);
    machine.send(&Request::Reset(spec), &fds);
    machine.receive()
}

fn reset(machine: &Machine, files: &Files, layer: Option<&OwnedFd>) -> Reset {
    match reset_to(machine, files, layer) {
        Some(Event::Reset(reset)) => reset,
        other => panic!("{other:?}"),
    }
}

fn stop(machine: &Machine) -> Vec<u8> {
    machine.send(&Request::Stop, &[]);
    match machine.receive() {
        Some(Event::Exited(report)) => {
            assert_eq!(report.cause, ExitCause::Stopped);
            report.console_tail
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_is_reset_as_often_as_asked() {
    is_reset(None);
}

#[test]
fn so_does_one_that_comes_with_a_working_set() {
    is_reset(Some(&WorkingSet {
        touched: vec![PageRange {
            first: 0,
            end: 1000,
        }],
        written: vec![PageRange { first: 0, end: 300 }],
    }));
}

fn is_reset(first_pages: Option<&WorkingSet>) {
    if !kvm() {
        return;
    }
    let mut first = Machine::start(&counting(&HALT));
    assert_eq!(Console::of(&mut first).line(), "begin");
    let (mut files, _) = save(&first);
    if let Some(set) = first_pages {
        files.state = with_working_set(&files.state, set);
    }
    let base = base_memory(vec![&files.memory]);
    let mut clone = clone(&base, &files, None);
    let mut console = Console::of(&mut clone);
    start(&clone);
    for round in 0..5 {
        // From a halt, paused since it was built, and from the midst of its work.
        if round < 2 {
            assert_eq!(console.line(), "right");
        }
        let reset = reset(&clone, &files, None);
        let kept = first_pages.is_some();
        assert!(round >= 2 || kept || reset.dropped_pages > 0, "{reset:?}");
        assert_eq!(reset.written_pages, 0);
        if round != 3 {
            start(&clone);
        }
    }
    assert_eq!(console.line(), "right");
    assert_eq!(
        stop(&clone),
        b"right\n",
        "what was written before is forgotten"
    );
}

#[test]
fn a_machine_is_reset_to_another_restore_point_of_its_kind_and_to_its_own_again() {
    if !kvm() {
        return;
    }
    let mut first = Machine::start(&counting(&HALT));
    let mut lines = Console::of(&mut first);
    assert_eq!(lines.line(), "begin");
    let (files, _) = save(&first);
    let base = base_memory(vec![&files.memory]);
    // Another one, in the midst of its count, as a layer over the same memory.
    let mut other = clone(&base, &files, None);
    start(&other);
    std::thread::sleep(std::time::Duration::from_millis(30));
    let (midst, saved) = save(&other);
    assert!(saved.memory_pages > 0);
    start(&other);
    assert_eq!(Console::of(&mut other).line(), "right");

    let mut clone = clone(&base, &files, None);
    let mut console = Console::of(&mut clone);
    start(&clone);
    assert_eq!(console.line(), "right");
    for (files, layer) in [
        (&midst, Some(&midst.memory)),
        (&files, None),
        (&midst, Some(&midst.memory)),
    ] {
        let reset = reset(&clone, files, layer);
        assert_eq!(reset.written_pages > 0, layer.is_some(), "{reset:?}");
        start(&clone);
        assert_eq!(console.line(), "right");
    }
    // The one it was taken from can be reset, too, and run to its end.
    reset(&other, &midst, Some(&midst.memory));
    stop(&other);
    stop(&clone);
}

#[test]
fn what_cannot_be_reset_runs_on() {
    if !kvm() {
        return;
    }
    let first = Machine::start(&counting(&RESET));
    let (files, _) = save(&first);
    let base = base_memory(vec![&files.memory]);
    let refused = |machine: &Machine, files: &Files, layer: Option<&OwnedFd>| match reset_to(
        machine, files, layer,
    ) {
        Some(Event::ResetFailed { message }) => message,
        other => panic!("{other:?}"),
    };
    // A machine that booted has no base memory.
    assert!(refused(&first, &files, None).contains("booted"));
    let clone = clone(&base, &files, None);
    start(&clone);
    let empty = Files {
        memory: common::file(b""),
        state: common::file(b"no state"),
    };
    assert!(refused(&clone, &empty, None).contains("section file"));
    assert!(refused(&clone, &files, Some(&empty.memory)).contains("layer"));
    let short = short_layer();
    assert!(refused(&clone, &files, Some(&short)).contains("pages"));
    // Devices that it has not, and a link that did not come along.
    let (spec, mut fds) = reset_spec(&files, None);
    let parent = None;
    let disk = [&spec.devices[..], &[DeviceReset::Block { parent }]].concat();
    let more = ResetSpec {
        devices: disk,
        ..spec.clone()
    };
    clone.send(&Request::Reset(more), &fds);
    assert!(matches!(clone.receive(), Some(Event::ResetFailed { .. })));
    fds.truncate(1);
    clone.send(&Request::Reset(spec), &fds);
    assert!(matches!(clone.receive(), Some(Event::ResetFailed { .. })));
    // The clock runs on meanwhile, and the count is right.
    let report = clone.end();
    assert_eq!(report.cause, ExitCause::GuestShutdown);
    assert!(report.console_tail.ends_with(b"right\n"), "{report:?}");
    stop(&first);
}

/// A layer of a memory of one page.
fn short_layer() -> OwnedFd {
    let file = File::from(common::file(&[]));
    let range = PageRange { first: 0, end: 1 };
    snapshot_memory::write_layer(&[&[1; 4096]], &[range], &file).unwrap();
    file.into()
}
