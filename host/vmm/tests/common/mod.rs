//! The real process, spoken to as the service does, and kernels of a few instructions.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![allow(dead_code, reason = "not every test file needs all of it")]

pub(crate) mod saved;

use control::{
    BootSource, Descriptors, DeviceSpec, Event, ExitReport, FdName, Request, SavedLink, VmSpec,
    VmStats, VsockSpec,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

pub(crate) const LOAD: u64 = 0x100_0000;
pub(crate) const PATIENCE_S: i64 = 30;

/// Whether there is a KVM; says so if not.
pub(crate) fn kvm() -> bool {
    let open = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &open {
        eprintln!("skipped: no /dev/kvm: {error}");
    }
    open.is_ok()
}

/// An ELF file with one segment of code, as a kernel.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
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
pub(crate) fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    text.bytes()
        .for_each(|byte| code.extend([0xb0, byte, 0xee]));
    code
}

/// `mov al, 0xfe; out 0x64, al; hlt; jmp -3`
pub(crate) const RESET: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
pub(crate) const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
pub(crate) const UD2: [u8; 2] = [0x0f, 0x0b];

pub(crate) fn file(contents: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(contents).unwrap();
    file.into()
}

pub(crate) struct Machine {
    pub(crate) process: Child,
    pub(crate) control: OwnedFd,
    pub(crate) _link: UnixStream,
}

/// A machine without disks.
pub(crate) fn spec(vcpus: u8, boot_source: BootSource, link: FdName) -> VmSpec {
    let connection = SavedLink::Kept;
    VmSpec {
        sandbox_id: "test".into(),
        vcpus,
        memory_mib: 128,
        boot_source,
        devices: vec![
            DeviceSpec::Vsock(VsockSpec { link, connection }),
            DeviceSpec::Rng,
        ],
    }
}

/// One that boots, and the descriptors for it.
pub(crate) fn boot(vcpus: u8, kernel: &[u8], link: UnixStream) -> (VmSpec, Vec<OwnedFd>) {
    let mut fds = Descriptors::default();
    let kernel = BootSource::Kernel {
        kernel: fds.add(file(kernel)),
        agent: fds.add(file(b"agent")),
        cmdline_extra: String::new(),
        contents: None,
    };
    let spec = spec(vcpus, kernel, fds.add(link));
    (spec, fds.into())
}

impl Machine {
    pub(crate) fn spawn() -> (Self, UnixStream) {
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

    pub(crate) fn configure(kernel: &[u8], vcpus: u8) -> Self {
        let (machine, link) = Self::spawn();
        let (spec, fds) = boot(vcpus, kernel, link);
        machine.send(&Request::Configure(Box::new(spec)), &fds);
        match machine.receive() {
            Some(Event::Configured(configured)) => assert!(configured.build_ns > 0),
            other => panic!("{other:?}"),
        }
        machine
    }

    pub(crate) fn start(code: &[u8]) -> Self {
        let machine = Self::configure(&elf(code), 2);
        machine.send(&Request::Start, &[]);
        machine
    }

    pub(crate) fn send(&self, request: &Request, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        control::send(&self.control, request, &fds).unwrap();
    }

    pub(crate) fn receive(&self) -> Option<Event> {
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

    pub(crate) fn stats(&self) -> VmStats {
        self.send(&Request::Stats, &[]);
        match self.receive() {
            Some(Event::Stats(stats)) => stats,
            other => panic!("{other:?}"),
        }
    }

    /// The last word, after which the process ends well.
    pub(crate) fn end(mut self) -> ExitReport {
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

pub(crate) fn wait(process: &mut Child) -> std::process::ExitStatus {
    let end = Instant::now() + Duration::from_secs(PATIENCE_S.unsigned_abs());
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the process runs on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a first request that must be refused; gives the reason.
pub(crate) fn refused(request: &Request, fds: &[OwnedFd]) -> String {
    let (mut machine, _) = Machine::spawn();
    machine.send(request, fds);
    let Some(Event::Failed { message }) = machine.receive() else {
        panic!("not refused")
    };
    assert!(!wait(&mut machine.process).success());
    message
}
