//! Bare guests that are saved, cloned and resumed.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use machine::boot::{Entry, write_tables};
use machine::{
    Backing, Error, HugePages, Kvm, MachineSpec, MemorySpec, Vcpu, VcpuStateV1, VcpuThread, Vm,
    VmStateV1, Wiring, layout,
};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = 0x10_0000;
const COUNT: u64 = 0x20_0000;
const MARK: u64 = 0x20_2000;
const BYTES: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts in a register and tells memory: `inc rax; mov [rsi], rax; jmp`.
const COUNTING: [u8; 8] = [0x48, 0xff, 0xc0, 0x48, 0x89, 0x06, 0xeb, 0xf8];

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

fn spec(vcpus: u8, backing: Backing) -> MachineSpec {
    let memory = MemorySpec {
        bytes: BYTES,
        backing,
        huge_pages: HugePages::Never,
    };
    MachineSpec { vcpus, memory }
}

fn counter(index: u8) -> u64 {
    COUNT + u64::from(index) * 8
}

/// A machine whose vCPUs count, each in its own word.
fn counting(kvm: &Kvm, vcpus: u8) -> (Vm, Vec<Vcpu>) {
    running(kvm, vcpus, &COUNTING)
}

/// A machine whose vCPUs run `code`, each with the address of its own word in `rsi`.
fn running(kvm: &Kvm, vcpus: u8, code: &[u8]) -> (Vm, Vec<Vcpu>) {
    let (vm, processors) = Vm::new(kvm, &spec(vcpus, Backing::Anonymous)).unwrap();
    let ram = vm.memory().ram();
    write_tables(ram).unwrap();
    ram.write_slice(code, GuestAddress(CODE)).unwrap();
    for vcpu in &processors {
        let entry = Entry {
            rip: CODE,
            rsi: counter(vcpu.index()),
            rsp: layout::BOOT_STACK,
        };
        vcpu.enter_at(&entry).unwrap();
        let runnable = kvm_bindings::kvm_mp_state {
            mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE,
        };
        vcpu.fd().set_mp_state(runnable).unwrap();
    }
    (vm, processors)
}

fn spawn(vcpus: Vec<Vcpu>) -> Vec<VcpuThread> {
    let start = |vcpu| {
        let wiring = Wiring {
            ports: Arc::default(),
            memory: Arc::default(),
        };
        let ended = |i, exit| panic!("vCPU {i} ended: {exit:?}");
        VcpuThread::spawn(vcpu, wiring, ended).unwrap()
    };
    vcpus.into_iter().map(start).collect()
}

fn counts(vm: &Vm, vcpus: u8) -> Vec<u64> {
    let read = |i| vm.memory().ram().read_obj(GuestAddress(counter(i)));
    (0..vcpus).map(|i| read(i).unwrap()).collect()
}

fn wait_for(done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "the guest does not get on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets all run until each count is above `from`, then parks all.
fn run_past(vm: &Vm, threads: &[VcpuThread], from: &[u64]) {
    threads.iter().for_each(VcpuThread::run);
    let vcpus = u8::try_from(threads.len()).unwrap();
    wait_for(|| {
        counts(vm, vcpus)
            .iter()
            .zip(from)
            .all(|(now, then)| now > then)
    });
    for thread in threads {
        thread.park(PATIENCE).unwrap();
    }
}

fn base_memory(vm: &Vm) -> Arc<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("base memory", flags).unwrap());
    let mut done = 0;
    let length = usize::try_from(BYTES).unwrap();
    while done < length {
        let at = GuestAddress(u64::try_from(done).unwrap());
        done += vm
            .memory()
            .ram()
            .write_volatile_to(at, &mut file, length - done)
            .unwrap();
    }
    Arc::new(file)
}

/// Through bytes and back, as a snapshot goes.
fn stored<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    postcard::from_bytes(&postcard::to_allocvec(value).unwrap()).unwrap()
}

fn save(vm: &Vm, threads: &[VcpuThread]) -> (VmStateV1, Vec<VcpuStateV1>) {
    let states: Vec<_> = threads
        .iter()
        .map(|thread| thread.with_parked(Vcpu::save).unwrap().unwrap())
        .collect();
    (stored(&vm.save().unwrap()), stored(&states))
}

fn finish(threads: Vec<VcpuThread>) {
    for mut thread in threads {
        thread.finish(PATIENCE).unwrap();
    }
}

/// A saved machine and what it had counted.
struct Saved {
    vm: VmStateV1,
    vcpus: Vec<VcpuStateV1>,
    memory: Arc<File>,
    counts: Vec<u64>,
}

fn clone(kvm: &Kvm, saved: &Saved) -> (Vm, Vec<VcpuThread>) {
    let backing = Backing::BaseMemory(Arc::clone(&saved.memory));
    let (vm, vcpus) = Vm::new(kvm, &spec(saved.vm.vcpus, backing)).unwrap();
    vm.load(&vcpus, &saved.vm, &saved.vcpus).unwrap();
    (vm, spawn(vcpus))
}

#[test]
fn clones_go_on_from_the_same_count_and_stay_apart() {
    let kvm = kvm_or_skip!();
    let (vm, vcpus) = counting(&kvm, 2);
    let threads = spawn(vcpus);
    run_past(&vm, &threads, &[1000, 1000]);
    let (state, states) = save(&vm, &threads);
    let saved = Saved {
        vm: state,
        vcpus: states,
        memory: base_memory(&vm),
        counts: counts(&vm, 2),
    };
    let (one, one_threads) = clone(&kvm, &saved);
    let (two, two_threads) = clone(&kvm, &saved);
    assert_eq!(counts(&one, 2), saved.counts, "loaded, not run");

    // The count lives in a register: had it been lost, memory would show small numbers.
    run_past(&one, &one_threads, &saved.counts);
    assert_eq!(counts(&vm, 2), saved.counts, "the original is paused");
    assert_eq!(counts(&two, 2), saved.counts, "so does the other clone");
    run_past(&vm, &threads, &saved.counts);
    assert_eq!(counts(&two, 2), saved.counts, "whoever else runs");

    one.memory()
        .ram()
        .write_obj(7_u64, GuestAddress(MARK))
        .unwrap();
    run_past(&two, &two_threads, &saved.counts);
    for other in [&vm, &two] {
        let mark: u64 = other.memory().ram().read_obj(GuestAddress(MARK)).unwrap();
        assert_eq!(mark, 0, "writes of one clone stay its own");
    }
    for all in [threads, one_threads, two_threads] {
        finish(all);
    }
}

#[test]
fn a_clone_can_be_saved_and_cloned_again() {
    let kvm = kvm_or_skip!();
    let (vm, vcpus) = counting(&kvm, 1);
    let threads = spawn(vcpus);
    run_past(&vm, &threads, &[100]);
    let mut machine = (vm, threads);
    for _ in 0..3 {
        let (vm, threads) = machine;
        let (state, states) = save(&vm, &threads);
        let saved = Saved {
            vm: state,
            vcpus: states,
            memory: base_memory(&vm),
            counts: counts(&vm, 1),
        };
        finish(threads);
        machine = clone(&kvm, &saved);
        run_past(&machine.0, &machine.1, &saved.counts);
        assert!(machine.0.save().unwrap().clock_ns >= saved.vm.clock_ns);
    }
    finish(machine.1);
}

/// Sets the APIC's timer and halts; the timer's handler counts.
fn sleeping(kvm: &Kvm) -> (Vm, Vec<Vcpu>) {
    const HANDLER: u64 = CODE + 0x100;
    const IDT: u64 = 0x20_1000;
    const IDT_REGISTER: u64 = 0x20_3000;
    const DIRECTORY: u64 = 0x20_4000;
    const VECTOR: u64 = 0x31;
    let main: [&[u8]; 12] = [
        &[0xbf, 0xf0, 0x00, 0xe0, 0xfe], // mov edi, 0xfee000f0 (spurious vector)
        &[0xc7, 0x07, 0xff, 0x01, 0x00, 0x00], // mov dword [rdi], 0x1ff: APIC on
        &[0xbf, 0x20, 0x03, 0xe0, 0xfe], // mov edi, 0xfee00320 (timer)
        &[0xc7, 0x07, 0x31, 0x00, 0x04, 0x00], // mov dword [rdi], 0x40031: deadline mode
        &[0xbf, 0x00, 0x30, 0x20, 0x00], // mov edi, IDT_REGISTER
        &[0x0f, 0x01, 0x1f],             // lidt [rdi]
        &[0x0f, 0x31],                   // rdtsc
        &[0x05, 0x00, 0x00, 0x00, 0x60], // add eax, 0x60000000: a few tenths of a second
        &[0x83, 0xd2, 0x00],             // adc edx, 0
        &[0xb9, 0xe0, 0x06, 0x00, 0x00], // mov ecx, 0x6e0 (deadline)
        &[0x0f, 0x30],                   // wrmsr
        &[0xfb, 0xf4, 0xeb, 0xfd],       // sti; hlt; jmp hlt
    ];
    let handler: [&[u8]; 4] = [
        &[0x48, 0xff, 0x06],                   // inc qword [rsi]
        &[0xbf, 0xb0, 0x00, 0xe0, 0xfe],       // mov edi, 0xfee000b0 (end of interrupt)
        &[0xc7, 0x07, 0x00, 0x00, 0x00, 0x00], // mov dword [rdi], 0
        &[0x48, 0xcf],                         // iretq
    ];
    let (vm, vcpus) = running(kvm, 1, &main.concat());
    let ram = vm.memory().ram();
    let put = |bytes: &[u8], at| ram.write_slice(bytes, GuestAddress(at)).unwrap();
    put(&handler.concat(), HANDLER);
    let gate = (HANDLER & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
    put(&gate.to_le_bytes(), IDT + VECTOR * 16);
    put(&0xfff_u16.to_le_bytes(), IDT_REGISTER);
    put(&IDT.to_le_bytes(), IDT_REGISTER + 2);
    // The boot page tables map the first GiB: maps the 2 MiB around the APIC as well.
    put(&(DIRECTORY | 0b11).to_le_bytes(), layout::PDPT + 3 * 8);
    let page = 0xfee0_0000_u64;
    let entry = DIRECTORY + (page >> 21 & 511) * 8;
    put(&(page | 0b1000_0011).to_le_bytes(), entry);
    (vm, vcpus)
}

/// How an idle guest is saved: halted, its timer set.
#[test]
fn a_halted_guest_wakes_in_its_clones() {
    let kvm = kvm_or_skip!();
    let (vm, vcpus) = sleeping(&kvm);
    let threads = spawn(vcpus);
    let mp_state = || {
        let look = |vcpu: &Vcpu| vcpu.fd().get_mp_state().unwrap().mp_state;
        threads[0].with_parked(look).unwrap()
    };
    wait_for(|| {
        threads[0].run();
        std::thread::sleep(Duration::from_millis(5));
        threads[0].park(PATIENCE).unwrap();
        mp_state() == kvm_bindings::KVM_MP_STATE_HALTED
    });
    let (state, states) = save(&vm, &threads);
    let saved = Saved {
        vm: state,
        vcpus: states,
        memory: base_memory(&vm),
        counts: counts(&vm, 1),
    };
    assert_eq!(saved.counts, [0], "it sleeps");
    finish(threads);
    // The second one after the first one's timer is over: its own has not begun to run.
    for _ in 0..2 {
        let (vm, threads) = clone(&kvm, &saved);
        assert_eq!(counts(&vm, 1), [0]);
        run_past(&vm, &threads, &saved.counts);
        assert_eq!(counts(&vm, 1), [1]);
        finish(threads);
    }
}

#[test]
fn a_vcpu_is_only_given_while_parked() {
    let kvm = kvm_or_skip!();
    let (vm, vcpus) = counting(&kvm, 1);
    let mut threads = spawn(vcpus);
    threads[0].with_parked(|_| ()).unwrap();
    threads[0].run();
    let refused = threads[0].with_parked(|_| ()).unwrap_err();
    assert!(
        matches!(refused, Error::NotParked { index: 0 }),
        "{refused}"
    );
    wait_for(|| counts(&vm, 1)[0] > 0);
    threads[0].park(PATIENCE).unwrap();
    // Another thread's look, of what the guest has said so far.
    let seen = std::thread::scope(|s| {
        let look = || threads[0].with_parked(|vcpu| vcpu.fd().get_regs().unwrap().rax);
        s.spawn(look).join().unwrap().unwrap()
    });
    assert!(seen.abs_diff(counts(&vm, 1)[0]) <= 1);
    threads[0].finish(PATIENCE).unwrap();
    threads[0].with_parked(|_| ()).unwrap_err();
}

#[test]
fn states_of_another_machine_are_refused() {
    let kvm = kvm_or_skip!();
    let (vm, vcpus) = counting(&kvm, 2);
    let state = vm.save().unwrap();
    let states: Vec<_> = vcpus.iter().map(|v| v.save().unwrap()).collect();
    let refused = |state: &VmStateV1, states: &[VcpuStateV1], about: &str| {
        let error = vm.load(&vcpus, state, states).unwrap_err();
        assert!(matches!(error, Error::State { .. }), "{error}");
        assert!(error.to_string().contains(about), "{error}");
    };
    let fewer = VmStateV1 { vcpus: 1, ..state };
    refused(
        &fewer,
        &states,
        "number of vCPUs is 1, this machine takes 2",
    );
    let larger = VmStateV1 {
        memory_bytes: BYTES * 2,
        ..state
    };
    refused(&larger, &states, "bytes of memory");
    let late = VmStateV1 {
        clock_ns: u64::MAX,
        ..state
    };
    refused(&late, &states, "clock");
    refused(&state, &states[..1], "number of saved vCPUs is 1");
    let swapped: Vec<_> = states.iter().rev().cloned().collect();
    refused(&state, &swapped, "its number");
    vm.load(&vcpus, &state, &states).unwrap();
}
