//! Round trips through `/dev/kvm`.

use super::*;
use crate::kvm::Kvm;
use crate::memory::{Backing, HugePages, MemorySpec};
use crate::vm::MachineSpec;
use kvm_bindings::{kvm_debugregs, kvm_regs};

type Damage = fn(&mut VcpuStateV1);

const LSTAR: u32 = 0xc000_0082;
const MTRR_BASE_0: u32 = 0x200;
const MACHINE_CHECK_ADDRESS: u32 = 0x402;

fn machine(vcpus: u8) -> Option<(Vm, Vec<Vcpu>)> {
    let kvm = Kvm::open().map_err(|e| eprintln!("skipped: {e}")).ok()?;
    let memory = MemorySpec {
        bytes: 1 << 20,
        backing: Backing::Anonymous,
        huge_pages: HugePages::Never,
    };
    Some(Vm::new(&kvm, &MachineSpec { vcpus, memory }).unwrap())
}

/// Gives every part a value that a fresh vCPU does not have.
fn mark(vcpu: &Vcpu) {
    let fd = vcpu.fd();
    let regs = kvm_regs {
        rax: 0x1234,
        rip: 0x5678,
        rflags: 2,
        ..Default::default()
    };
    fd.set_regs(&regs).unwrap();
    let mut sregs = fd.get_sregs().unwrap();
    sregs.gdt.base = 0x9000;
    fd.set_sregs(&sregs).unwrap();
    let mut xsave = fd.get_xsave().unwrap();
    // Register XMM3, and the header's bit that says that these registers are in use.
    xsave.region[52] = 0xa5a5_a5a5;
    xsave.region[128] |= 0b10;
    vcpu.set_xsave(&xsave).unwrap();
    if lacking(fd.get_debug_regs()).unwrap().is_some() {
        let debug = kvm_debugregs {
            db: [0x1000, 0x2000, 0x3000, 0x4000],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            ..Default::default()
        };
        fd.set_debug_regs(&debug).unwrap();
    }
    let mut events = fd.get_vcpu_events().unwrap();
    events.nmi.masked = 1;
    fd.set_vcpu_events(&events).unwrap();
    let mut lapic = fd.get_lapic().unwrap();
    // Spurious vector register: enabled. Timer: deadline mode, vector 0x40.
    lapic.regs[0xf1] = 1;
    (lapic.regs[0x320], lapic.regs[0x322]) = (0x40, 4);
    fd.set_lapic(&lapic).unwrap();
    let marked = [
        (MTRR_BASE_0, 0x0600_0006),
        (MACHINE_CHECK_ADDRESS, 0x77),
        (LSTAR, 0x1_0000),
    ];
    msr::write_all(fd, vcpu.index(), &marked).unwrap();
}

/// Whether this KVM takes a value for the time stamp counter. Not every KVM without hardware
/// virtualization does: its guests read the host's counter.
fn counter_can_be_set(vcpu: &Vcpu) -> bool {
    let far = FAR * 2;
    msr::write_all(vcpu.fd(), 0, &[(msr::TSC, far)]).unwrap();
    let [now] = msr::read_all(vcpu.fd(), 0, [msr::TSC]).unwrap();
    let can = (far..far + FAR).contains(&now);
    if !can {
        eprintln!("skipped: this KVM ignores writes to the time stamp counter");
    }
    can
}

/// What is in a state without the passing of time.
fn timeless(state: VcpuStateV1) -> VcpuStateV1 {
    VcpuStateV1 { tsc: 0, ..state }
}

#[test]
fn every_part_comes_back() {
    let (Some((_a, from)), Some((_b, to))) = (machine(2), machine(2)) else {
        return;
    };
    for (from, to) in from.iter().zip(&to) {
        let fresh = from.save().unwrap();
        mark(from);
        // Ten minutes away: it does not fire while this test runs.
        let [tsc] = msr::read_all(from.fd(), 0, [msr::TSC]).unwrap();
        let deadline = tsc + u64::from(from.tsc_khz().unwrap_or(1_000_000)) * 600_000;
        msr::write_all(from.fd(), 0, &[(msr::TSC_DEADLINE, deadline)]).unwrap();
        let state = from.save().unwrap();
        assert_eq!(state.tsc_deadline, deadline);
        for (name, differs) in [
            ("regs", state.regs != fresh.regs),
            ("sregs", state.sregs != fresh.sregs),
            ("xsave", state.xsave != fresh.xsave),
            ("debug", state.debug != fresh.debug || state.debug.is_none()),
            ("events", state.events != fresh.events),
            ("lapic", state.lapic != fresh.lapic),
        ] {
            assert!(differs, "{name} was marked");
        }
        for number in [LSTAR, MTRR_BASE_0, MACHINE_CHECK_ADDRESS] {
            let saved = state.msrs.iter().find(|(i, _)| *i == number);
            assert!(!fresh.msrs.contains(saved.unwrap()), "{number:#x}");
        }
        assert_ne!(timeless(to.save().unwrap()), timeless(state.clone()));
        to.load(&state).unwrap();
        assert_eq!(timeless(to.save().unwrap()), timeless(state));
    }
}

#[test]
fn counters_go_on_from_the_saved_value_as_one() {
    let (Some((_a, from)), Some((_b, to))) = (machine(2), machine(2)) else {
        return;
    };
    if !counter_can_be_set(&machine(1).unwrap().1[0]) {
        return;
    }
    let second = u64::from(from[0].tsc_khz().unwrap_or(1_000_000)) * 1000;
    let counter = |vcpu: &Vcpu| msr::read_all(vcpu.fd(), 0, [msr::TSC]).unwrap()[0];
    // Half a second is near enough to a fresh machine's counter to be taken for it; the second
    // vCPU was saved a little later than the first.
    for saved in [second / 2, second * 1000] {
        for (from, to, later) in [(&from[0], &to[0], 0), (&from[1], &to[1], second / 1000)] {
            let mut state = from.save().unwrap();
            state.tsc = saved + later;
            to.load(&state).unwrap();
        }
        let readings = [&to[0], &to[1], &to[0], &to[1]].map(counter);
        assert!(readings.is_sorted(), "{readings:?}");
        let range = saved..saved + second * 5;
        assert!(range.contains(&readings[0]), "{saved} {readings:?}");
    }
    // The deadline that was not set stays so.
    assert_eq!(to[0].save().unwrap().tsc_deadline, 0);
}

#[test]
fn a_wait_before_the_start_does_not_exist_for_the_guest() {
    let (Some((_a, from)), Some((vm, vcpus))) = (machine(2), machine(2)) else {
        return;
    };
    let states: Vec<_> = from.iter().map(|v| v.save().unwrap()).collect();
    let state = vm.save().unwrap();
    vm.load(&vcpus, &state, &states).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    for (vcpu, state) in vcpus.iter().zip(&states) {
        vcpu.load_time(state).unwrap();
    }
    vm.load_clock(&state).unwrap();
    let now = vm.save().unwrap().clock_ns;
    let near = state.clock_ns..state.clock_ns + 250_000_000;
    assert!(near.contains(&now), "{now} {near:?}");
    if !counter_can_be_set(&machine(1).unwrap().1[0]) {
        return;
    }
    let khz = u64::from(vcpus[0].tsc_khz().unwrap_or(1_000_000));
    for (vcpu, state) in vcpus.iter().zip(&states) {
        let gone = vcpu.save().unwrap().tsc.abs_diff(state.tsc);
        assert!(gone < khz * 250, "{gone} ticks at {khz} kHz");
    }
}

#[test]
fn a_damaged_state_changes_nothing() {
    let (Some((_a, from)), Some((_b, to))) = (machine(1), machine(1)) else {
        return;
    };
    let vcpu = &to[0];
    let before = timeless(vcpu.save().unwrap());
    mark(&from[0]);
    let good = from[0].save().unwrap();
    let damages: [(&str, Damage); 12] = [
        ("its number", |s| s.index = 1),
        ("size of kvm_vcpu_events", |s| s.events.push(0)),
        ("size of kvm_regs", |s| s.regs.truncate(8)),
        ("size of kvm_sregs", |s| s.sregs.clear()),
        ("size of kvm_xsave", |s| s.xsave.push(0)),
        ("size of kvm_xcrs", |s| s.xcrs = Some(Vec::new())),
        ("size of kvm_debugregs", |s| s.debug = Some(vec![0; 127])),
        ("size of kvm_lapic_state", |s| s.lapic.truncate(1023)),
        ("number of model-specific", |s| {
            s.msrs = vec![(LSTAR, 0); 513];
        }),
        ("order of model-specific", |s| s.msrs = vec![(LSTAR, 0); 2]),
        ("0x10,", |s| s.msrs = vec![(msr::TSC, 0)]),
        ("0xdead,", |s| s.msrs = vec![(0xdead, 0)]),
    ];
    for (about, damage) in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        let error = vcpu.load(&bad).unwrap_err();
        assert!(matches!(error, Error::State { .. }), "{error}");
        assert!(error.to_string().contains(about), "{error}");
    }
    assert_eq!(timeless(vcpu.save().unwrap()), before);
    vcpu.load(&good).unwrap();
    assert_eq!(timeless(vcpu.save().unwrap()), timeless(good));
}

#[test]
fn a_value_that_kvm_refuses_is_named() {
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    let Some((_vm, vcpus)) = machine(1) else {
        return;
    };
    let mut state = vcpus[0].save().unwrap();
    let default = state.msrs.iter_mut().find(|(i, _)| *i == MTRR_DEF_TYPE);
    default.unwrap().1 = u64::MAX;
    let error = vcpus[0].load(&state).unwrap_err().to_string();
    assert!(error.contains("0x2ff = 0xffffffffffffffff"), "{error}");
}
