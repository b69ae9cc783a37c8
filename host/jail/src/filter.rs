//! System call filters: a list of what a process may call; anything else ends the process.
//!
//! The program is ours because each VM process pays for it once, and much: the kernel tries it for
//! every system call there is to know which need no look at arguments, and compiles it to machine
//! code. As a search tree it is a third as long as a list of rules, and the way to an answer is
//! seven steps.

use crate::error::JailError;
use seccompiler::{apply_filter_all_threads, sock_filter};
use std::collections::BTreeMap;

// linux/bpf_common.h, linux/seccomp.h, linux/audit.h
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ARCH_X86_64: u32 = 0xc000_003e;

// struct seccomp_data: number, architecture, instruction pointer, six arguments of 64 bits.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
const ARGUMENT_COUNT: u8 = 6;

/// Calls that are compared one after the other at the end of a search.
const LEAF: usize = 3;
/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
const MAX_LENGTH: usize = 4096;

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
    program: Vec<sock_filter>,
}

impl Filter {
    /// Compiles the list of what a process may call.
    ///
    /// # Errors
    /// [`JailError::Unfit`] for a list with a call twice, a number or an argument that there is
    /// not, or more than a program can hold.
    pub fn new(allowed: &[Allowed]) -> Result<Self, JailError> {
        let mut calls = BTreeMap::new();
        for (call, when) in allowed {
            let number = u32::try_from(*call);
            let number = number.map_err(|_| JailError::Unfit(format!("call {call}")))?;
            if calls.insert(number, *when).is_some() {
                return Err(JailError::Unfit(format!("call {call} twice")));
            }
        }
        let calls: Vec<_> = calls.into_iter().collect();
        let mut program = vec![
            load(ARCH),
            jump(JUMP_EQUAL, ARCH_X86_64, 1, 0)?,
            answer(KILL_PROCESS),
            load(NUMBER),
        ];
        program.extend(search(&calls)?);
        match program.len() {
            ..=MAX_LENGTH => Ok(Self { program }),
            length => Err(JailError::Unfit(format!("{length} instructions"))),
        }
    }

    /// Applies it to all threads of the process, for ever, and to those that they start. The
    /// process must have given up new privileges.
    ///
    /// # Errors
    /// [`JailError::Filter`].
    pub fn apply(&self) -> Result<(), JailError> {
        apply_filter_all_threads(&self.program).map_err(JailError::Filter)
    }
}

const fn load(offset: u32) -> sock_filter {
    step(LOAD_WORD, offset)
}

const fn answer(what: u32) -> sock_filter {
    step(RETURN, what)
}

const fn step(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Skips `yes` instructions if the comparison holds, else `no`.
fn jump(code: u16, k: u32, yes: usize, no: usize) -> Result<sock_filter, JailError> {
    let skip = |n: usize| {
        let unfit = |_| JailError::Unfit(format!("a jump over {n} instructions"));
        u8::try_from(n).map_err(unfit)
    };
    let (jt, jf) = (skip(yes)?, skip(no)?);
    Ok(sock_filter { code, jt, jf, k })
}

/// Answers for a number that has been loaded. `calls` rise.
fn search(calls: &[(u32, When)]) -> Result<Vec<sock_filter>, JailError> {
    if calls.len() > LEAF {
        let (low, high) = calls.split_at(calls.len() / 2);
        let first = high.first().map_or(u32::MAX, |(number, _)| *number);
        let (low, high) = (search(low)?, search(high)?);
        let head = jump(JUMP_AT_LEAST, first, low.len(), 0)?;
        return Ok([vec![head], low, high].concat());
    }
    let mut steps = Vec::new();
    for (number, when) in calls {
        let check = check(*when)?;
        steps.push(jump(JUMP_EQUAL, *number, 0, check.len())?);
        steps.extend(check);
    }
    steps.push(answer(KILL_PROCESS));
    Ok(steps)
}

/// Answers for a call whose number is right.
fn check(when: When) -> Result<Vec<sock_filter>, JailError> {
    let half = |argument: u8, high: u32| match argument {
        ..ARGUMENT_COUNT => Ok(load(ARGUMENTS + 8 * u32::from(argument) + 4 * high)),
        _ => Err(JailError::Unfit(format!("argument {argument}"))),
    };
    let mut steps = match when {
        When::Always => return Ok(vec![answer(ALLOW)]),
        When::OneOf(argument, values) => {
            let mut steps = vec![half(argument, 0)?];
            for (number, value) in values.iter().enumerate() {
                // Over the other values, and the end that forbids.
                steps.push(jump(JUMP_EQUAL, *value, values.len() - number, 0)?);
            }
            steps
        }
        When::Without(argument, bits) => {
            let (low, high) = (bits & u64::from(u32::MAX), bits >> 32);
            let word = |bits: u64| u32::try_from(bits).unwrap_or(u32::MAX);
            vec![
                half(argument, 1)?,
                jump(JUMP_ANY_BIT, word(high), 2, 0)?,
                half(argument, 0)?,
                jump(JUMP_ANY_BIT, word(low), 0, 1)?,
            ]
        }
    };
    steps.extend([answer(KILL_PROCESS), answer(ALLOW)]);
    Ok(steps)
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// The filter kills the process, so the child that tries it is this test program again.
    const CHILD: &str = "JAIL_TEST_CHILD";

    const SOME: &[u32] = &[5, 7, 0xffff_ffff];

    /// What the kernel would do with a call, by the program.
    fn run(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let words = |value: u64| {
            [value & u64::from(u32::MAX), value >> 32].map(|w| u32::try_from(w).unwrap())
        };
        let data: Vec<u32> = [number, arch, 0, 0]
            .into_iter()
            .chain(arguments.into_iter().flat_map(words))
            .collect();
        let (mut at, mut loaded) = (0, 0);
        for steps in 1.. {
            let step = &program[at];
            let holds = match step.code {
                LOAD_WORD => {
                    loaded = data[step.k as usize / 4];
                    at += 1;
                    continue;
                }
                RETURN => return (step.k, steps),
                JUMP_EQUAL => loaded == step.k,
                JUMP_AT_LEAST => loaded >= step.k,
                JUMP_ANY_BIT => loaded & step.k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += 1 + usize::from(if holds { step.jt } else { step.jf });
        }
        unreachable!()
    }

    fn allowed(when: When, arguments: [u64; 6]) -> bool {
        match when {
            When::Always => true,
            When::OneOf(n, values) => values
                .iter()
                .any(|v| u64::from(*v) == arguments[usize::from(n)] & 0xffff_ffff),
            When::Without(n, bits) => arguments[usize::from(n)] & bits == 0,
        }
    }

    fn when() -> impl Strategy<Value = When> {
        prop_oneof![
            Just(When::Always),
            (0..6_u8).prop_map(|n| When::OneOf(n, SOME)),
            (0..6_u8).prop_map(|n| When::OneOf(n, &[])),
            (0..6_u8, any::<u64>()).prop_map(|(n, bits)| When::Without(n, bits)),
        ]
    }

    fn argument() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            Just(0),
            Just(5),
            Just(5 << 32 | 7),
            Just(u64::MAX)
        ]
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_list_says(
            calls in proptest::collection::btree_map(0..40_i64, when(), 0..40),
            number in 0..48_u32,
            arguments in proptest::array::uniform6(argument()),
        ) {
            let list: Vec<Allowed> = calls.iter().map(|(n, w)| (*n, *w)).collect();
            let program = Filter::new(&list).unwrap().program;
            let wanted = calls.get(&i64::from(number)).is_some_and(|w| allowed(*w, arguments));
            let (said, steps) = run(&program, ARCH_X86_64, number, arguments);
            prop_assert_eq!(said, if wanted { ALLOW } else { KILL_PROCESS });
            prop_assert!(steps < 24, "{} steps", steps);
            for (arch, number) in [(0x4000_0003, number), (ARCH_X86_64, number | 0x4000_0000)] {
                prop_assert_eq!(run(&program, arch, number, arguments).0, KILL_PROCESS);
            }
        }
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let twice = [(1, When::Always), (1, When::Always)];
        for list in [
            &twice[..],
            &[(-1, When::Always)],
            &[(1, When::Without(6, 1))],
            &[(1, When::OneOf(6, SOME))],
        ] {
            let error = Filter::new(list).unwrap_err();
            assert!(matches!(error, JailError::Unfit(_)), "{error:?}");
        }
        const MANY: &[u32] = &[0; 300];
        Filter::new(&[(1, When::OneOf(0, MANY))]).unwrap_err();
    }

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
