//! The real process, spoken to as the service does, with kernels of a few instructions: what a
//! sandbox's end looks like from outside. Runs on any KVM, also one that interprets.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use control::{Event, ExitCause, ExitReport, Origin, Request, VmSpec, VmStats};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

const LOAD: u64 = 0x100_0000;
const PATIENCE_S: i64 = 30;

/// Whether there is a KVM; says so if not.
fn kvm() -> bool {
    let open = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &open {
        eprintln!("skipped: no /dev/kvm: {error}");
    }
    open.is_ok()
}

/// An ELF file with one segment of code, as a kernel.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |n: u16| n.to_le_bytes().to_vec();
    let word = |n: u32| n.to_le_bytes().to_vec();
    let long = |n: u64| n.to_le_bytes().to_vec();
    let len = code.len() as u64;
    let parts = [
        // Header: executable, x86-64, version, entry, program headers at 64, 1 of 56 bytes.
        vec![
            half(2),
            half(62),
            word(1),
            long(LOAD),
            long(64),
            long(0),
            word(0),
        ],
        vec![half(64), half(56), half(1), half(0), half(0), half(0)],
        // Segment: load, flags, offset, virtual and physical address, lengths, alignment.
        vec![
            word(1),
            word(5),
            long(120),
            long(LOAD),
            long(LOAD),
            long(len),
            long(len),
            long(4096),
        ],
    ];
    file.extend(parts.concat().concat());
    assert_eq!(file.len(), 120);
    file.extend(code);
    file
}

/// Writes text to the console: `mov dx, 0x3f8; (mov al, c; out dx, al)*`.
fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    text.bytes()
        .for_each(|byte| code.extend([0xb0, byte, 0xee]));
    code
}

/// `mov al, 0xfe; out 0x64, al; hlt; jmp -3`
const RESET: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
const UD2: [u8; 2] = [0x0f, 0x0b];

fn file(contents: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(contents).unwrap();
    file.into()
}

struct Machine {
    process: Child,
    control: OwnedFd,
    _link: UnixStream,
}

fn spec(vcpus: u8) -> VmSpec {
    VmSpec {
        sandbox_id: "test".into(),
        vcpus,
        memory_mib: 128,
        origin: Origin::Boot {
            kernel: 0,
            agent: 1,
            cmdline_extra: String::new(),
        },
        link: 2,
        disks: vec![],
    }
}

impl Machine {
    fn spawn() -> (Self, UnixStream) {
        let (process, control) = control::spawn(env!("CARGO_BIN_EXE_hatchery-vmm"), &[]).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            Self {
                process,
                control,
                _link: ours,
            },
            theirs,
        )
    }

    fn configure(kernel: &[u8], vcpus: u8) -> Self {
        let (machine, link) = Self::spawn();
        let fds: [OwnedFd; 3] = [file(kernel), file(b"agent"), link.into()];
        machine.send(&Request::Configure(Box::new(spec(vcpus))), &fds);
        match machine.receive() {
            Some(Event::Configured(configured)) => assert!(configured.build_ns > 0),
            other => panic!("{other:?}"),
        }
        machine
    }

    fn start(code: &[u8]) -> Self {
        let machine = Self::configure(&elf(code), 2);
        machine.send(&Request::Start, &[]);
        assert_eq!(machine.receive(), Some(Event::Started));
        machine
    }

    fn send(&self, request: &Request, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        control::send(&self.control, request, &fds).unwrap();
    }

    fn receive(&self) -> Option<Event> {
        let mut ready = [PollFd::new(&self.control, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: PATIENCE_S,
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut ready, Some(&limit)).unwrap(),
            1,
            "the process is silent"
        );
        control::recv(&self.control)
            .unwrap()
            .map(|(event, _)| event)
    }

    fn stats(&self) -> VmStats {
        self.send(&Request::Stats, &[]);
        match self.receive() {
            Some(Event::Stats(stats)) => stats,
            other => panic!("{other:?}"),
        }
    }

    /// The last word, after which the process ends well.
    fn end(mut self) -> ExitReport {
        let Some(Event::Exited(report)) = self.receive() else {
            panic!("no last word")
        };
        assert_eq!(self.receive(), None);
        let mut log = String::new();
        self.process
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        assert!(self.process.wait().unwrap().success(), "{log}");
        assert!(log.lines().all(|line| line.starts_with('{')), "{log}");
        report
    }
}

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

fn wait(process: &mut Child) -> std::process::ExitStatus {
    let end = Instant::now() + Duration::from_secs(PATIENCE_S.unsigned_abs());
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the process goes on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a first request that must be refused; gives the reason.
fn refused(request: &Request, fds: &[OwnedFd]) -> String {
    let (mut machine, _) = Machine::spawn();
    machine.send(request, fds);
    let Some(Event::Failed { message }) = machine.receive() else {
        panic!("not refused")
    };
    assert!(!wait(&mut machine.process).success());
    message
}

#[test]
fn bad_requests_are_refused_with_the_reason() {
    assert!(refused(&Request::Start, &[]).contains("before Configure"));
    let configure = |spec: VmSpec| Request::Configure(Box::new(spec));
    let none = refused(&configure(spec(9)), &[]);
    assert!(none.contains("9 vCPUs"), "{none}");
    let no_fds = refused(&configure(spec(1)), &[]);
    assert!(no_fds.contains("Descriptor index 0"), "{no_fds}");
    if !kvm() {
        return;
    }
    let fds = |kernel: &[u8]| {
        let (link, _) = UnixStream::pair().unwrap();
        [file(kernel), file(b"agent"), link.into()]
    };
    let no_elf = refused(&configure(spec(1)), &fds(&[b'x'; 4096]));
    assert!(no_elf.contains("kernel"), "{no_elf}");
    let empty = refused(&configure(spec(1)), &fds(b""));
    assert!(empty.contains("ELF header"), "{empty}");
    // A kernel that wants to lie beyond the end of memory.
    let mut far = elf(&HALT);
    far[88..96].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert!(refused(&configure(spec(1)), &fds(&far)).contains("kernel"));
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
