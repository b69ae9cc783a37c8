//! A stand-in for `hatchery-vmm` that needs no virtualization: it speaks the control protocol, and
//! instead of a machine it runs the guest agent as an ordinary process with the link as a
//! descriptor (`hatchery-agent --fd N`). For tests of the service only: it isolates nothing.
//!
//! The server gives a VM program no arguments and no environment; tests choose a misbehaviour by the
//! name under which this program is started: `fake-vmm-<mode>`, a link or a copy.
//!
//! | mode | what it does |
//! |---|---|
//! | (none) | runs the agent until it ends or is stopped |
//! | `silent` | never answers Configure |
//! | `refuse` | answers Configure with Failed |
//! | `panic` | reports a guest panic as soon as it is started |
//! | `noagent` | starts, and the agent never says Hello |
//! | `stubborn` | runs the agent and ignores Stop |

use control::{Configured, Event, ExitCause, ExitReport, Origin, Request, VmSpec, VmStats};
use std::error::Error;
use std::io::{IsTerminal, stdin};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

enum News {
    Request(Box<Request>, Vec<OwnedFd>),
    ServiceGone,
    AgentEnded(String),
}

struct Machine {
    spec: VmSpec,
    fds: Vec<OwnedFd>,
    agent: Option<u32>,
}

fn main() -> ExitCode {
    if stdin().is_terminal() {
        eprintln!("fake-vmm is started by the server, with a control socket as standard input");
        return ExitCode::FAILURE;
    }
    let name = std::env::args().next().unwrap_or_default();
    let mode = name.rsplit_once("fake-vmm-").map_or("", |(_, mode)| mode);
    match run(mode) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake-vmm: {error}");
            ExitCode::FAILURE
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
    if let Some(pid) = machine
        .agent
        .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()))
    {
        // The agent and everything it started is one process group.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
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

fn say(event: &Event) -> Result<(), Box<dyn Error>> {
    Ok(control::send(stdin().as_fd(), event, &[])?)
}

fn listen(control: &OwnedFd, news: &Sender<News>) {
    loop {
        let heard = match control::recv::<Request>(control) {
            Ok(Some((request, fds))) => News::Request(Box::new(request), fds),
            Ok(None) => News::ServiceGone,
            Err(error) => {
                eprintln!("fake-vmm: {error}");
                News::ServiceGone
            }
        };
        let last = matches!(heard, News::ServiceGone);
        if news.send(heard).is_err() || last {
            return;
        }
    }
}

fn configure(mode: &str, news: &Receiver<News>) -> Result<Option<Machine>, Box<dyn Error>> {
    let begin = Instant::now();
    let News::Request(request, fds) = news.recv()? else {
        return Ok(None);
    };
    let Request::Configure(spec) = *request else {
        return Err("not configured first".into());
    };
    if mode == "silent" {
        while !matches!(news.recv()?, News::ServiceGone) {}
        return Ok(None);
    }
    let refused = spec.check(fds.len()).err().map(|error| error.to_string());
    let refused = refused.or_else(|| (mode == "refuse").then(|| "asked to refuse".to_owned()));
    if let Some(message) = refused {
        say(&Event::Failed { message })?;
        return Ok(None);
    }
    eprintln!("fake-vmm: {} vCPUs, {} MiB", spec.vcpus, spec.memory_mib);
    let build_ns = u64::try_from(begin.elapsed().as_nanos())?;
    say(&Event::Configured(Configured { build_ns }))?;
    Ok(Some(Machine {
        spec: *spec,
        fds,
        agent: None,
    }))
}

/// Until the machine ends; says why.
fn serve(
    mode: &str,
    machine: &mut Machine,
    news: &Receiver<News>,
    sender: &Sender<News>,
) -> Result<ExitCause, Box<dyn Error>> {
    let begin = Instant::now();
    loop {
        match news.recv()? {
            News::ServiceGone => return Ok(ExitCause::Stopped),
            News::AgentEnded(how) => {
                eprintln!("fake-vmm: the agent ended: {how}");
                return Ok(ExitCause::AgentDied);
            }
            News::Request(request, _) => match *request {
                Request::Start => {
                    if mode != "noagent" && mode != "panic" {
                        let child = start_agent(machine)?;
                        machine.agent = Some(child.id());
                        let sender = sender.clone();
                        std::thread::spawn(move || wait(child, &sender));
                    }
                    say(&Event::Started)?;
                    if mode == "panic" {
                        return Ok(ExitCause::GuestPanic);
                    }
                }
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

/// The agent from the descriptor that the server sent, with the link as a descriptor of its own.
fn start_agent(machine: &Machine) -> Result<Child, Box<dyn Error>> {
    use std::os::unix::process::CommandExt;
    let link = &machine.fds[usize::from(machine.spec.link)];
    let Origin::Boot { agent, .. } = machine.spec.origin else {
        return Err("a stand-in cannot begin at a snapshot".into());
    };
    let agent = &machine.fds[usize::from(agent)];
    // Only the link may reach the agent; nothing else is started by this process.
    rustix::io::fcntl_setfd(link, rustix::io::FdFlags::empty())?;
    let program = format!("/proc/self/fd/{}", agent.as_raw_fd());
    let child = Command::new(program)
        .args(["--fd", &link.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    rustix::io::fcntl_setfd(link, rustix::io::FdFlags::CLOEXEC)?;
    Ok(child)
}

fn wait(mut child: Child, news: &Sender<News>) {
    let how = match child.wait() {
        Ok(status) => format!("code {:?}, signal {:?}", status.code(), status.signal()),
        Err(error) => error.to_string(),
    };
    // Nobody listens any more when the machine was stopped.
    let _ = news.send(News::AgentEnded(how));
}
