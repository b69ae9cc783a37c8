//! The lab: an emulated host with hardware virtualization, for machines without.
//!
//! QEMU emulates an AMD processor with nested paging in software; on it runs Debian's own kernel
//! with `kvm_amd`, so that everything that needs a true KVM runs there unchanged. It is a machine
//! of tmpfs: nothing in it survives `lab stop`. This program is its own agent inside.
//!
//! `package` fetches the kernel, `root` writes the first root, `qemu` starts the machine, `state`
//! remembers it, `frame`, `client` and `agent` run commands in it.

mod agent;
mod archive;
mod awake;
mod bring;
mod client;
mod command;
mod detect;
mod frame;
mod hold;
mod modules;
mod package;
mod qemu;
mod qmp;
mod root;
mod state;

use crate::deps;
use anyhow::{Context, Result, bail};
use awake::AwakeLab;
pub(crate) use client::{CommandControl, LabCommand, OutputStream};
pub(crate) use command::{LabArgs, run};
pub(crate) use detect::hardware_virtualization;
use frame::CommandRequest;
use qmp::QmpClient;
use state::{AGENT_PORT, LabPlace, LabState, PortForward};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A lab that does not answer after this long is given up.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Which lab to use.
#[derive(Clone, Debug)]
pub(crate) struct LabOptions {
    /// Its name; labs with different names run side by side.
    pub(crate) name: String,
    /// One processor, and a clock that counts instructions.
    pub(crate) icount: bool,
    /// Memory in MiB; taken from this machine only as it is used.
    pub(crate) memory_mib: u32,
    /// Pairs of a port of loopback and a port of the lab.
    pub(crate) forwards: Vec<(u16, u16)>,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            name: "lab".to_owned(),
            icount: false,
            memory_mib: 8192,
            forwards: Vec::new(),
        }
    }
}

impl LabOptions {
    /// The lab that counts instructions, beside the ordinary one.
    pub(crate) fn counting() -> Self {
        Self {
            name: "icount".to_owned(),
            icount: true,
            ..Self::default()
        }
    }
}

/// A lab that runs and answers. It keeps running when this is dropped.
pub(crate) struct Lab {
    place: LabPlace,
    state: LabState,
    /// It was started just now.
    pub(crate) fresh: bool,
}

impl Lab {
    /// The lab of these options, built and started if need be.
    ///
    /// # Errors
    /// If the lab runs with other options, or does not come up: then with its last messages.
    pub(crate) fn ensure(options: &LabOptions) -> Result<Self> {
        let place = LabPlace::new(&options.name)?;
        place.make()?;
        let guard = place.lock()?;
        let running = qemu::process(&place).is_some();
        let mut lab = if running {
            Self::join(place, options)?
        } else {
            Self::boot(place, options)?
        };
        drop(guard);
        lab.fresh = !running;
        for (host, port) in &options.forwards {
            lab.forward(*host, *port)?;
        }
        Ok(lab)
    }

    /// The lab with this name if it runs.
    pub(crate) fn running(name: &str) -> Result<Option<Self>> {
        let place = LabPlace::new(name)?;
        if qemu::process(&place).is_none() {
            return Ok(None);
        }
        let state = place.load()?;
        Ok(Some(Self {
            place,
            state,
            fresh: false,
        }))
    }

    fn join(place: LabPlace, options: &LabOptions) -> Result<Self> {
        let state = place.load()?;
        if state.icount != options.icount {
            let mode = if state.icount {
                "counts"
            } else {
                "does not count"
            };
            bail!(
                "The lab {:?} runs and {mode} instructions: stop it or choose another name",
                place.name
            );
        }
        let lab = Self {
            place,
            state,
            fresh: false,
        };
        let awake = lab.awake()?;
        lab.answers(BOOT_LIMIT, None)?;
        drop(awake);
        Ok(lab)
    }

    fn boot(place: LabPlace, options: &LabOptions) -> Result<Self> {
        deps::ensure(&["qemu-system-x86", "busybox-static"])?;
        let kernel = package::LabKernel::ensure()?;
        let state = LabState::new(options.icount, options.memory_mib)?;
        root::write(&place.initrd(), &kernel, &state.token)?;
        place.save(&state)?;
        qemu::start(&place, &kernel, &state)?;
        let lab = Self {
            place,
            state,
            fresh: true,
        };
        let awake = lab.awake()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        lab.answers(BOOT_LIMIT, u64::try_from(now.as_millis()).ok())?;
        drop(awake);
        Ok(lab)
    }

    /// Ends the lab at once; it has nothing to save.
    pub(crate) fn stop(self) -> Result<()> {
        let _guard = self.place.lock()?;
        qemu::stop(&self.place)
    }

    /// Waits until the agent answers.
    fn answers(&self, limit: Duration, set_clock_ms: Option<u64>) -> Result<()> {
        let start = Instant::now();
        loop {
            let request = CommandRequest {
                set_clock_ms,
                ..self.request(&[])
            };
            let tried = self.ask(&request);
            let Err(error) = tried else { return Ok(()) };
            let console = || self.place.console_tail(20);
            if qemu::process(&self.place).is_none() {
                bail!(
                    "The lab ended while it was starting; its last messages:\n{}",
                    console()
                );
            }
            if start.elapsed() > limit {
                let why = format!("The lab does not answer; its last messages:\n{}", console());
                return Err(error.context(why));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn ask(&self, request: &CommandRequest) -> Result<()> {
        let running = self.start(request)?;
        running.limit_silence(Duration::from_secs(2))?;
        running.wait(|_, _| Ok(())).map(drop)
    }

    fn agent_port(&self) -> Result<u16> {
        self.state
            .host_port(AGENT_PORT)
            .context("This lab has no agent port: stop it")
    }

    fn request(&self, argv: &[&str]) -> CommandRequest {
        let argv = argv.iter().map(|&argument| argument.to_owned()).collect();
        CommandRequest {
            token: self.state.token.clone(),
            argv,
            ..CommandRequest::default()
        }
    }

    /// Runs a command without input and returns its status and output.
    ///
    /// # Errors
    /// If it cannot be started; not if it fails.
    pub(crate) fn exec(&self, argv: &[&str]) -> Result<Output> {
        let running = self.spawn(argv)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        running.control().feed(std::io::empty())?;
        let status = running.wait(|stream, bytes| {
            match stream {
                OutputStream::Stdout => stdout.extend_from_slice(bytes),
                OutputStream::Stderr => stderr.extend_from_slice(bytes),
            }
            Ok(())
        })?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// Starts a command; see [`LabCommand`] for its input, output and signals.
    pub(crate) fn spawn(&self, argv: &[&str]) -> Result<LabCommand> {
        self.start(&self.request(argv))
    }

    fn start(&self, request: &CommandRequest) -> Result<LabCommand> {
        LabCommand::start(self.agent_port()?, request, self.awake()?)
    }

    /// A lab that counts runs only while this is held.
    fn awake(&self) -> Result<Option<AwakeLab>> {
        self.state
            .icount
            .then(|| AwakeLab::take(&self.place))
            .transpose()
    }

    /// The folder of this machine that is `/share` in the lab.
    pub(crate) fn share(&self) -> &Path {
        &self.place.share
    }

    /// Forwards a port of loopback to a port of the lab, unless it is forwarded so already.
    pub(crate) fn forward(&mut self, host: u16, lab: u16) -> Result<()> {
        let wanted = PortForward { host, lab };
        if self.state.forwards.contains(&wanted) || self.try_forward(host, lab)? {
            return Ok(());
        }
        bail!(
            "Port {host} of 127.0.0.1 cannot be forwarded to port {lab} of the lab: is it in use?"
        )
    }

    fn try_forward(&mut self, host: u16, lab: u16) -> Result<bool> {
        let _guard = self.place.lock()?;
        if !QmpClient::connect(&self.place.qmp())?.forward(host, lab)? {
            return Ok(false);
        }
        self.state = self.place.load()?; // another process may have added one
        self.state.forwards.push(PortForward { host, lab });
        self.place.save(&self.state)?;
        Ok(true)
    }
}
