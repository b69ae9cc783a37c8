//! Facts about this host, for `hatchery doctor`: no judgement, only what was seen or measured.

use crate::confine;
use machine::boot::{Entry, write_tables};
use machine::probe::{Irqchip, create_vm, slot};
use machine::{
    Backing, HugePages, Kvm, MachineSpec, MemorySpec, OPTIONAL, REQUIRED, VcpuThread, Vm, Wiring,
    layout,
};
use serde_json::{Value, json};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// How long the speed test's guest runs.
const SPEED_RUN: Duration = Duration::from_millis(100);
/// How long it may take to leave the guest afterwards.
const SPEED_LIMIT: Duration = Duration::from_millis(200);
/// Each time is the least of so many tries: the others had company.
const TRIES: u32 = 5;

/// All facts.
pub(crate) fn facts() -> Value {
    json!({
        "kvm": kvm(),
        "userfaultfd": userfaultfd(),
        "io_uring": outcome(io_uring()),
        "walls": walls(),
    })
}

/// `{"ok": true}` with details, or what stood in the way.
fn outcome(result: Result<Value, String>) -> Value {
    match result {
        Ok(Value::Object(mut details)) => {
            details.insert("ok".into(), true.into());
            Value::Object(details)
        }
        Ok(_) => json!({ "ok": true }),
        Err(error) => json!({ "ok": false, "error": error }),
    }
}

fn kvm() -> Value {
    let kvm = match Kvm::open_unchecked() {
        Ok(kvm) => kvm,
        Err(error) => return json!({ "ok": false, "error": crate::error::chain(&error) }),
    };
    let absent: Vec<_> = OPTIONAL
        .iter()
        .filter(|(c, _)| !kvm.has(*c))
        .map(|(_, n)| n)
        .collect();
    let missing = kvm.missing();
    json!({
        "ok": missing.is_empty(),
        "api_version": kvm.fd().get_api_version(),
        "needed": REQUIRED.iter().map(|(_, name)| name).collect::<Vec<_>>(),
        "missing": missing,
        "optional_missing": absent,
        "times_us": times(&kvm),
        "supervisor_speed": outcome(speed(&kvm)),
    })
}

fn memory(bytes: u64) -> MemorySpec {
    MemorySpec {
        bytes,
        backing: Backing::Anonymous,
        huge_pages: HugePages::Never,
    }
}

/// Microseconds for the calls whose cost differs between kernels.
fn times(kvm: &Kvm) -> Value {
    let least = |measure: &dyn Fn() -> Result<Duration, machine::Error>| {
        let all: Result<Vec<_>, _> = (0..TRIES).map(|_| measure()).collect();
        match all {
            Ok(all) => all
                .into_iter()
                .min()
                .map_or(Value::Null, |t| json!(t.as_secs_f64() * 1e6)),
            Err(error) => json!({ "error": crate::error::chain(&error) }),
        }
    };
    json!({
        "create_vm": least(&|| create_vm(kvm)),
        "slot_before_irqchip": least(&|| slot(kvm, Irqchip::None)),
        "slot_after_split_irqchip": least(&|| slot(kvm, Irqchip::Split)),
        "slot_after_full_irqchip": least(&|| slot(kvm, Irqchip::Full)),
        "whole_machine": least(&|| whole(kvm)),
    })
}

/// A machine with one vCPU and 128 MiB, as this program makes it.
fn whole(kvm: &Kvm) -> Result<Duration, machine::Error> {
    let start = Instant::now();
    let machine = Vm::new(
        kvm,
        &MachineSpec {
            vcpus: 1,
            memory: memory(128 << 20),
        },
    )?;
    let time = start.elapsed();
    drop(machine);
    Ok(time)
}

/// How fast guest supervisor code runs: a host that interprets it cannot boot Linux in useful time.
fn speed(kvm: &Kvm) -> Result<Value, String> {
    const CODE: u64 = 0x10_0000;
    const COUNT: u64 = 0x20_0000;
    /// Instructions from one count to the next: 1000 turns of two, and three around them.
    const PER_COUNT: u64 = 2003;
    const PROGRAM: [u8; 14] = [
        0xb9, 0xe8, 0x03, 0x00, 0x00, // mov ecx, 1000
        0xff, 0xc9, // again: dec ecx
        0x75, 0xfc, // jnz again
        0x48, 0xff, 0x06, // inc qword [rsi]
        0xeb, 0xf2, // jmp to the start
    ];
    let text = |e: machine::Error| crate::error::chain(&e);
    let spec = MachineSpec {
        vcpus: 1,
        memory: memory(4 << 20),
    };
    let (vm, mut vcpus) = Vm::new(kvm, &spec).map_err(text)?;
    let ram = vm.memory().ram();
    write_tables(ram).map_err(text)?;
    ram.write_slice(&PROGRAM, GuestAddress(CODE))
        .map_err(|e| e.to_string())?;
    let vcpu = vcpus.pop().ok_or("no vCPU was made")?;
    vcpu.enter_at(&Entry {
        rip: CODE,
        rsi: COUNT,
        rsp: layout::BOOT_STACK,
    })
    .map_err(text)?;
    let (ended, end) = std::sync::mpsc::channel();
    let wiring = Wiring {
        ports: Arc::default(),
        memory: Arc::default(),
    };
    let tell = move |_, exit| {
        let _ = ended.send(exit);
    };
    let mut thread = VcpuThread::spawn(vcpu, wiring, tell).map_err(text)?;
    thread.run();
    let start = Instant::now();
    std::thread::sleep(SPEED_RUN);
    let count: u64 = ram
        .read_obj(GuestAddress(COUNT))
        .map_err(|e| e.to_string())?;
    let seconds = start.elapsed().as_secs_f64();
    thread.finish(SPEED_LIMIT).map_err(text)?;
    if let Ok(exit) = end.try_recv() {
        return Err(format!("the guest ended: {exit:?}"));
    }
    let millions = u32::try_from(count * PER_COUNT / 1000).map_or(f64::MAX, f64::from) / 1000.0;
    Ok(json!({ "million_instructions_per_second": millions / seconds, "seconds": seconds }))
}

/// Whether this user may handle page faults as a machine with demand-paged memory has to: by the
/// device, as a VM process may open nothing. The setting is for the system call, and reported so
/// that nobody relies on it.
fn userfaultfd() -> Value {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    let features = device.as_ref().ok().map(|device| {
        let checked = snapshot_memory::pager::check(device).map(|()| Value::Null);
        outcome(checked.map_err(|e| crate::error::chain(&e)))
    });
    let sysctl = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").ok();
    json!({
        "device": outcome(device.map(|_| Value::Null).map_err(|e| e.to_string())),
        "features": features,
        "unprivileged": sysctl.map(|s| s.trim() == "1"),
    })
}

/// The walls that cannot be had here, by trying.
fn walls() -> Value {
    // Namespaces are a thread's own once it shares no working folder, so this costs only a thread.
    let tried = std::thread::spawn(|| {
        let unshared = jail::leave_shared_paths();
        unshared.map(|()| confine::begin())
    });
    match tried.join() {
        Ok(Ok(missing)) => json!({ "ok": missing.is_empty(), "missing": missing }),
        Ok(Err(error)) => json!({ "ok": false, "error": crate::error::chain(&error) }),
        Err(_) => json!({ "ok": false, "error": "the attempt broke off" }),
    }
}

/// Whether an event loop like a sandbox's can be had.
fn io_uring() -> Result<Value, String> {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    if setting.is_ok_and(|text| text.trim() == "1") {
        let why = "kernel.io_uring_disabled=1 allows it to privileged processes, and those of \
                   sandboxes are not";
        return Err(why.into());
    }
    crate::ring_check::check().map(|()| Value::Null)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn facts_are_told_on_any_host() {
        let facts = facts();
        assert!(facts["kvm"]["ok"].is_boolean());
        assert!(facts["io_uring"]["ok"].is_boolean());
        let walls = &facts["walls"];
        assert_eq!(
            walls["ok"] == true,
            walls["missing"] == json!([]),
            "{walls}"
        );
        assert!(
            std::path::Path::new("/usr").exists(),
            "it took nothing from the others"
        );
        let fault = &facts["userfaultfd"];
        assert!(fault["device"]["ok"].is_boolean());
        assert_eq!(
            fault["features"]["ok"].is_boolean(),
            fault["device"]["ok"] == true
        );
        if facts["kvm"]["ok"] == false {
            eprintln!("skipped: no usable KVM: {}", facts["kvm"]);
            return;
        }
        let speed = &facts["kvm"]["supervisor_speed"]["million_instructions_per_second"];
        assert!(speed.as_f64().unwrap() > 0.01, "{facts:#}");
        let slot = facts["kvm"]["times_us"]["slot_before_irqchip"]
            .as_f64()
            .unwrap();
        assert!(slot > 0.0 && slot < 1e6);
    }
}
