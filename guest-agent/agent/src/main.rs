//! The guest agent: PID 1 of a sandbox, and its only ear and mouth.
//!
//! Without arguments and as PID 1 it sets the guest up ([`boot`]) and connects to the host over
//! vsock. As `hatchery-agent --fd N` it serves the same protocol on the stream socket it inherited
//! as descriptor N, without touching the machine, so that everything above the boot is tested on
//! the host.

#![no_std]
#![no_main]

mod agent;
mod boot;
mod card;
mod cgroups;
mod clone_hook;
mod connections;
mod drains;
mod entry;
mod failure;
mod files;
mod follow;
mod identity;
mod launch;
mod link;
mod path;
mod ports;
mod process_list;
mod procs;
mod refusals;
mod sys;
mod sysinfo;
mod tasks;
mod tokens;
mod users;
mod waiting;
mod walk;

use agent::Agent;
use link::HostLink;
use sys::event::monotonic_ns;
use sys::{Fd, spawn, system};

/// The program, as called by `_start`. Never returns: PID 1 must not end.
pub(crate) extern "C" fn run_program(stack: *const usize) -> ! {
    let start_ns = monotonic_ns();
    let (args, agent) = sys::runtime::begin(stack);
    if system::pid() == 1 {
        // What the kernel's command line adds to the arguments is not for us.
        boot::run(agent, start_ns);
    }
    match (args.get(1), args.get(2).and_then(number)) {
        (Some(b"--fd"), Some(fd)) => serve(agent, fd, start_ns),
        (Some(b"--version"), _) => {
            let version = concat!("hatchery-agent ", env!("CARGO_PKG_VERSION"), "\n");
            let _ = sys::write_all(&Fd::inherited(1), version.as_bytes());
            spawn::exit(0)
        }
        _ => {
            let usage =
                b"usage: hatchery-agent --fd N | --version; without arguments only as PID 1\n";
            let _ = sys::write_all(&Fd::inherited(2), usage);
            spawn::exit(2)
        }
    }
}

/// Serves an inherited socket.
fn serve(agent: &mut Agent, fd: i32, start_ns: u64) -> ! {
    let socket = Fd::inherited(fd);
    let ready =
        sys::file::set_nonblocking(&socket).and_then(|()| sys::file::close_others_on_exec());
    system::umask(0o022);
    system::adopt_orphans();
    agent.tasks.identity.leave_machine_alone();
    let status = match ready.and_then(|()| agent.run(HostLink::given(socket, start_ns))) {
        Ok(()) => 0,
        Err(e) => {
            system::log(format_args!("cannot serve descriptor {fd}: errno {}", e.0));
            1
        }
    };
    spawn::exit(status)
}

fn number(digits: &[u8]) -> Option<i32> {
    core::str::from_utf8(digits)
        .ok()?
        .parse()
        .ok()
        .filter(|&n| n >= 3)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    system::log(format_args!("{info}"));
    spawn::exit(101)
}
