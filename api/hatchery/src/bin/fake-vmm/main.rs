//! A stand-in for `hatchery-vmm` that needs no virtualization: it speaks the control protocol, and
//! instead of a machine it runs the guest agent as an ordinary process with the link as a
//! descriptor (`hatchery-agent --fd N`). For tests of the service only: it isolates nothing.
//!
//! The server gives a VM program no arguments and no environment; tests choose a misbehaviour by
//! the name under which this program is started: `fake-vmm-<mode>`, a link or a copy.
//!
//! | mode | what it does |
//! |---|---|
//! | (none) | runs the agent until it ends or is stopped |
//! | `silent` | never answers Configure |
//! | `refuse` | answers Configure with Failed |
//! | `panic` | reports a guest panic as soon as it is started |
//! | `unlucky` | the same if its sandbox's id ends with a letter up to `i`: about one of four |
//! | `noagent` | starts, and the agent never says Hello |
//! | `stubborn` | runs the agent and ignores Stop |
//! | `nosave` | cannot be saved |
//! | `noreset` | cannot be reset |
//! | `resetdies` | this program is killed when it is to be reset |
//! | `nocopy` | refuses to begin at a snapshot |
//! | `crash` | begun at a snapshot, it reports a guest panic as soon as it is started |
//! | `frail` | begun at a snapshot, it ends 50 ms after it is built unless it is started |
//! | `mute` | a new identity is never acknowledged |
//! | `wrong` | another identity is acknowledged than was given |
//! | `agentdies` | the agent is killed when it is to take an identity |
//! | `vanish` | this program is killed when the agent is to take an identity |
//! | `slowsave` | takes a second to be saved |
//! | `heavy` | has written 2 MiB of memory whenever it is saved |
//! | `vast` | says that it has written 4 PiB |
//! | `savedies` | this program is killed when it has been saved, before it says so |
//! | `open` | its zygote says that a wall is missing |
//! | `single` | it is no zygote: it ends when it is to be one |
//! | `chatty` | says that it failed, again and again, as soon as it is started |
//! | `told` | what the file `PROGRAM.mode` says, with PROGRAM the name that it is started by |
//!
//! Saved, its agent is stopped (`SIGSTOP`) until the next Start. Begun at a snapshot, it runs a
//! fresh agent; processes and connections of the saved one are not there. Reset, it gets a fresh
//! agent, too.

mod relay;
mod saved;

use control::{
    BootSource, Configured, Descriptors, DeviceReset, DeviceSpec, Event, ExitCause, ExitReport,
    FdName, JailMode, MissingWall, Request, Reset, ResetSpec, Role, SaveSpec, Saved, SavedLink,
    VmSpec, VmStats, Wall,
};
use relay::RelayLie;
use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};
use saved::FakeStart;
use std::error::Error;
use std::io::{IsTerminal, stdin};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

enum VmNews {
    Request(Box<Request>, Vec<OwnedFd>),
    ServiceGone,
    AgentEnded(Pid, String),
    Over,
}

struct FakeMachine {
    spec: VmSpec,
    fds: Vec<OwnedFd>,
    start: FakeStart,
    agent: Option<Pid>,
}

fn main() -> ExitCode {
    if stdin().is_terminal() {
        eprintln!("fake-vmm is started by the server, with a control socket as standard input");
        return ExitCode::FAILURE;
    }
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let named = name.rsplit_once("fake-vmm-").map_or("", |(_, mode)| mode);
    if args.next().as_deref() == Some(control::ZYGOTE_ARGUMENT) {
        if named == "single" {
            return ExitCode::SUCCESS;
        }
        let jail = args.next().unwrap_or_default();
        match fork_on_demand(jail.parse().unwrap_or_default(), missing(named)) {
            Ok(true) => {}
            Ok(false) => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("fake-vmm: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let told = match named {
        "told" => std::fs::read_to_string(format!("{name}.mode")).unwrap_or_default(),
        other => other.to_owned(),
    };
    match run(told.trim()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the stand-in says of its walls: that all stand, or for the mode `open`, that one does not.
fn missing(mode: &str) -> Vec<MissingWall> {
    let wall = MissingWall {
        wall: Wall::Landlock,
        why: "this is a stand-in".into(),
        remedy: "use the real one".into(),
    };
    (mode == "open").then_some(wall).into_iter().collect()
}

/// Whether this is a VM process that came of it.
fn fork_on_demand(mode: JailMode, missing: Vec<MissingWall>) -> Result<bool, Box<dyn Error>> {
    let socket = stdin().as_fd().try_clone_to_owned()?;
    match control::serve_zygote(socket, mode, missing)? {
        Role::Ended => Ok(false),
        Role::Vm { control, stderr } => {
            rustix::stdio::dup2_stdin(&control)?;
            rustix::stdio::dup2_stderr(&stderr)?;
            Ok(true)
        }
    }
}

fn run(mode: &str) -> Result<(), Box<dyn Error>> {
    let (sender, news) = channel();
    let control = stdin().as_fd().try_clone_to_owned()?;
    std::thread::spawn({
        let sender = sender.clone();
        move || listen(&control, &sender)
    });
    let Some(mut machine) = configure(mode, &news)? else {
        return Ok(());
    };
    let cause = serve(mode, &mut machine, &news, &sender)?;
    machine.signal(Signal::KILL);
    let console_tail = format!(
        "fake-vmm: sandbox {} has ended\r\n",
        machine.spec.sandbox_id
    );
    let report = ExitReport {
        cause,
        console_tail: console_tail.into_bytes(),
        stats: VmStats::default(),
    };
    say(&Event::Exited(report))
}

impl FakeMachine {
    /// The agent and everything it started is one process group.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.agent {
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Becomes a machine that has been configured to begin at `to` and has not run.
    fn put_back(&mut self, to: &ResetSpec, fds: &[OwnedFd]) -> Result<(), Box<dyn Error>> {
        let BootSource::Snapshot { base_memory, .. } = self.spec.boot_source else {
            return Err("it booted".into());
        };
        to.check(&self.spec.devices, fds.len())?;
        let all = fds
            .iter()
            .map(OwnedFd::try_clone)
            .collect::<Result<Vec<_>, _>>()?;
        let mut all = Descriptors::from(all);
        let mut keep = |name: FdName| -> Result<FdName, Box<dyn Error>> {
            Ok(all.add(self.fds[usize::from(name)].try_clone()?))
        };
        let base_memory = keep(base_memory)?;
        let mut devices = self.spec.devices.clone();
        for (device, to) in devices.iter_mut().zip(&to.devices) {
            match (device, to) {
                (DeviceSpec::Vsock(vsock), DeviceReset::Vsock(to)) => *vsock = *to,
                (DeviceSpec::Net(net), DeviceReset::Net(to)) => *net = *to,
                (DeviceSpec::Block(disk), DeviceReset::Block { parent }) => {
                    disk.base = keep(disk.base)?;
                    disk.layer = disk.layer.map(&mut keep).transpose()?;
                    disk.parent = *parent;
                }
                _ => {}
            }
        }
        let spec = VmSpec {
            boot_source: BootSource::Snapshot {
                base_memory,
                state: to.state,
                delta_layer: to.delta_layer,
                trial: false,
            },
            devices,
            ..self.spec.clone()
        };
        let all = Vec::from(all);
        spec.check(all.len())?;
        self.start = FakeStart::new(&spec, &all)?;
        self.signal(Signal::KILL);
        (self.spec, self.fds, self.agent) = (spec, all, None);
        Ok(())
    }

    fn is_copy(&self) -> bool {
        matches!(self.spec.boot_source, BootSource::Snapshot { .. })
    }

    /// Whether its guest does as soon as it is started.
    fn panics(&self, mode: &str) -> bool {
        let unlucky = |id: &str| id.ends_with(|c| ('a'..='i').contains(&c));
        match mode {
            "panic" => true,
            "unlucky" => unlucky(&self.spec.sandbox_id),
            "crash" => self.is_copy(),
            _ => false,
        }
    }
}

fn say(event: &Event) -> Result<(), Box<dyn Error>> {
    Ok(control::send(stdin().as_fd(), event, &[])?)
}

fn listen(control: &OwnedFd, news: &Sender<VmNews>) {
    loop {
        let heard = match control::recv::<Request>(control) {
            Ok(Some((request, fds))) => VmNews::Request(Box::new(request), fds),
            Ok(None) => VmNews::ServiceGone,
            Err(error) => {
                eprintln!("fake-vmm: {error}");
                VmNews::ServiceGone
            }
        };
        let last = matches!(heard, VmNews::ServiceGone);
        if news.send(heard).is_err() || last {
            return;
        }
    }
}

fn configure(mode: &str, news: &Receiver<VmNews>) -> Result<Option<FakeMachine>, Box<dyn Error>> {
    let begin = Instant::now();
    let VmNews::Request(request, fds) = news.recv()? else {
        return Ok(None);
    };
    let Request::Configure(spec) = *request else {
        return Err("not configured first".into());
    };
    if mode == "silent" {
        while !matches!(news.recv()?, VmNews::ServiceGone) {}
        return Ok(None);
    }
    let refused = spec.check(fds.len()).err().map(|error| error.to_string());
    let refused = refused.or_else(|| (mode == "refuse").then(|| "asked to refuse".to_owned()));
    if let Some(message) = refused {
        say(&Event::Failed { message })?;
        return Ok(None);
    }
    let start = FakeStart::new(&spec, &fds);
    let is_copy = matches!(spec.boot_source, BootSource::Snapshot { .. });
    let start = match start {
        Ok(_) if mode == "nocopy" && is_copy => Err("asked not to copy".into()),
        other => other,
    };
    let start = match start {
        Ok(start) => start,
        Err(error) => {
            let message = format!("cannot begin: {error}");
            say(&Event::Failed { message })?;
            return Ok(None);
        }
    };
    eprintln!("fake-vmm: {} vCPUs, {} MiB", spec.vcpus, spec.memory_mib);
    let build_ns = u64::try_from(begin.elapsed().as_nanos())?;
    say(&Event::Configured(Configured { build_ns }))?;
    Ok(Some(FakeMachine {
        spec: *spec,
        fds,
        start,
        agent: None,
    }))
}

/// Says what nobody asked, until nobody hears it.
fn chat() -> Box<dyn Error> {
    loop {
        let message = "asked to say so".into();
        if let Err(error) = say(&Event::Failed { message }) {
            return error;
        }
    }
}

/// Until the machine ends; says why.
fn serve(
    mode: &str,
    machine: &mut FakeMachine,
    news: &Receiver<VmNews>,
    sender: &Sender<VmNews>,
) -> Result<ExitCause, Box<dyn Error>> {
    let begin = Instant::now();
    if mode == "frail" && machine.is_copy() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let _ = sender.send(VmNews::Over);
        });
    }
    let mut copied = None;
    loop {
        match news.recv()? {
            VmNews::Over if machine.agent.is_none() => {
                let message = "it was asked to be frail".into();
                return Ok(ExitCause::HostFault { message });
            }
            VmNews::Over => {}
            VmNews::ServiceGone => return Ok(ExitCause::Stopped),
            // One that a reset has ended.
            VmNews::AgentEnded(pid, _) if machine.agent != Some(pid) => {}
            VmNews::AgentEnded(_, how) => {
                eprintln!("fake-vmm: the agent ended: {how}");
                return Ok(ExitCause::AgentDied);
            }
            VmNews::Request(request, fds) => match *request {
                Request::Start if machine.agent.is_some() => machine.signal(Signal::CONT),
                Request::Start if machine.panics(mode) => return Ok(ExitCause::GuestPanic),
                Request::Start if mode == "chatty" => return Err(chat()),
                Request::Start if mode == "noagent" => {}
                Request::Start => {
                    let child = start_agent(machine, RelayLie::of(mode))?;
                    machine.agent = Some(Pid::from_child(&child));
                    let sender = sender.clone();
                    std::thread::spawn(move || wait(child, &sender));
                }
                Request::Save(to) if to.ahead => {
                    copied = Some((to, fds));
                    say(&Event::CopiedAhead)?;
                }
                Request::Save(to) => say(&save(mode, machine, &to, &fds))?,
                Request::Pause => {
                    let (to, fds) = copied.take().ok_or("Pause without a save")?;
                    say(&save(mode, machine, &to, &fds))?;
                }
                Request::Reset(to) => say(&reset(mode, machine, &to, &fds))?,
                Request::Stats => {
                    let cpu_ns = u64::try_from(begin.elapsed().as_nanos())?;
                    say(&Event::Stats(VmStats {
                        cpu_ns,
                        ..VmStats::default()
                    }))?;
                }
                Request::Stop if mode == "stubborn" => std::thread::sleep(Duration::from_secs(600)),
                Request::Stop => return Ok(ExitCause::Stopped),
                other => return Err(format!("unexpected {other:?}").into()),
            },
        }
    }
}

fn save(mode: &str, machine: &FakeMachine, to: &SaveSpec, fds: &[OwnedFd]) -> Event {
    machine.signal(Signal::STOP);
    let pages = if mode == "heavy" { 512 } else { 1 };
    if mode == "slowsave" {
        std::thread::sleep(Duration::from_secs(1));
    }
    let saved = match mode {
        "nosave" => Err("asked not to save".into()),
        _ => machine.start.save(&machine.spec, to, fds, pages),
    };
    match saved {
        Ok(_) if mode == "savedies" => {
            let killed = kill_process(getpid(), Signal::KILL);
            unreachable!("killed: {killed:?}")
        }
        Ok(saved) if mode == "vast" => Event::Saved(Saved {
            memory_pages: 1 << 40,
            ..saved
        }),
        Ok(saved) => Event::Saved(saved),
        Err(error) => {
            machine.signal(Signal::CONT);
            let message = error.to_string();
            Event::SaveFailed { message }
        }
    }
}

fn reset(mode: &str, machine: &mut FakeMachine, to: &ResetSpec, fds: &[OwnedFd]) -> Event {
    let reset = match mode {
        "noreset" => Err("asked not to reset".into()),
        "resetdies" => {
            let killed = kill_process(getpid(), Signal::KILL);
            unreachable!("killed: {killed:?}")
        }
        _ => machine.put_back(to, fds),
    };
    match reset {
        Ok(()) => Event::Reset(Reset::default()),
        Err(error) => {
            let message = error.to_string();
            Event::ResetFailed { message }
        }
    }
}

/// The agent, with the link as a descriptor of its own. One that was saved with its connection does
/// not greet the service again.
fn start_agent(machine: &FakeMachine, lie: RelayLie) -> Result<Child, Box<dyn Error>> {
    use std::os::unix::process::CommandExt;
    let vsock = machine.spec.vsock().ok_or("no link")?;
    let link = machine.fds[usize::from(vsock.link)].try_clone()?;
    let kept = machine.is_copy() && vsock.connection == SavedLink::Kept;
    let (ours, theirs) = if kept || lie != RelayLie::None {
        let (ours, theirs) = UnixStream::pair()?;
        (Some(ours), OwnedFd::from(theirs))
    } else {
        (None, link.try_clone()?)
    };
    // Only the link may reach the agent; nothing else is started by this process.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let mut command = Command::new(&machine.start.agent);
    command
        .args(["--fd", &theirs.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    dies_with_us(&mut command);
    let child = command.spawn()?;
    drop(theirs);
    if let Some(mut ours) = ours {
        if kept {
            relay::greet(&mut ours)?;
        }
        relay::connect(&ours, &link.into(), lie, Pid::from_child(&child))?;
    }
    Ok(child)
}

/// A guest is gone with its VM process. An agent would go on, even one that was stopped: the kernel
/// continues a stopped process group that is orphaned.
#[expect(unsafe_code, reason = "a system call between fork and exec")]
fn dies_with_us(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let ask = || {
        Ok(rustix::process::set_parent_process_death_signal(Some(
            Signal::KILL,
        ))?)
    };
    // SAFETY: it is one system call; it takes no lock and no memory.
    unsafe { command.pre_exec(ask) };
}

fn wait(mut child: Child, news: &Sender<VmNews>) {
    let pid = Pid::from_child(&child);
    let how = match child.wait() {
        Ok(status) => format!("code {:?}, signal {:?}", status.code(), status.signal()),
        Err(error) => error.to_string(),
    };
    // Nobody listens any more when the machine was stopped.
    let _ = news.send(VmNews::AgentEnded(pid, how));
}
