//! System call filters: a list of what a process may call; anything else ends the process.

use crate::JailError;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// When a system call is allowed.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Whatever its arguments.
    Always,
    /// When argument `.0` (from 0) is one of `.1`, 32 bits.
    OneOf(u8, &'static [u32]),
    /// When argument `.0` (from 0) has none of the bits `.1`.
    Without(u8, u64),
}

/// One allowed system call, by number.
pub type Allowed = (i64, When);

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Filter {
    program: BpfProgram,
}

impl Filter {
    /// Compiles the list of what a process may call.
    ///
    /// # Errors
    /// [`JailError::Filter`] for a list that seccomp cannot hold.
    pub fn new(allowed: &[Allowed]) -> Result<Self, JailError> {
        let compile = || -> Result<BpfProgram, seccompiler::BackendError> {
            let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
            for (call, when) in allowed {
                rules.entry(*call).or_default().extend(conditions(*when)?);
            }
            SeccompFilter::new(
                rules,
                SeccompAction::KillProcess,
                SeccompAction::Allow,
                TargetArch::x86_64,
            )?
            .try_into()
        };
        let program = compile().map_err(|e| JailError::Filter(seccompiler::Error::Backend(e)))?;
        Ok(Self { program })
    }

    /// Applies it to all threads of the process, for ever, and to those that they start. The process
    /// must have given up new privileges.
    ///
    /// # Errors
    /// [`JailError::Filter`].
    pub fn apply(&self) -> Result<(), JailError> {
        apply_filter_all_threads(&self.program).map_err(JailError::Filter)
    }
}

/// Rules of which one must hold; none means always.
fn conditions(when: When) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |argument, length, operator, value| {
        let condition = SeccompCondition::new(argument, length, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    match when {
        When::Always => Ok(Vec::new()),
        When::OneOf(argument, values) => values
            .iter()
            .map(|v| {
                rule(
                    argument,
                    SeccompCmpArgLen::Dword,
                    SeccompCmpOp::Eq,
                    u64::from(*v),
                )
            })
            .collect(),
        When::Without(argument, bits) => Ok(vec![rule(
            argument,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(bits),
            0,
        )?]),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// The filter kills the process, so the child that tries it is this test program again.
    const CHILD: &str = "JAIL_TEST_CHILD";

    #[test]
    fn a_forbidden_call_ends_the_process() {
        let Ok(attempt) = std::env::var(CHILD) else {
            let run = |attempt: &str| {
                let name = "filter::test::a_forbidden_call_ends_the_process";
                let mut child = Command::new(std::env::current_exe().unwrap());
                child
                    .args([name, "--exact", "--test-threads=1"])
                    .env(CHILD, attempt);
                child.output().unwrap().status
            };
            assert_eq!(run("getppid").signal(), Some(libc::SIGSYS));
            assert_eq!(run("other-file").signal(), Some(libc::SIGSYS));
            assert!(run("allowed").success());
            return;
        };
        let always = [
            libc::SYS_getuid,
            libc::SYS_exit_group,
            libc::SYS_futex,
            libc::SYS_munmap,
            libc::SYS_sigaltstack,
            libc::SYS_rt_sigprocmask,
            libc::SYS_madvise,
            libc::SYS_exit,
            libc::SYS_sched_getaffinity,
            libc::SYS_mmap,
            libc::SYS_mprotect,
            libc::SYS_brk,
            libc::SYS_close,
        ];
        let mut allowed: Vec<Allowed> = always.map(|c| (c, When::Always)).to_vec();
        allowed.push((libc::SYS_write, When::OneOf(0, &[1, 2])));
        let file = std::fs::File::create("/dev/null").unwrap();
        rustix::thread::set_no_new_privs(true).unwrap();
        Filter::new(&allowed).unwrap().apply().unwrap();
        let _ = rustix::process::getuid();
        match attempt.as_str() {
            "getppid" => drop(rustix::process::getppid()),
            "other-file" => drop(rustix::io::write(&file, b"x")),
            _ => {}
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the test harness would call more"
        )]
        std::process::exit(0);
    }
}
