//! `hatchery-pager`: serves memory that is not resident to the machines of one service.
//!
//! Standard input is the service's socket; when it closes, the program ends, and with it all
//! machines whose memory was not yet whole.

use rustix::process::{Resource, Rlimit, setrlimit};
use snapshot_memory::pager;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = seal() {
        eprintln!("hatchery-pager: it could not be confined: {error}");
        return ExitCode::FAILURE;
    }
    let tell = |machine: &str, error: &pager::PagerError| {
        eprintln!("{machine}: {}", chain(error));
    };
    match pager::serve(std::io::stdin(), tell) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hatchery-pager: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Nothing of the parent's by accident, no new privileges, no core dump with guests' memory in it.
#[expect(unsafe_code, reason = "closing what the parent left open by accident")]
fn seal() -> std::io::Result<()> {
    // SAFETY: this is the start of the program; it has opened nothing.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    rustix::thread::set_no_new_privs(true)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(setrlimit(Resource::Core, none)?)
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
