//! `hatchery-vmm`: one process, one sandbox.
//!
//! Without arguments it serves one machine over its control socket (see the `control` crate);
//! `probe` tells facts about this host; `run` boots a machine by hand, for developers.

mod assemble;
mod begin;
mod confine;
mod ending;
mod initrd;
mod lazy;
mod log;
mod probe;
mod reset;
mod run;
mod save;
mod stats;
mod supervise;
mod trace;
mod wiring;

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

const USAGE: &str = "\
Usage:
  hatchery-vmm                 serve one machine; standard input is the control socket
  hatchery-vmm probe           facts about this host's KVM, as JSON
  hatchery-vmm run OPTIONS     boot a machine by hand
    --kernel FILE --agent FILE [--disk FILE]... [--vcpus N] [--memory MIB]
    [--cmdline TEXT] [--timeout-s N]
  hatchery-vmm version";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        [] => serve(),
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
fn serve() -> anyhow::Result<()> {
    // SAFETY: this is the start of the program; it has opened nothing and started no thread.
    unsafe { jail::close_inherited(3) }?;
    let control = std::io::stdin().as_fd().try_clone_to_owned()?;
    // Nobody who reads log lines slowly may stop a guest.
    let _ = rustix::io::ioctl_fionbio(std::io::stderr(), true);
    Ok(supervise::serve(control, false)?)
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
