//! Machines with demand-paged memory, with the real process and a pager that can be killed.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::{Machine, RESET, kvm, print, spec};
use control::{BootSource, Descriptors, Event, ExitCause, Request, SaveSpec};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapshot_format::LayerIndex;
use snapshot_memory::pager::{self, PagingJob};
use snapshot_memory::{LayerFile, write_layer};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEMORY_PAGES: u64 = 128 << 20 >> 12;
/// The test that is a pager when it is asked to be one.
const CHILD: &str = "VMM_TEST_PAGER";

/// Prints 1, counts in memory for about a second, prints 2, then whether a far page is as it was,
/// resets.
fn counting() -> Vec<u8> {
    let count = [
        // mov byte [0x300000], 'Y'
        &[0xc6, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, b'Y'][..],
        // mov rcx, 200000; again: inc qword [0x200000]; dec rcx; jnz again
        &[0x48, 0xc7, 0xc1, 0x40, 0x0d, 0x03, 0x00],
        &[0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00],
        &[0x48, 0xff, 0xc9, 0x75, 0xf3],
    ];
    // mov dx, 0x3f8; mov al, [0x300000]; out dx, al
    let far = [
        &[0x66, 0xba, 0xf8, 0x03][..],
        &[0x8a, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, 0xee],
    ];
    [
        print("1"),
        count.concat(),
        print("2"),
        far.concat(),
        RESET.to_vec(),
    ]
    .concat()
}

fn possible() -> bool {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    if let Err(error) = &device {
        eprintln!("skipped: no /dev/userfaultfd: {error}");
    }
    kvm() && device.is_ok()
}

struct Pager {
    process: Child,
    socket: OwnedFd,
}

fn pair() -> (OwnedFd, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

#[test]
fn the_pager() {
    if std::env::var_os(CHILD).is_some() {
        pager::serve(std::io::stdin(), |_, _| {}).unwrap();
    }
}

impl Pager {
    fn start() -> Self {
        let (socket, theirs) = pair();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["the_pager", "--exact", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, socket }
    }

    /// The machine's end of its socket. With `record` only what is touched comes.
    fn job(&self, layers: &[&OwnedFd], record: Option<OwnedFd>) -> OwnedFd {
        let (ours, theirs) = pair();
        let job = PagingJob {
            name: "itest".into(),
            pages: MEMORY_PAGES,
            machine: theirs,
            layers: layers.iter().map(|fd| fd.try_clone().unwrap()).collect(),
            record,
        };
        pager::send_job(&self.socket, &job).unwrap();
        ours
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn empty() -> OwnedFd {
    memfd_create("saved", MemfdFlags::CLOEXEC).unwrap()
}

struct Files {
    memory: OwnedFd,
    state: OwnedFd,
    pages: u64,
}

fn save(machine: &Machine) -> Files {
    let (memory, state) = (empty(), empty());
    let mut fds = Descriptors::default();
    let spec = SaveSpec {
        memory: fds.add(memory.try_clone().unwrap()),
        state: fds.add(state.try_clone().unwrap()),
        contents: Vec::new(),
        ahead: false,
    };
    machine.send(&Request::Save(spec), &Vec::from(fds));
    match machine.receive() {
        Some(Event::Saved(saved)) => Files {
            memory,
            state,
            pages: saved.memory_pages,
        },
        other => panic!("{other:?}"),
    }
}

/// One that counts, saved while it does.
fn saved() -> Files {
    let first = Machine::start(&counting());
    std::thread::sleep(Duration::from_millis(50));
    save(&first)
}

fn configure(pager: OwnedFd, files: &Files) -> Machine {
    let (machine, link) = Machine::spawn();
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    let mut fds = Descriptors::default();
    let demand_paged = BootSource::DemandPaged {
        pager: fds.add(pager),
        userfaultfd: fds.add(device.unwrap()),
        state: fds.add(files.state.try_clone().unwrap()),
    };
    let spec = spec(2, demand_paged, fds.add(link));
    machine.send(&Request::Configure(Box::new(spec)), &Vec::from(fds));
    machine
}

fn begin(pager: OwnedFd, files: &Files) -> Machine {
    let machine = configure(pager, files);
    match machine.receive() {
        Some(Event::Configured(_)) => machine,
        other => panic!("{other:?}"),
    }
}

fn start(machine: &Machine) {
    machine.send(&Request::Start, &[]);
}

fn console(machine: Machine) -> Vec<u8> {
    let report = machine.end();
    assert_eq!(report.cause, ExitCause::GuestShutdown);
    report.console_tail
}

#[test]
fn demand_paged_machines_resume_where_the_first_was_saved_and_are_saved_again() {
    if !possible() {
        return;
    }
    let (files, pager) = (saved(), Pager::start());
    let clones: Vec<_> = (0..3)
        .map(|_| begin(pager.job(&[&files.memory], None), &files))
        .collect();
    clones.iter().for_each(start);
    std::thread::sleep(Duration::from_millis(50));
    // What it has written since, and no page that only came.
    let changes = save(&clones[0]);
    assert!(
        changes.pages > 0 && changes.pages < files.pages,
        "{} of {}",
        changes.pages,
        files.pages
    );
    start(&clones[0]);
    let chain = [&changes.memory, &files.memory];
    let second = begin(pager.job(&chain, None), &changes);
    start(&second);
    for machine in clones {
        assert_eq!(console(machine), b"2Y");
    }
    assert_eq!(console(second), b"2Y");
}

#[test]
fn a_record_has_what_was_touched() {
    if !possible() {
        return;
    }
    let (files, pager, record) = (saved(), Pager::start(), empty());
    let job = pager.job(&[&files.memory], Some(record.try_clone().unwrap()));
    let machine = begin(job, &files);
    let built = File::from(record.try_clone().unwrap())
        .metadata()
        .unwrap()
        .len();
    start(&machine);
    assert_eq!(console(machine), b"2Y");
    let bytes = {
        use std::os::unix::fs::FileExt;
        let file = File::from(record);
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(
            built < bytes.len() as u64,
            "nothing is touched before it runs but by the devices"
        );
        bytes
    };
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<_> = words
        .iter()
        .map(|w| u64::from_le_bytes(*w) & !(1 << 63))
        .collect();
    assert!(
        words.contains(&0x200) && words.contains(&0x300),
        "{words:x?}"
    );
    let mut once = words.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), words.len(), "no page twice: {words:x?}");
}

#[test]
fn a_machine_ends_with_its_pager_at_every_step() {
    if !possible() {
        return;
    }
    let files = saved();
    // Before it is built.
    let mut pager = Pager::start();
    let job = pager.job(&[&files.memory], None);
    pager.kill();
    let machine = configure(job, &files);
    let Some(Event::Failed { message }) = machine.receive() else {
        panic!("not refused")
    };
    assert!(message.contains("pager"), "{message}");

    // Before it runs, and while a vCPU waits for a page: the far page never comes.
    for runs in [false, true] {
        let mut pager = Pager::start();
        let job = pager.job(&[&files.memory], Some(empty()));
        let machine = begin(job, &files);
        if runs {
            start(&machine);
            std::thread::sleep(Duration::from_millis(30));
        }
        let killed = Instant::now();
        pager.kill();
        let Some(Event::Exited(report)) = machine.receive() else {
            panic!("no last word")
        };
        let ExitCause::HostFault { message } = report.cause else {
            panic!("{:?}", report.cause)
        };
        assert!(
            message.contains("pager") && message.contains("gone"),
            "{message}"
        );
        assert!(killed.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_machine_that_waits_for_ever_ends_all_the_same() {
    if !possible() {
        return;
    }
    let files = saved();
    // A pager that says it is ready and never loads anything: stopped after it was ready.
    let mut pager = Pager::start();
    let job = pager.job(&[&files.memory], Some(empty()));
    let machine = begin(job, &files);
    let stop = |signal| {
        let pid = rustix::process::Pid::from_child(&pager.process);
        rustix::process::kill_process(pid, signal).unwrap();
    };
    stop(rustix::process::Signal::STOP);
    start(&machine);
    std::thread::sleep(Duration::from_millis(100));
    pager.kill();
    let Some(Event::Exited(report)) = machine.receive() else {
        panic!("no last word")
    };
    assert!(
        matches!(report.cause, ExitCause::HostFault { .. }),
        "{:?}",
        report.cause
    );
}

#[test]
fn a_damaged_layer_ends_a_machine_with_the_right_words() {
    if !possible() {
        return;
    }
    let (files, pager) = (saved(), Pager::start());
    let layer = LayerFile::open(File::from(files.memory.try_clone().unwrap())).unwrap();
    let place = LayerIndex::data_at(layer.index().slots().into()) - 1;
    use std::os::unix::fs::FileExt;
    let file = File::from(files.memory.try_clone().unwrap());
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
    let machine = configure(pager.job(&[&files.memory], None), &files);
    let said = loop {
        match machine.receive() {
            Some(Event::Configured(_)) => {}
            Some(Event::Exited(report)) => break format!("{:?}", report.cause),
            Some(Event::Failed { message }) => break message,
            other => panic!("{other:?}"),
        }
    };
    assert!(
        said.contains("checksum") && said.contains("Layer 0 of 1"),
        "{said}"
    );
    // Of another machine.
    let other = File::from(empty());
    write_layer(
        &[&[1; 8192]],
        &[snapshot_memory::PageRange { first: 0, end: 2 }],
        &other,
    )
    .unwrap();
    let machine = configure(pager.job(&[&other.into()], None), &files);
    let Some(Event::Failed { message }) = machine.receive() else {
        panic!("not refused")
    };
    assert!(message.contains("2 pages"), "{message}");
}
