//! `hatchery-vmm`: one process, one sandbox.
//!
//! Without arguments it serves one machine over its control socket (see the `control` crate);
//! `probe` tells facts about this host; `run` boots a machine by hand, for developers.

mod assemble;
mod boot_source;
mod confine;
mod demand_paging;
mod device_list;
mod ending;
mod error;
mod initrd;
mod ioctls;
mod log;
mod memory_copy;
mod pages;
mod parts;
mod prefault;
mod prepared;
mod probe;
mod reset;
mod ring_check;
mod run;
mod save;
mod serve;
mod state_file;
mod stats;
mod supervise;
mod trace;
mod wiring;

use control::JailMode;
use prepared::PreparedHost;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

const USAGE: &str = "\
Usage:
  hatchery-vmm                 serve one machine; standard input is the control socket
  hatchery-vmm zygote [MODE]   make such processes by forking; standard input is the service's socket;
                               MODE: required (default), degraded: also where walls are missing
  hatchery-vmm probe           facts about this host's KVM, as JSON
  hatchery-vmm run OPTIONS     boot a machine by hand
    --kernel FILE --agent FILE [--disk FILE]... [--vcpus N] [--memory MIB]
    [--cmdline TEXT] [--timeout-s N]
  hatchery-vmm version";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        [] => alone(),
        [control::ZYGOTE_ARGUMENT] => zygote(JailMode::Required),
        [control::ZYGOTE_ARGUMENT, mode] => {
            mode.parse().map_err(anyhow::Error::msg).and_then(zygote)
        }
        ["run", ref options @ ..] => run::run(options),
        ["probe"] | ["probe", "--json"] => print(&format!("{:#}", probe::facts())),
        ["version"] => print(concat!("hatchery-vmm ", env!("CARGO_PKG_VERSION"))),
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hatchery-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(unsafe_code, reason = "closing what the parent left open by accident")]
fn close_inherited() -> anyhow::Result<()> {
    // SAFETY: this is the start of the program; it has opened nothing and started no thread.
    Ok(unsafe { jail::close_inherited(3) }?)
}

/// A VM process that was started by itself.
fn alone() -> anyhow::Result<()> {
    close_inherited()?;
    one_heap();
    serve_stdin(None)
}

fn zygote(mode: JailMode) -> anyhow::Result<()> {
    close_inherited()?;
    one_heap();
    match prepared::zygote(mode)? {
        Some(prepared) => serve_stdin(Some(prepared)),
        None => Ok(()),
    }
}

fn serve_stdin(prepared: Option<PreparedHost>) -> anyhow::Result<()> {
    let control = std::io::stdin().as_fd().try_clone_to_owned()?;
    // Nobody who reads log lines slowly may stop a guest.
    let _ = rustix::io::ioctl_fionbio(std::io::stderr(), true);
    Ok(serve::serve(control, prepared, false)?)
}

/// All threads allocate from one heap: they hardly do, and each heap more is 128 MiB of addresses
/// and some pages of memory.
#[expect(unsafe_code, reason = "the allocator is the C library's")]
fn one_heap() {
    // SAFETY: sets a number of the allocator's.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
