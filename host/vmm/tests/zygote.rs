//! VM processes that come from a zygote: whose children they are, what they see, who outlives whom.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use control::{Event, JailMode, Request, Spawned, Wall, Zygote, ZygoteError};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::fs;

/// These tests are of processes, on whatever host they run.
const MODE: JailMode = JailMode::Degraded;

fn zygote() -> Option<Zygote> {
    if !std::path::Path::new("/dev/kvm").exists() {
        eprintln!("skipped: there is no /dev/kvm");
        return None;
    }
    Some(Zygote::start(env!("CARGO_BIN_EXE_hatchery-vmm"), MODE).unwrap())
}

/// Waits for a child's end; its exit status.
fn reap(pid: Pid) -> Option<i32> {
    let status = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED).unwrap();
    status.unwrap().exit_status()
}

fn of(pid: Pid, file: &str) -> String {
    let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn its_vm_processes_are_our_children_and_end_with_their_sockets() {
    let Some(zygote) = zygote() else { return };
    let spawned: Vec<Spawned> = (0..3).map(|_| zygote.spawn(None).unwrap()).collect();
    for Spawned { pid, control, .. } in spawned {
        let status = of(pid, "status");
        let parent = format!("\nPPid:\t{}\n", std::process::id());
        assert!(status.contains(&parent), "{status}");
        assert_eq!(
            of(pid, "oom_score_adj"),
            "500\n",
            "it goes before the service"
        );
        drop(control);
        assert_eq!(reap(pid), Some(0));
    }
}

#[test]
fn a_vm_process_outlives_its_zygote() {
    let Some(zygote) = zygote() else { return };
    let vm = zygote.spawn(None).unwrap();
    let number = i32::try_from(zygote.pid()).unwrap();
    kill_process(Pid::from_raw(number).unwrap(), Signal::KILL).unwrap();
    let lost = (0..100).find_map(|_| match zygote.spawn(None) {
        Ok(late) => {
            drop(late.control);
            reap(late.pid);
            None
        }
        Err(error) => Some(error),
    });
    let lost = lost.expect("a killed zygote answers no more");
    assert!(lost.is_lost(), "{lost:?}");
    // It still answers: in the wrong state, with words.
    control::send(&vm.control, &Request::Start, &[]).unwrap();
    let (event, _) = control::recv::<Event>(&vm.control).unwrap().unwrap();
    assert!(matches!(event, Event::Failed { .. }), "{event:?}");
    assert_eq!(reap(vm.pid), Some(1));
}

/// Children of this process in a zygote's group, with their states; the zygote itself is not among
/// them.
fn made_by(zygote: Pid) -> Vec<(Pid, char)> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let numbers = fs::read_dir("/proc").unwrap();
    let numbers = numbers.filter_map(|entry| number(entry.unwrap()));
    let child = |number: i32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        let mut words = stat.rsplit_once(')')?.1.split_whitespace();
        let state = words.next()?.chars().next()?;
        let mut next = || words.next()?.parse::<i32>().ok();
        let (parent, group) = (next()?, next()?);
        let ours = i32::try_from(std::process::id()).unwrap();
        let is = (parent, group) == (ours, zygote.as_raw_nonzero().get());
        Some((Pid::from_raw(number)?, state)).filter(|(pid, _)| is && *pid != zygote)
    };
    numbers.filter_map(child).collect()
}

/// A zygote that is stopped over its time, and then continues.
#[test]
fn what_is_made_too_late_is_reaped_and_given_to_nobody() {
    let Some(zygote) = zygote() else { return };
    let number = i32::try_from(zygote.pid()).unwrap();
    let number = Pid::from_raw(number).unwrap();
    kill_process(number, Signal::STOP).unwrap();
    let error = zygote.spawn(None).unwrap_err();
    assert!(error.is_lost(), "{error:?}");
    assert_eq!(made_by(number), []);
    kill_process(number, Signal::CONT).unwrap();
    // Its control socket is closed, so it ends at once, and stays until somebody asks for its
    // status.
    let ended = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        matches!(made_by(number)[..], [(_, 'Z')])
    });
    assert!(ended, "{:?}", made_by(number));
    // The late answer is not taken for the answer to another request.
    let next = zygote.spawn(None);
    assert!(matches!(next, Err(ZygoteError::Gone)), "{next:?}");
    drop(zygote);
    assert_eq!(made_by(number), []);
}

#[test]
fn it_sees_no_network_and_no_file() {
    let Some(zygote) = zygote() else { return };
    if !zygote.missing().is_empty() {
        eprintln!("skipped: {:?}", zygote.missing());
        return;
    }
    let vm = zygote.spawn(None).unwrap();
    let names = fs::read_dir(format!("/proc/{}/root", vm.pid.as_raw_nonzero())).unwrap();
    assert_eq!(names.count(), 1, "only /proc");
    let interfaces = of(vm.pid, "net/dev");
    assert!(
        interfaces.contains("lo:") && !interfaces.contains("eth"),
        "{interfaces}"
    );
    drop(vm.control);
    assert_eq!(reap(vm.pid), Some(0));
}

#[test]
fn a_program_that_is_none_is_found_out() {
    let error = Zygote::start("/bin/true", MODE).unwrap_err();
    assert!(error.is_lost(), "{error:?}");
    // One that says why it cannot be one is heard.
    let why = Zygote::start("/bin/ls", MODE).unwrap_err();
    assert!(why.is_lost() && why.to_string().contains("zygote"), "{why}");
}

/// Starts the program as root that may not administer the system.
fn without_administration(mode: JailMode, name: &str) -> Option<Zygote> {
    use std::os::unix::fs::PermissionsExt;
    if !std::path::Path::new("/dev/kvm").exists() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: this needs root and /dev/kvm");
        return None;
    }
    let script = std::env::temp_dir().join(format!("hatchery-{name}-{}", std::process::id()));
    let vmm = env!("CARGO_BIN_EXE_hatchery-vmm");
    let text = format!("#!/bin/sh\nexec /usr/bin/setpriv --bounding-set -sys_admin {vmm} \"$@\"\n");
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let zygote = Zygote::start(&script, mode);
    fs::remove_file(&script).unwrap();
    Some(zygote.unwrap())
}

#[test]
fn a_missing_wall_is_told_and_no_vm_process_is_made_where_all_are_required() {
    let Some(zygote) = without_administration(JailMode::Required, "required") else {
        return;
    };
    let walls: Vec<_> = zygote
        .missing()
        .iter()
        .map(|missing| missing.wall)
        .collect();
    assert_eq!(walls, [Wall::Namespaces], "{:?}", zygote.missing());
    let refused = zygote.spawn(None).unwrap_err();
    assert!(refused.to_string().contains("namespaces: "), "{refused}");
    assert!(!refused.is_lost(), "another zygote does no better");
}

#[test]
fn a_missing_wall_is_told_and_a_vm_process_is_made_where_the_operator_wants_it() {
    let Some(zygote) = without_administration(JailMode::Degraded, "degraded") else {
        return;
    };
    assert_eq!(zygote.missing().len(), 1, "{:?}", zygote.missing());
    let vm = zygote.spawn(None).unwrap();
    drop(vm.control);
    assert_eq!(reap(vm.pid), Some(0));
}

#[test]
fn a_vm_process_is_nobody_before_it_is_told_anything() {
    let Some(zygote) = zygote() else { return };
    if !zygote.missing().is_empty() {
        eprintln!("skipped: {:?}", zygote.missing());
        return;
    }
    let vm = zygote.spawn(None).unwrap();
    let nobody = |status: &str| {
        let user = 0x7000_0000 + vm.pid.as_raw_nonzero().get();
        status.contains(&format!("\nUid:\t{user}\t{user}\t{user}\t{user}\n"))
            && status.contains("\nCapEff:\t0000000000000000\n")
            && status.contains("\nNoNewPrivs:\t1\n")
    };
    let confined = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        nobody(&of(vm.pid, "status"))
    });
    assert!(confined, "{}", of(vm.pid, "status"));
    drop(vm.control);
    assert_eq!(reap(vm.pid), Some(0));
}
