//! What a guest's network costs: bytes down and up and round trips over TCP between a program of
//! the guest and one of this machine, by several engines in turn. Ours through `hatchery-net`,
//! QEMU's through its user network, Firecracker's through a TAP.
//!
//! Every instruction counts where instructions are counted: the guest's, the VM process's, those of
//! whatever stands behind it, and those of the program at the far end, which is the same for all.

mod far_end;

use crate::agent::{AgentClient, RunOutcome};
use crate::engine::GuestSpec;
use crate::engine::hatchery::RunningVm;
use crate::engine::net_process::NetProcess;
use crate::engine::peers::PeerArgs;
use crate::host;
use crate::output::say;
use crate::record::{RecordPrinter, Sample};
use anyhow::{Context, Result, ensure};
use far_end::{FarEnd, NetWork, PROGRAM};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const SCENARIO: &str = "net";
const ROUND_TRIPS: u64 = 500;

#[derive(clap::Args)]
pub(crate) struct NetArgs {
    /// Folder with hatchery-vmm, hatchery-net, hatchery-agent, vmlinux and base.ext4; for peers
    /// also initrd.cpio, with the agent as /init
    #[arg(long)]
    dist: PathBuf,
    /// Samples of each engine, after one that is not counted
    #[arg(long, default_value_t = 3)]
    samples: u32,
    /// MiB each way in a sample
    #[arg(long, default_value_t = 16)]
    mib: u64,
    /// The clock counts instructions (the host runs under QEMU's -icount)
    #[arg(long)]
    icount: bool,
    #[command(flatten)]
    peers: PeerArgs,
}

pub(crate) fn run(args: &NetArgs) -> Result<ExitCode> {
    let guest = GuestSpec {
        dist: args.dist.clone(),
        vcpus: 1,
        memory_mib: 512,
        network: true,
    };
    let far = FarEnd::listen()?;
    let mut printer = RecordPrinter::new(args.icount);
    if let Err(error) = ours(args, &guest, &far, &mut printer) {
        printer.sample(SCENARIO, "hatchery", Err(error));
    }
    for peer in args.peers.engines() {
        let name = peer.name();
        eprintln!("net: {name} boots");
        let place = tempfile::tempdir()?;
        let done = peer.boot(&guest, place.path()).and_then(|mut machine| {
            samples(args, name, &mut machine.agent, &far, &mut printer)?;
            machine.end()
        });
        if let Err(error) = done {
            printer.sample(SCENARIO, name, Err(error));
        }
    }
    say("net: done");
    Ok(ExitCode::SUCCESS)
}

fn ours(
    args: &NetArgs,
    guest: &GuestSpec,
    far: &FarEnd,
    printer: &mut RecordPrinter,
) -> Result<()> {
    eprintln!("net: hatchery boots");
    let mut vm = RunningVm::boot(guest)?;
    // The first brings the program into the host's caches.
    drop(NetProcess::start(guest, vm.wire(), far.address())?);
    let network = NetProcess::start(guest, vm.wire(), far.address())?;
    samples(args, "hatchery", &mut vm.agent, far, printer)?;
    let values = [
        ("ready_time", network.ready_ns),
        ("private_kib", host::anonymous_kib(network.pid())?),
    ];
    printer.keep("net-process", "hatchery", &values);
    vm.stop()
}

fn samples<S: Read + Write>(
    args: &NetArgs,
    name: &str,
    agent: &mut AgentClient<S>,
    far: &FarEnd,
    printer: &mut RecordPrinter,
) -> Result<()> {
    for number in 0..=args.samples {
        let sample = sample(args.mib, agent, far);
        // The first brings the guest's program into its caches.
        if number > 0 {
            printer.sample(SCENARIO, name, sample);
        } else {
            sample?;
        }
        eprintln!("net: {name}: {number} of {}", args.samples);
    }
    Ok(())
}

fn sample<S: Read + Write>(mib: u64, agent: &mut AgentClient<S>, far: &FarEnd) -> Result<Sample> {
    let bytes = mib << 20;
    let mut time = |work| done(work, agent, far);
    let values = [
        ("download_mib_time", time(NetWork::Download(bytes))? / mib),
        ("upload_mib_time", time(NetWork::Upload(bytes))? / mib),
        (
            "round_trip_time",
            time(NetWork::RoundTrips(ROUND_TRIPS))? / ROUND_TRIPS,
        ),
    ];
    Ok(Sample::new("exit status 0, thrice", &values))
}

/// Has the guest do it; how long the far end says that it took.
fn done<S: Read + Write>(work: NetWork, agent: &mut AgentClient<S>, far: &FarEnd) -> Result<u64> {
    let address = far.address();
    let words = format!("python3\n-c\n{}\n{}\n{work}", address.ip(), address.port());
    let words = words.replace(' ', "\n");
    let mut argv: Vec<&[u8]> = words.split('\n').map(str::as_bytes).collect();
    argv.insert(2, PROGRAM.as_bytes());
    std::thread::scope(|scope| {
        let served = scope.spawn(|| far.serve(work));
        let ran = agent.run(&argv)?;
        let right = RunOutcome {
            bytes: 0,
            status: 0,
        };
        let time = served.join().ok().context("The far end panicked")?;
        ensure!(ran == right, "\"{work}\" in the guest: {ran:?}; {time:?}");
        time
    })
}
