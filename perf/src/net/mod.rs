//! What a guest's network costs: bytes down and up and round trips over TCP between a program of
//! the guest and one of this machine, by several engines in turn. Ours through `hatchery-net`,
//! QEMU's through its user network, Firecracker's through a TAP.
//!
//! Every instruction counts where instructions are counted: the guest's, the VM process's, those of
//! whatever stands behind it, and those of the program at the far end, which is the same for all.

mod far_end;

use crate::agent::{AgentClient, RunOutcome};
use crate::counters::EventCounters;
use crate::engine::GuestSpec;
use crate::engine::hatchery::RunningVm;
use crate::engine::net_process::NetProcess;
use crate::engine::peers::PeerArgs;
use crate::output::say;
use crate::record::{RecordPrinter, Sample};
use crate::{host, processes};
use anyhow::{Context, Result, ensure};
use far_end::{FarEnd, NetWork, PROGRAM};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SCENARIO: &str = "net";
const ROUND_TRIPS: u64 = 500;
/// Between two looks at a process's memory.
const LOOK: Duration = Duration::from_millis(5);

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

/// A guest that is measured.
struct MeasuredGuest<'a, S> {
    engine: &'static str,
    agent: &'a mut AgentClient<S>,
    /// Its VM process, and the process behind its network card if there is one.
    processes: Vec<u32>,
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
            let mut measured = MeasuredGuest {
                engine: name,
                processes: vec![machine.pid()],
                agent: &mut machine.agent,
            };
            measured.samples(args, &far, &mut printer)?;
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
    let engine = "hatchery";
    eprintln!("net: {engine} boots");
    let mut vm = RunningVm::boot(guest)?;
    // The first brings the program into the host's caches.
    drop(NetProcess::start(guest, vm.wire(), far.address())?);
    let network = NetProcess::start(guest, vm.wire(), far.address())?;
    let mut measured = MeasuredGuest {
        engine,
        processes: vec![vm.pid(), network.pid()],
        agent: &mut vm.agent,
    };
    measured.samples(args, far, printer)?;
    let busy_kib = measured.peak_kib(network.pid(), args.mib, far)?;
    let values = [
        ("ready_time", network.ready_ns),
        ("busy_kib", busy_kib),
        ("private_kib", host::anonymous_kib(network.pid())?),
    ];
    printer.keep("net-process", engine, &values);
    vm.stop()
}

impl<S: Read + Write> MeasuredGuest<'_, S> {
    fn samples(&mut self, args: &NetArgs, far: &FarEnd, printer: &mut RecordPrinter) -> Result<()> {
        for number in 0..=args.samples {
            let sample = self.sample(args.mib, far);
            // The first brings the guest's program into its caches.
            if number > 0 {
                printer.sample(SCENARIO, self.engine, sample);
            } else {
                sample?;
            }
            eprintln!("net: {}: {number} of {}", self.engine, args.samples);
        }
        let counted = self.counts(args.mib, far);
        printer.sample("net-counts", self.engine, counted);
        Ok(())
    }

    fn sample(&mut self, mib: u64, far: &FarEnd) -> Result<Sample> {
        let bytes = mib << 20;
        let (download, of_download) = self.timed(NetWork::Download(bytes), far)?;
        let (upload, of_upload) = self.timed(NetWork::Upload(bytes), far)?;
        let (trips, _) = self.timed(NetWork::RoundTrips(ROUND_TRIPS), far)?;
        let mut sample = Sample::new(
            "exit status 0, thrice",
            &[
                ("download_mib_time", download / mib),
                ("upload_mib_time", upload / mib),
                ("round_trip_time", trips / ROUND_TRIPS),
            ],
        );
        // What of it the engine's processes have run, the guest and its start of a program too.
        for (names, ran) in [
            (
                ["download_mib_vm_time", "download_mib_net_time"],
                of_download,
            ),
            (["upload_mib_vm_time", "upload_mib_net_time"], of_upload),
        ] {
            let shares: Vec<_> = names
                .into_iter()
                .zip(ran.iter().map(|ns| ns / mib))
                .collect();
            sample.add(&shares);
        }
        Ok(sample)
    }

    fn timed(&mut self, work: NetWork, far: &FarEnd) -> Result<(u64, Vec<u64>)> {
        let ran = |pids: &[u32]| pids.iter().map(|pid| processes::ran_ns(*pid)).collect();
        let before: Vec<u64> = ran(&self.processes);
        let time = done(work, self.agent, far)?;
        let after: Vec<u64> = ran(&self.processes);
        let ran = after
            .iter()
            .zip(before)
            .map(|(after, before)| after - before);
        Ok((time, ran.collect()))
    }

    /// The most memory that is no file's that a process has while bytes go each way.
    fn peak_kib(&mut self, pid: u32, mib: u64, far: &FarEnd) -> Result<u64> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut peak = 0;
                while !over.load(Ordering::Relaxed) {
                    peak = peak.max(host::anonymous_kib(pid).unwrap_or(0));
                    std::thread::sleep(LOOK);
                }
                peak
            });
            let works = [NetWork::Download(mib << 20), NetWork::Upload(mib << 20)];
            let moved = works
                .into_iter()
                .try_for_each(|work| done(work, self.agent, far).map(drop));
            over.store(true, Ordering::Relaxed);
            let peak = watch.join().ok().context("The watch panicked")?;
            moved.map(|()| peak)
        })
    }

    /// What the engine's processes ask of the host's kernel for each MiB.
    fn counts(&mut self, mib: u64, far: &FarEnd) -> Result<Sample> {
        let counters = EventCounters::arm()?;
        let mut values = Vec::new();
        for (work, exits, calls) in [
            (
                NetWork::Download(mib << 20),
                "download_exits",
                "download_syscalls",
            ),
            (
                NetWork::Upload(mib << 20),
                "upload_exits",
                "upload_syscalls",
            ),
        ] {
            let pids = self.processes.clone();
            let (_, counts) = counters.during(&pids, || done(work, self.agent, far))?;
            values.extend([
                (exits, counts.vm_exits / mib),
                (calls, counts.syscalls / mib),
            ]);
        }
        Ok(Sample::new("exit status 0, twice", &values))
    }
}

/// Has the guest do it; how long the far end says that it took.
fn done<S: Read + Write>(work: NetWork, agent: &mut AgentClient<S>, far: &FarEnd) -> Result<u64> {
    let (address, asked) = (far.address(), work.to_string());
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut argv = vec!["python3", "-c", PROGRAM, &ip, &port];
    argv.extend(asked.split(' '));
    let argv: Vec<&[u8]> = argv.into_iter().map(str::as_bytes).collect();
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
