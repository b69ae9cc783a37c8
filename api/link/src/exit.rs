//! How a process ended, in E2B's words.

use wire::{ProcessEnd, ProcessExit};

/// Exit code, whether it exited by itself, and the words: the Go strings of E2B's agent
/// (api/PROTOCOL.md §7.8).
#[must_use]
pub fn exit_status(exit: ProcessExit) -> (i32, bool, String) {
    match exit {
        ProcessExit::Code(code) => (i32::from(code), true, format!("exit status {code}")),
        ProcessExit::Signal(signal) => (-1, false, format!("signal: {}", signal_name(signal))),
    }
}

/// How a command ended, with the reason where the guest's kernel knows one that the status hides.
#[must_use]
pub fn end_status(end: ProcessEnd) -> String {
    let status = exit_status(end.exit).2;
    if end.out_of_memory {
        format!("{status}: out of memory, the guest's kernel killed a process of this command")
    } else {
        status
    }
}

/// The names that Go gives Linux signals.
fn signal_name(signal: u8) -> String {
    const NAMES: [&str; 32] = [
        "",
        "hangup",
        "interrupt",
        "quit",
        "illegal instruction",
        "trace/breakpoint trap",
        "aborted",
        "bus error",
        "floating point exception",
        "killed",
        "user defined signal 1",
        "segmentation fault",
        "user defined signal 2",
        "broken pipe",
        "alarm clock",
        "terminated",
        "stack fault",
        "child exited",
        "continued",
        "stopped (signal)",
        "stopped",
        "stopped (tty input)",
        "stopped (tty output)",
        "urgent I/O condition",
        "CPU time limit exceeded",
        "file size limit exceeded",
        "virtual timer expired",
        "profiling timer expired",
        "window changed",
        "I/O possible",
        "power failure",
        "bad system call",
    ];
    match NAMES.get(usize::from(signal)) {
        Some(name) if signal > 0 => (*name).to_owned(),
        _ => format!("signal {signal}"),
    }
}
