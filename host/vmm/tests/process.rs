//! What a sandbox's end looks like from outside. Runs on any KVM, also one that interprets.

mod common;

use common::{HALT, Machine, PATIENCE_S, RESET, UD2, boot, elf, kvm, print, refused, wait};
use control::{Event, ExitCause, Request, VmSpec};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[test]
fn ends_are_told_apart_with_the_console_tail() {
    if !kvm() {
        return;
    }
    let end = |parts: &[&[u8]]| Machine::start(&parts.concat()).end();
    let orderly = end(&[&print("Restarting system\n"), &RESET]);
    assert_eq!(orderly.cause, ExitCause::GuestShutdown);
    assert_eq!(orderly.console_tail, b"Restarting system\n");
    assert!(orderly.stats.io_exits >= 19 && orderly.stats.first_run_ns > 0);
    let panic = "Kernel panic - not syncing: ";
    let end_after = |text: &str| end(&[&print(&format!("{panic}{text}\n")), &RESET]).cause;
    assert_eq!(end_after("Fatal exception"), ExitCause::GuestPanic);
    assert_eq!(
        end_after("Attempted to kill init! exitcode=0x0000000b"),
        ExitCause::AgentDied
    );
    assert_eq!(end(&[&UD2]).cause, ExitCause::TripleFault);
}

#[test]
fn a_running_machine_answers_and_stops_when_asked() {
    if !kvm() {
        return;
    }
    let machine = Machine::start(&HALT);
    let stats = machine.stats();
    assert!(
        stats.guest_resident_kib > 0 && stats.guest_resident_kib < 8 * 1024,
        "{stats:?}"
    );
    assert!(
        stats.overhead_kib > 0 && stats.cpu_ns > 0 && stats.ring_enters > 0,
        "{stats:?}"
    );
    // What does not fit the phase is refused and changes nothing.
    machine.send(&Request::Start, &[]);
    assert!(matches!(machine.receive(), Some(Event::Failed { .. })));
    machine.send(&Request::Stop, &[]);
    assert_eq!(machine.end().cause, ExitCause::Stopped);
}

#[test]
fn a_machine_that_never_ran_stops_too() {
    if !kvm() {
        return;
    }
    let machine = Machine::configure(&elf(&HALT), 1);
    assert_eq!(machine.stats().first_run_ns, 0);
    machine.send(&Request::Stop, &[]);
    assert_eq!(machine.end().cause, ExitCause::Stopped);
}

#[test]
fn a_process_whose_service_is_gone_ends_by_itself() {
    if !kvm() {
        return;
    }
    for code in [&HALT[..], &[0xeb, 0xfe]] {
        let Machine {
            mut process,
            control,
            _link,
        } = Machine::start(code);
        drop(control);
        assert!(wait(&mut process).success());
    }
    let (
        Machine {
            mut process,
            control,
            ..
        },
        _,
    ) = Machine::spawn();
    drop(control);
    assert!(wait(&mut process).success(), "before Configure");
}

#[test]
fn bad_requests_are_refused_with_the_reason() {
    assert!(refused(&Request::Start, &[]).contains("before Configure"));
    let configure = |spec: VmSpec| Request::Configure(Box::new(spec));
    let new = |vcpus, kernel: &[u8]| {
        let (link, _) = UnixStream::pair().unwrap();
        boot(vcpus, kernel, link)
    };
    let none = refused(&configure(new(9, b"").0), &[]);
    assert!(none.contains("9 vCPUs"), "{none}");
    let no_fds = refused(&configure(new(1, b"").0), &[]);
    assert!(no_fds.contains("Descriptor index 0"), "{no_fds}");
    if !kvm() {
        return;
    }
    let refused_kernel = |kernel: &[u8]| {
        let (spec, fds) = new(1, kernel);
        refused(&configure(spec), &fds)
    };
    let no_elf = refused_kernel(&[b'x'; 4096]);
    assert!(no_elf.contains("kernel"), "{no_elf}");
    let empty = refused_kernel(b"");
    assert!(empty.contains("ELF header"), "{empty}");
    // A kernel that wants to lie beyond the end of memory.
    let mut far = elf(&HALT);
    far[88..96].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert!(refused_kernel(&far).contains("kernel"));
}

#[test]
fn a_flood_on_the_console_ends_nothing_and_is_bounded() {
    if !kvm() {
        return;
    }
    // mov dx, 0x3f8; mov al, '\n'; again: out dx, al; jmp again
    let machine = Machine::start(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'\n', 0xee, 0xeb, 0xfd]);
    std::thread::sleep(Duration::from_millis(300));
    // Nobody reads its log; it answers all the same.
    assert!(machine.stats().io_exits > 100);
    machine.send(&Request::Stop, &[]);
    let report = machine.end();
    assert_eq!(
        (report.cause, report.console_tail.len() <= 8192),
        (ExitCause::Stopped, true)
    );
}

#[test]
fn many_in_a_row_leave_nothing() {
    if !kvm() {
        return;
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..20 {
        assert_eq!(Machine::start(&RESET).end().cause, ExitCause::GuestShutdown);
    }
    // Other tests run beside this one and hold descriptors of their own for a while.
    let end = Instant::now() + Duration::from_secs(PATIENCE_S.unsigned_abs());
    while open() > before + 30 {
        assert!(
            Instant::now() < end,
            "descriptors are left: {} of {before}",
            open()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
