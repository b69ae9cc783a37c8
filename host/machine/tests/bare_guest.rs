//! Bare guests: a few instructions on the real `/dev/kvm`, without a kernel.
//!
//! They use only what every KVM does right, also one that interprets supervisor code.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use machine::boot::{Entry, write_tables};
use machine::{
    Backing, Bus, BusDevice, Exit, GuestRam, HugePages, Kvm, MachineSpec, MemorySpec, Msi, Vcpu,
    VcpuThread, Vm, Wiring, layout,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const CODE: u64 = 0x10_0000;
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! kvm_or_skip {
    () => {
        match Kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => {
                eprintln!("skipped: {error}");
                return;
            }
        }
    };
}

#[derive(Default)]
struct Recorder {
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
    answer: u8,
}

impl BusDevice for Recorder {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.answer);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.writes.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn machine(kvm: &Kvm, vcpus: u8, code: &[u8]) -> (Vm, Vec<Vcpu>) {
    let memory = MemorySpec {
        bytes: 128 * MIB,
        backing: Backing::Anonymous,
        huge_pages: HugePages::Never,
    };
    let (vm, processors) = Vm::new(kvm, &MachineSpec { vcpus, memory }).unwrap();
    write_tables(vm.memory().ram()).unwrap();
    vm.memory()
        .ram()
        .write_slice(code, GuestAddress(CODE))
        .unwrap();
    (vm, processors)
}

/// The boot page tables map the first GiB only: maps the fourth as well, one to one.
fn map_devices(ram: &GuestRam) {
    const DIRECTORY: u64 = 0x20_4000;
    ram.write_obj(DIRECTORY | 0b11, GuestAddress(layout::PDPT + 3 * 8))
        .unwrap();
    for i in 0..512 {
        let page = (layout::MMIO + (i << 21)) | 0b1000_0011;
        ram.write_obj(page, GuestAddress(DIRECTORY + i * 8))
            .unwrap();
    }
}

fn enter(vcpu: &Vcpu, rsi: u64) {
    vcpu.enter_at(&Entry {
        rip: CODE,
        rsi,
        rsp: layout::BOOT_STACK,
    })
    .unwrap();
}

/// Runs one vCPU, answering accesses, until something else ends it.
fn run(vcpu: &mut Vcpu, ports: &Bus, memory: &Bus) -> Exit {
    let end = Instant::now() + PATIENCE;
    loop {
        match vcpu.run_once(ports, memory) {
            Exit::Io | Exit::Interrupted if Instant::now() < end => {}
            exit => return exit,
        }
    }
}

/// Ends a guest: an invalid opcode without a handler is a triple fault.
const UD2: [u8; 2] = [0x0f, 0x0b];

fn program(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn port_writes_arrive_and_a_triple_fault_is_told() {
    let kvm = kvm_or_skip!();
    let code = program(&[
        &[0x66, 0xba, 0xf8, 0x03], // mov dx, 0x3f8
        &[0xb0, b'h', 0xee],       // mov al, 'h'; out dx, al
        &[0xb0, b'i', 0xee],
        &UD2,
    ]);
    let (_vm, mut vcpus) = machine(&kvm, 1, &code);
    enter(&vcpus[0], 0);
    let device = Arc::new(Recorder::default());
    let ports = Bus::new([(0x3f8, 8, device.clone() as _)]).unwrap();
    assert_eq!(run(&mut vcpus[0], &ports, &Bus::default()), Exit::Shutdown);
    assert_eq!(
        *device.writes.lock().unwrap(),
        [(0, vec![b'h']), (0, vec![b'i'])]
    );
}

#[test]
fn memory_mapped_reads_and_writes_reach_the_device() {
    let kvm = kvm_or_skip!();
    let code = program(&[
        &[0xbf, 0x00, 0x00, 0x00, 0xc0],       // mov edi, 0xc0000000
        &[0x8b, 0x07],                         // mov eax, [rdi]
        &[0x89, 0x47, 0x50],                   // mov [rdi + 0x50], eax
        &[0xa3, 0, 0x20, 0x10, 0, 0, 0, 0, 0], // mov [0x102000], eax
        &UD2,
    ]);
    let (vm, mut vcpus) = machine(&kvm, 1, &code);
    let ram = vm.memory().ram();
    map_devices(ram);
    enter(&vcpus[0], 0);
    let device = Arc::new(Recorder {
        answer: 0x5a,
        ..Default::default()
    });
    let memory = Bus::new([(layout::MMIO, 0x1000, device.clone() as _)]).unwrap();
    assert_eq!(run(&mut vcpus[0], &Bus::default(), &memory), Exit::Shutdown);
    assert_eq!(*device.writes.lock().unwrap(), [(0x50, vec![0x5a; 4])]);
    assert_eq!(
        ram.read_obj::<u32>(GuestAddress(0x10_2000)).unwrap(),
        0x5a5a_5a5a
    );
}

#[test]
fn a_guest_sees_the_hosts_name_of_its_processor() {
    let kvm = kvm_or_skip!();
    let code = program(&[
        &[0xb8, 2, 0, 0, 0x80],                // mov eax, 0x80000002
        &[0x0f, 0xa2],                         // cpuid
        &[0xa3, 0, 0x20, 0x10, 0, 0, 0, 0, 0], // mov [0x102000], eax
        &UD2,
    ]);
    let (vm, mut vcpus) = machine(&kvm, 1, &code);
    enter(&vcpus[0], 0);
    let none = Bus::default();
    assert_eq!(run(&mut vcpus[0], &none, &none), Exit::Shutdown);
    let seen = vm.memory().ram().read_obj::<u32>(GuestAddress(0x10_2000));
    assert_eq!(seen.unwrap(), std::arch::x86_64::__cpuid(0x8000_0002).eax);
}

#[test]
fn a_fresh_vcpu_says_that_there_is_no_branch_trace_store_nor_sampling() {
    let kvm = kvm_or_skip!();
    let (_vm, vcpus) = machine(&kvm, 1, &UD2);
    let misc_enable = kvm_bindings::kvm_msr_entry {
        index: 0x1a0,
        ..Default::default()
    };
    let mut msrs = kvm_bindings::Msrs::from_entries(&[misc_enable]).unwrap();
    assert_eq!(vcpus[0].fd().get_msrs(&mut msrs).unwrap(), 1);
    assert_eq!(msrs.as_slice()[0].data, 0x1801);
}

/// One access, two parts: parking after the first must not lose the second.
#[test]
fn settling_finishes_all_parts_of_an_access() {
    let kvm = kvm_or_skip!();
    let code = program(&[
        &[0xbf, 0xfc, 0x0f, 0x00, 0xc0], // mov edi, 0xc0000ffc
        &[0x48, 0x89, 0x37],             // mov [rdi], rsi: four bytes on each of two pages
        &UD2,
    ]);
    let (vm, mut vcpus) = machine(&kvm, 1, &code);
    map_devices(vm.memory().ram());
    enter(&vcpus[0], 0x1122_3344_5566_7788);
    let device = Arc::new(Recorder::default());
    let ports = Bus::default();
    let memory = Bus::new([(layout::MMIO, 0x2000, device.clone() as _)]).unwrap();
    let written = || device.writes.lock().unwrap().clone();
    let end = Instant::now() + PATIENCE;
    while written().is_empty() && Instant::now() < end {
        vcpus[0].run_once(&ports, &memory);
    }
    let first = (0xffc, vec![0x88, 0x77, 0x66, 0x55]);
    assert_eq!(written(), std::slice::from_ref(&first));
    vcpus[0].settle(&ports, &memory).unwrap();
    let second = (0x1000, vec![0x44, 0x33, 0x22, 0x11]);
    assert_eq!(written(), [first, second]);
    assert_eq!(vcpus[0].fd().get_regs().unwrap().rip, CODE + 8);
}

#[test]
fn a_doorbell_rings_without_an_exit() {
    let kvm = kvm_or_skip!();
    let code = program(&[
        &[0xbf, 0x50, 0x00, 0x00, 0xc0], // mov edi, 0xc0000050
        &[0xb8, 0x01, 0x00, 0x00, 0x00], // mov eax, 1
        &[0x89, 0x07],                   // mov [rdi], eax: the doorbell's value
        &[0xff, 0xc0, 0x89, 0x07],       // inc eax; mov [rdi], eax: another value
        &UD2,
    ]);
    let (vm, mut vcpus) = machine(&kvm, 1, &code);
    map_devices(vm.memory().ram());
    let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    vm.doorbell(layout::MMIO + 0x50, 1, &bell).unwrap();
    enter(&vcpus[0], 0);
    let device = Arc::new(Recorder::default());
    let memory = Bus::new([(layout::MMIO, 0x1000, device.clone() as _)]).unwrap();
    assert_eq!(run(&mut vcpus[0], &Bus::default(), &memory), Exit::Shutdown);
    assert_eq!(bell.read().unwrap(), 1);
    assert_eq!(*device.writes.lock().unwrap(), [(0x50, vec![2, 0, 0, 0])]);
}

/// Spins in the guest, counting in memory: `lock inc qword [rsi]; jmp`.
const SPIN: [u8; 6] = [0xf0, 0x48, 0xff, 0x06, 0xeb, 0xfa];

fn spawn(vcpu: Vcpu, ended: mpsc::Sender<(u8, Exit)>) -> VcpuThread {
    let wiring = Wiring {
        ports: Arc::default(),
        memory: Arc::default(),
    };
    VcpuThread::spawn(vcpu, wiring, move |i, exit| {
        ended.send((i, exit)).unwrap();
    })
    .unwrap()
}

#[test]
fn several_vcpus_run_park_and_finish() {
    let kvm = kvm_or_skip!();
    let (vm, vcpus) = machine(&kvm, 3, &SPIN);
    let counter = |i: u64| 0x20_0000 + i * 8;
    let read = || -> Vec<u64> {
        let ram = vm.memory().ram();
        (0..3)
            .map(|i| ram.read_obj(GuestAddress(counter(i))).unwrap())
            .collect()
    };
    let (ended, ends) = mpsc::channel();
    let mut threads = Vec::new();
    for vcpu in vcpus {
        enter(&vcpu, counter(vcpu.index().into()));
        // Without a guest kernel nobody sends the start-up message.
        let runnable = kvm_bindings::kvm_mp_state {
            mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE,
        };
        vcpu.fd().set_mp_state(runnable).unwrap();
        threads.push(spawn(vcpu, ended.clone()));
    }
    assert_eq!(read(), [0, 0, 0], "parked threads do not run");
    threads.iter().for_each(VcpuThread::run);
    wait_for(|| read().iter().all(|n| *n > 0));
    for thread in &threads {
        thread.park(PATIENCE).unwrap();
    }
    let parked = read();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(read(), parked, "parked again");
    threads.iter().for_each(VcpuThread::run);
    wait_for(|| read().iter().zip(&parked).all(|(now, then)| now > then));
    for mut thread in threads {
        assert!(thread.counters().returns.load(Ordering::Relaxed) > 0);
        assert!(thread.exits() > 0);
        assert!(thread.counters().first_run_ns.load(Ordering::Relaxed) > 0);
        thread.finish(PATIENCE).unwrap();
    }
    // Stopping is not an end of the guest's own.
    ends.try_recv().unwrap_err();
}

fn wait_for(done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "the guest does not get on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_that_ends_says_why_once() {
    let kvm = kvm_or_skip!();
    let (_vm, mut vcpus) = machine(&kvm, 1, &UD2);
    enter(&vcpus[0], 0);
    let (ended, ends) = mpsc::channel();
    let mut thread = spawn(vcpus.remove(0), ended);
    thread.run();
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), (0, Exit::Shutdown));
    thread.park(PATIENCE).unwrap();
    thread.finish(PATIENCE).unwrap();
}

#[test]
fn a_halted_vcpu_can_be_finished() {
    let kvm = kvm_or_skip!();
    let (_vm, mut vcpus) = machine(&kvm, 1, &[0xf4, 0xeb, 0xfd]); // hlt; jmp hlt
    enter(&vcpus[0], 0);
    let (ended, ends) = mpsc::channel();
    let mut thread = spawn(vcpus.remove(0), ended);
    thread.run();
    wait_for(|| thread.counters().first_run_ns.load(Ordering::Relaxed) > 0);
    std::thread::sleep(Duration::from_millis(20));
    thread.finish(PATIENCE).unwrap();
    ends.try_recv().unwrap_err();
}

/// An interrupt handler that counts, and a main loop that enables interrupts and spins: the line
/// must arrive as the message it is routed to.
#[test]
fn a_raised_line_interrupts_the_guest() {
    const IDT: u64 = 0x20_1000;
    const HANDLER: u64 = CODE + 0x100;
    const VECTOR: u64 = 0x31;
    const COUNT: u64 = 0x20_0000;
    let kvm = kvm_or_skip!();
    let main = program(&[
        // Software-enable the APIC (spurious vector register, bit 8) through its MMIO page.
        &[0xbf, 0xf0, 0x00, 0xe0, 0xfe],       // mov edi, 0xfee000f0
        &[0xc7, 0x07, 0xff, 0x01, 0x00, 0x00], // mov dword [rdi], 0x1ff
        &[0xbf, 0x00, 0x30, 0x20, 0x00],       // mov edi, 0x203000 (descriptor)
        &[0x0f, 0x01, 0x1f],                   // lidt [rdi]
        &[0xfb],                               // sti
        &[0xeb, 0xfe],                         // jmp $
    ]);
    let handler = program(&[
        &[0x48, 0xff, 0x06],                   // inc qword [rsi]
        &[0xbf, 0xb0, 0x00, 0xe0, 0xfe],       // mov edi, 0xfee000b0 (end of interrupt)
        &[0xc7, 0x07, 0x00, 0x00, 0x00, 0x00], // mov dword [rdi], 0
        &[0x48, 0xcf],                         // iretq
    ]);
    let (vm, mut vcpus) = machine(&kvm, 1, &main);
    let ram = vm.memory().ram();
    ram.write_slice(&handler, GuestAddress(HANDLER)).unwrap();
    map_devices(ram);
    // 64-bit interrupt gate: offset 15..0, selector 0x10, type 0x8e, offset 31..16.
    let gate = (HANDLER & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
    ram.write_obj(gate, GuestAddress(IDT + VECTOR * 16))
        .unwrap();
    ram.write_slice(
        &program(&[&0xfff_u16.to_le_bytes(), &IDT.to_le_bytes()]),
        GuestAddress(0x20_3000),
    )
    .unwrap();
    let line = vm.irq_line(layout::FIRST_DEVICE_GSI).unwrap();
    let msi = Msi::from_redirection(VECTOR);
    vm.routes().set(layout::FIRST_DEVICE_GSI, msi).unwrap();
    enter(&vcpus[0], COUNT);
    let (ended, ends) = mpsc::channel();
    let mut thread = spawn(vcpus.remove(0), ended);
    thread.run();
    let count = || ram.read_obj::<u64>(GuestAddress(COUNT)).unwrap();
    let raised = AtomicU64::new(0);
    wait_for(|| {
        line.write(1).unwrap();
        raised.fetch_add(1, Ordering::Relaxed);
        count() >= 3
    });
    assert!(count() <= raised.load(Ordering::Relaxed));
    // Masked: raising has no effect any more.
    vm.routes().set(layout::FIRST_DEVICE_GSI, None).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let before = count();
    line.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(count(), before);
    ends.try_recv().unwrap_err();
    thread.finish(PATIENCE).unwrap();
}
