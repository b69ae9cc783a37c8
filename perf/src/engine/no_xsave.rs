//! Peers where the host's processor has no XSAVE, as the lab's: KVM then refuses to set XCR0, which
//! they do when they load a machine.
//!
//! Without XSAVE there is no XCR0, so nothing is lost if this one call is answered without being
//! made.

use anyhow::{Context, Result, anyhow};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::process::{Child, Command};

/// `KVM_SET_XCRS`, `_IOW(KVMIO, 0xa7, struct kvm_xcrs)`
const SET_XCRS: u64 = 0x4188_aea7;

/// Whether the host's processor has no XSAVE.
pub(super) fn here() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    !flags.split_whitespace().any(|flag| flag == "xsave")
}

/// What [`spawn`] needs, if it is needed here.
pub(super) fn needed() -> Result<Option<BpfProgram>> {
    let program = here().then(filter).transpose();
    program.context("A filter for a host without XSAVE")
}

/// Spawns a process that believes it wrote XCR0: it has the filter of the thread that spawned it.
pub(super) fn spawn(command: &mut Command, program: &BpfProgram) -> Result<Child> {
    let spawn = || {
        seccompiler::apply_filter(program)?;
        Ok(command.spawn()?)
    };
    std::thread::scope(|scope| scope.spawn(spawn).join())
        .unwrap_or_else(|_| Err(anyhow!("The thread that spawns a process panicked")))
}

fn filter() -> Result<BpfProgram> {
    let request = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, SET_XCRS)?;
    let rules = [(libc::SYS_ioctl, vec![SeccompRule::new(vec![request])?])];
    let filter = SeccompFilter::new(
        rules.into(),
        SeccompAction::Allow,
        SeccompAction::Errno(0),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_one_call_is_answered_and_all_others_are_made() {
        // Of a descriptor that is not there: made, either fails.
        let ask = |request: u64| {
            let script = format!(
                "import ctypes; print(ctypes.CDLL(None).ioctl(-1, ctypes.c_ulong({request}), 0))"
            );
            let mut command = Command::new("python3");
            command
                .arg("-c")
                .arg(script)
                .stdout(std::process::Stdio::piped());
            let output = spawn(&mut command, &filter().unwrap())
                .unwrap()
                .wait_with_output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(ask(SET_XCRS), "0\n");
        assert_eq!(ask(SET_XCRS - 1), "-1\n");
    }
}
