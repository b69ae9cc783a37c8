//! Boots a machine by hand: plays the service's part in the same process, shows the console, and
//! tells at the end why it ended and with which counters.

use crate::serve;
use anyhow::{Context, Result, bail};
use control::{
    BootSource, Descriptors, DeviceSpec, DiskSpec, Event, Request, SavedLink, VmSpec, VsockSpec,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Most bytes shown of what the agent says first.
const SHOWN: usize = 64;

struct RunOptions {
    kernel: String,
    agent: String,
    disks: Vec<String>,
    vcpus: u8,
    memory_mib: u32,
    cmdline: String,
    timeout: Duration,
    live: bool,
}

fn parse(words: &[&str]) -> Result<RunOptions> {
    let mut options = RunOptions {
        kernel: String::new(),
        agent: String::new(),
        disks: Vec::new(),
        vcpus: 1,
        memory_mib: 512,
        cmdline: String::new(),
        timeout: Duration::from_secs(30),
        live: true,
    };
    let mut words = words.iter();
    while let Some(name) = words.next() {
        if *name == "--quiet" {
            options.live = false;
            continue;
        }
        let value = (*words
            .next()
            .with_context(|| format!("{name} wants a value"))?)
        .to_owned();
        match *name {
            "--kernel" => options.kernel = value,
            "--agent" => options.agent = value,
            "--disk" => options.disks.push(value),
            "--vcpus" => options.vcpus = value.parse().context("--vcpus")?,
            "--memory" => options.memory_mib = value.parse().context("--memory")?,
            "--cmdline" => options.cmdline = value,
            "--timeout-s" => {
                options.timeout = Duration::from_secs(value.parse().context("--timeout-s")?);
            }
            _ => bail!("Unknown option {name}"),
        }
    }
    if options.kernel.is_empty() || options.agent.is_empty() {
        bail!("--kernel and --agent are needed");
    }
    Ok(options)
}

/// Boots, waits for the machine's end or the time limit, and reports.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let options = parse(words)?;
    let (service, process) = control::pair()?;
    let (link, link_end) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let live = options.live;
    let machine = std::thread::spawn(move || serve::serve(process, None, live));
    let (spec, fds) = configure(&options, link_end)?;
    control::send(&service, &Request::Configure(Box::new(spec)), &fds.borrow())?;
    drop(fds);
    let agent = std::thread::spawn(move || first_words(link));
    let first_run_ns = converse(&service, options.timeout)?;
    drop(service);
    let _ = machine.join();
    if let Ok(Some((at_ns, bytes))) = agent.join() {
        let after = Duration::from_nanos(at_ns.saturating_sub(first_run_ns));
        say(&format!(
            "the agent's first bytes, {after:?} after the kernel's entry: {bytes:02x?}"
        ));
    } else {
        say("the agent said nothing");
    }
    Ok(())
}

fn configure(options: &RunOptions, link: OwnedFd) -> Result<(VmSpec, Descriptors)> {
    let open = |path: &str| File::open(path).with_context(|| format!("Cannot open {path}"));
    let mut fds = Descriptors::default();
    let boot_source = BootSource::Kernel {
        kernel: fds.add(open(&options.kernel)?),
        agent: fds.add(open(&options.agent)?),
        cmdline_extra: options.cmdline.clone(),
        contents: None,
    };
    let mut devices = vec![DeviceSpec::Vsock(VsockSpec {
        link: fds.add(link),
        connection: SavedLink::Broken,
    })];
    for path in &options.disks {
        let base = open(path)?;
        let size = base.metadata()?.len().next_multiple_of(4096);
        devices.push(DeviceSpec::Block(DiskSpec {
            base: fds.add(base),
            parent: None,
            layer: Some(fds.add(unnamed_file()?)),
            size,
        }));
    }
    devices.push(DeviceSpec::Rng);
    let spec = VmSpec {
        sandbox_id: "byhand".to_owned(),
        vcpus: options.vcpus,
        memory_mib: options.memory_mib,
        boot_source,
        devices,
    };
    Ok((spec, fds))
}

/// An empty file that vanishes with its descriptor.
fn unnamed_file() -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR).context("Cannot make a disk layer")
}

/// The service's side of the conversation.
fn converse(service: &OwnedFd, timeout: Duration) -> Result<u64> {
    let mut end = Instant::now() + timeout;
    let mut stopping = false;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let wait = Timespec {
            tv_sec: left.as_secs().try_into()?,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut ready = [PollFd::new(service, PollFlags::IN)];
        if poll(&mut ready, Some(&wait))? == 0 {
            if stopping {
                bail!("The machine does not stop");
            }
            say("time is up");
            stopping = true;
            end = Instant::now() + Duration::from_secs(10);
            control::send(service, &Request::Stop, &[])?;
            continue;
        }
        match control::recv::<Event>(service)? {
            Some((Event::Configured(c), _)) => {
                say(&format!("built in {:?}", Duration::from_nanos(c.build_ns)));
                control::send(service, &Request::Start, &[])?;
            }
            Some((Event::Stats(stats), _)) => say(&format!("{stats:#?}")),
            Some((Event::Exited(report), _)) => {
                say(&format!("ended: {:?}\n{:#?}", report.cause, report.stats));
                return Ok(report.stats.first_run_ns);
            }
            Some((event @ (Event::CopiedAhead | Event::Saved(_) | Event::Reset(_)), _)) => {
                bail!("Nobody asked for {event:?}")
            }
            Some((
                Event::Failed { message }
                | Event::SaveFailed { message }
                | Event::ResetFailed { message },
                _,
            )) => bail!("{message}"),
            None => bail!("The machine is gone without a word"),
        }
    }
}

/// What came first over the link, and when on the monotonic clock. The link is read as a file: this
/// thread is confined as the machine's are, and those have `read`, not the `recvfrom` of a socket.
fn first_words(link: OwnedFd) -> Option<(u64, Vec<u8>)> {
    let mut bytes = vec![0; SHOWN];
    let mut link = File::from(link);
    let n = link.read(&mut bytes).ok().filter(|n| *n > 0)?;
    let at_ns = machine::monotonic_ns();
    bytes.truncate(n);
    // Keep listening, so that the agent does not lose its link.
    let mut rest = [0; 4096];
    while link.read(&mut rest).is_ok_and(|n| n > 0) {}
    Some((at_ns, bytes))
}

fn say(text: &str) {
    eprintln!("-- {text}");
}
