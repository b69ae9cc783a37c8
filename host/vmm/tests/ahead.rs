//! Machines that are saved while they run, with the real process.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::saved::{Files, base_memory, clone, empty, save_as, save_spec, start};
use common::{HALT, Machine, RESET, kvm, print};
use control::{Event, ExitCause, Request, SaveSpec};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;

/// Rounds over the pages that are written all the time.
const ROUNDS: u32 = 1500;
/// Pages from here are written all the time.
const BUSY: u32 = 0x20_0000;
/// Pages from here are written once.
const CALM: u32 = 0x24_0000;
/// The first byte behind them.
const END: u32 = 0x80_0000;
const BUSY_PAGES: u64 = (CALM - BUSY) as u64 / 4096;
const CALM_PAGES: u64 = (END - CALM) as u64 / 4096;

/// Writes to all pages of a range once.
fn sweep(first: u32, end: u32) -> Vec<u8> {
    [
        &[0xbf][..], // mov edi, first
        &first.to_le_bytes(),
        &[0x48, 0xff, 0x07],                   // again: inc qword [rdi]
        &[0x81, 0xc7, 0x00, 0x10, 0x00, 0x00], // add edi, 4096
        &[0x81, 0xff],                         // cmp edi, end
        &end.to_le_bytes(),
        &[0x75, 0xef], // jne again
    ]
    .concat()
}

/// Writes to pages over and over, and then says whether each has been written to as often as it
/// should.
fn writing() -> Vec<u8> {
    let (round, rounds) = (sweep(BUSY, CALM), ROUNDS.to_le_bytes());
    let back = u8::try_from(256 - (round.len() + 4)).unwrap();
    let (wrong, right) = (print("wrong\n"), print("right\n"));
    let over = |code: &[u8], more: usize| u8::try_from(code.len() + more).unwrap();
    [
        &sweep(CALM, END)[..],
        &print("begin\n"),
        &[0xb9], // mov ecx, ROUNDS
        &rounds,
        &round,                    // again:
        &[0xff, 0xc9, 0x75, back], // dec ecx; jne again
        &[0xbf],                   // mov edi, BUSY
        &BUSY.to_le_bytes(),
        &[0x48, 0x81, 0x3f], // next: cmp qword [rdi], ROUNDS
        &rounds,
        &[0x75, over(&right, 16)],             // jne wrong
        &[0x81, 0xc7, 0x00, 0x10, 0x00, 0x00], // add edi, 4096
        &[0x81, 0xff],                         // cmp edi, CALM
        &CALM.to_le_bytes(),
        &[0x75, 0xe9], // jne next
        &right,
        &[0xeb, over(&wrong, 0)],
        &wrong,
        &RESET,
    ]
    .concat()
}

fn wait_for_begin(machine: &mut Machine) {
    let mut lines = BufReader::new(machine.process.stderr.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("begin") {}
    // Whoever does not read it any more must not stop the machine.
    std::thread::spawn(move || lines.for_each(drop));
}

fn said(machine: &Machine) -> String {
    match machine.receive() {
        Some(Event::Exited(report)) => {
            assert_eq!(report.cause, ExitCause::GuestShutdown, "{report:?}");
            String::from_utf8_lossy(&report.console_tail).into_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_that_writes_all_the_time_is_saved_as_it_was_at_one_time() {
    if !kvm() {
        return;
    }
    let mut first = Machine::start(&writing());
    wait_for_begin(&mut first);
    let (files, saved) = save_as(&first, true);
    assert!(saved.ahead_ns > 0, "{saved:?}");
    assert!(saved.memory_pages >= BUSY_PAGES + CALM_PAGES, "{saved:?}");
    // What was written once was copied before.
    assert!(saved.quiesced_pages <= BUSY_PAGES + 64, "{saved:?}");
    start(&first);
    // A copy of it, over memory that it shares, is saved twice more.
    let shared = base_memory(vec![&files.memory]);
    let copy = clone(&shared, &files, None);
    start(&copy);
    let (second, saved) = save_as(&copy, true);
    assert!(saved.ahead_ns > 0, "{saved:?}");
    assert!(saved.memory_pages <= BUSY_PAGES + 64, "{saved:?}");
    start(&copy);
    let (third, _) = save_as(&copy, true);
    start(&copy);
    let copies = [&second, &third].map(|files| clone(&shared, files, Some(&files.memory)));
    copies.iter().for_each(start);
    for machine in [&first, &copy].into_iter().chain(&copies) {
        let said = said(machine);
        assert!(said.ends_with("right\n"), "{said}");
    }
}

/// A machine that has begun, and what it is told to save itself ahead.
fn about_to_be_saved() -> (Machine, (SaveSpec, Vec<OwnedFd>)) {
    let mut machine = Machine::start(&[&sweep(CALM, END)[..], &print("begin\n"), &HALT].concat());
    wait_for_begin(&mut machine);
    let files = Files {
        memory: empty(),
        state: empty(),
    };
    (machine, save_spec(&files, true))
}

#[test]
fn a_save_that_was_given_up_when_it_was_copied_ahead_is_in_nobody_s_way() {
    if !kvm() {
        return;
    }
    let (machine, (spec, fds)) = about_to_be_saved();
    machine.send(&Request::Save(spec), &fds);
    assert!(matches!(machine.receive(), Some(Event::CopiedAhead)));
    // The service has waited too long, and lets the machine run, which it does.
    machine.send(&Request::Start, &[]);
    assert!(matches!(machine.receive(), Some(Event::Failed { .. })));
    let (_, saved) = save_as(&machine, true);
    assert!(
        saved.ahead_ns > 0 && saved.memory_pages >= CALM_PAGES,
        "{saved:?}"
    );
}

#[test]
fn what_comes_out_of_turn_is_refused_and_the_save_goes_on() {
    if !kvm() {
        return;
    }
    let (machine, (spec, files)) = about_to_be_saved();
    machine.send(&Request::Save(spec.clone()), &files);
    machine.send(&Request::Start, &[]);
    machine.send(&Request::Save(spec), &files);
    machine.send(&Request::Pause, &[]);
    let mut events = Vec::new();
    let seen = |events: &[Event], is: fn(&Event) -> bool| events.iter().any(is);
    while !seen(&events, |e| matches!(e, Event::Saved(_)))
        || !seen(&events, |e| matches!(e, Event::SaveFailed { .. }))
    {
        let event = machine.receive().unwrap();
        if matches!(event, Event::CopiedAhead) {
            machine.send(&Request::Pause, &[]);
        }
        events.push(event);
    }
    // Started, or paused, too early or not.
    events.retain(|e| !matches!(e, Event::Failed { .. }));
    assert_eq!(events.len(), 3, "{events:?}");
}
