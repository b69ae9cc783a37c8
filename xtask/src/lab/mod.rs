//! The lab: an emulated host with hardware virtualization, for machines without.
//!
//! QEMU emulates an AMD processor with nested paging in software; on it runs Debian's own kernel
//! with `kvm_amd`, so that everything that needs a true KVM runs there unchanged. Bochs emulates an
//! Intel processor, more slowly, for what only `kvm_intel` and XSAVE have. A lab is a machine of
//! tmpfs: nothing in it survives `lab stop`. This program is its own agent inside.
//!
//! `package` fetches the kernel, `root` writes the first root, `qemu` or `bochs` starts the
//! machine, `emulator` finds its process, `state` remembers it, `frame`, `client` and `agent` run
//! commands in it, `watch` tells a slow one from a dead one, and `keeper` is the process that
//! forwards ports to it and keeps its clock.

mod agent;
mod archive;
mod awake;
mod bochs;
mod bring;
mod client;
mod clock;
mod command;
mod detect;
mod emulator;
mod files_disk;
mod frame;
mod hold;
mod intel_model;
mod keeper;
mod modules;
mod package;
mod ping;
mod qemu;
mod qemu_program;
mod qmp;
mod relay;
mod root;
mod state;
mod unix;
mod watch;

use crate::deps;
use anyhow::{Context, Result, bail};
use awake::AwakeLab;
pub(crate) use client::{CommandControl, LabCommand, OutputStream};
pub(crate) use command::{LabArgs, run};
pub(crate) use detect::hardware_virtualization;
use frame::CommandRequest;
pub(crate) use intel_model::IntelModel;
use ping::AgentAddress;
pub(crate) use qemu::THIS_MACHINE;
use qmp::QmpClient;
use rustix::process::Pid;
pub(crate) use state::free_port;
use state::{AGENT_PORT, LabPlace, LabState, PortForward};
use std::path::Path;
use std::process::Output;
use std::time::Duration;
use watch::LabWatch;

/// A lab that does not answer after this long is given up.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// The same for one in Bochs, which takes a minute on a machine with nothing else to do.
const INTEL_BOOT_LIMIT: Duration = Duration::from_secs(400);
/// How long a lab gets to answer one question, before it is asked again.
const ANSWER: Duration = Duration::from_secs(2);
/// The same for one in Bochs.
const INTEL_ANSWER: Duration = Duration::from_secs(10);
/// How long a lab gets to show that it is alive, after something in it has failed.
const ALIVE_LIMIT: Duration = Duration::from_secs(60);

/// A port that is free may be somebody's when the emulator takes it.
const PORTS_TRIED: u32 = 8;

/// Which lab to use.
#[derive(Clone, Debug)]
pub(crate) struct LabOptions {
    /// Its name; labs with different names run side by side.
    pub(crate) name: String,
    /// One processor, and a clock that counts instructions.
    pub(crate) icount: bool,
    /// An Intel processor instead of AMD's, emulated by Bochs.
    pub(crate) intel: Option<IntelModel>,
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
            intel: None,
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

    /// A lab with an Intel processor, beside the others.
    pub(crate) fn intel(model: IntelModel) -> Self {
        Self {
            name: "intel".to_owned(),
            intel: Some(model),
            memory_mib: bochs::MAX_MEMORY_MIB,
            ..Self::default()
        }
    }
}

/// Ends the lab with this name, if it runs.
pub(crate) fn stop(name: &str) -> Result<()> {
    Lab::running(name)?.map_or(Ok(()), |lab| lab.stop())
}

/// A lab that runs and answers. It keeps running when this is dropped.
pub(crate) struct Lab {
    place: LabPlace,
    state: LabState,
    process: Pid,
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
        let mut lab = match emulator::process(&place) {
            Some(process) => Self::join(place, process, options)?,
            None => Self::boot(place, options)?,
        };
        keeper::ensure(&lab.place, lab.process)?;
        drop(guard);
        for (host, port) in &options.forwards {
            lab.forward(*host, *port)?;
        }
        Ok(lab)
    }

    /// The lab with this name if it runs.
    pub(crate) fn running(name: &str) -> Result<Option<Self>> {
        let place = LabPlace::new(name)?;
        let Some(process) = emulator::process(&place) else {
            return Ok(None);
        };
        let state = place.load()?;
        Ok(Some(Self {
            place,
            state,
            process,
            fresh: false,
        }))
    }

    fn join(place: LabPlace, process: Pid, options: &LabOptions) -> Result<Self> {
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
        if state.intel != options.intel {
            bail!(
                "The lab {:?} runs with another processor: stop it or choose another name",
                place.name
            );
        }
        let lab = Self {
            place,
            state,
            process,
            fresh: false,
        };
        lab.answers(lab.boot_limit())?;
        Ok(lab)
    }

    fn boot(place: LabPlace, options: &LabOptions) -> Result<Self> {
        let mut state = LabState::new(options.icount, options.memory_mib, options.intel)?;
        if let Some(model) = options.intel {
            let forwards = options.forwards.iter();
            let forwards = forwards.map(|&(host, lab)| PortForward {
                host,
                lab,
                via: None,
            });
            state.forwards.extend(forwards);
            let kernel = Self::prepare(&place, &state, package::INTEL)?;
            bochs::start(&place, &kernel, &state, model)?;
        } else {
            let kernel = Self::prepare(&place, &state, package::AMD)?;
            qemu::start(&place, &kernel, &state)?;
        }
        let ended = || format!("The lab ended at its start:\n{}", place.console_tail(20));
        let process = emulator::process(&place).with_context(ended)?;
        let lab = Self {
            place,
            state,
            process,
            fresh: true,
        };
        let awake = lab.awake()?;
        lab.answers(lab.boot_limit())?;
        if let Err(error) = keeper::set_clock(&lab.agent()?) {
            eprintln!("lab: its clock was not set: {error:#}");
        }
        drop(awake);
        Ok(lab)
    }

    /// Writes what a lab begins with.
    fn prepare(
        place: &LabPlace,
        state: &LabState,
        modules: &'static package::ModuleSet,
    ) -> Result<package::LabKernel> {
        deps::ensure(&["busybox-static"])?;
        let kernel = package::LabKernel::ensure(modules)?;
        root::write(&place.initrd(), &kernel, &state.token)?;
        place.save(state)?;
        Ok(kernel)
    }

    /// What it is called by `--name`.
    pub(crate) fn name(&self) -> &str {
        &self.place.name
    }

    fn boot_limit(&self) -> Duration {
        match self.state.intel {
            Some(_) => INTEL_BOOT_LIMIT,
            None => BOOT_LIMIT,
        }
    }

    /// How long it gets to answer one question.
    fn answer_limit(&self) -> Duration {
        match self.state.intel {
            Some(_) => INTEL_ANSWER,
            None => ANSWER,
        }
    }

    /// The Intel processor that this lab emulates, if it does.
    fn intel_model(&self) -> Option<IntelModel> {
        self.state.intel
    }

    /// Ends the lab at once; it has nothing to save.
    pub(crate) fn stop(&self) -> Result<()> {
        let _guard = self.place.lock()?;
        emulator::stop(&self.place)
    }

    /// Waits until the agent answers, at most so long of the lab's own time on this machine.
    fn answers(&self, limit: Duration) -> Result<()> {
        let _awake = self.awake()?;
        let (agent, watch) = (self.agent()?, self.watch()?);
        let silence = watch.silence();
        while let Err(error) = agent.time(None, self.answer_limit()) {
            watch.is_there()?;
            if silence.lasted() > limit {
                return Err(watch.dead(&format!("The lab does not answer ({error:#})")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// How the lab has died, with the last lines of its console; `None` if it is alive.
    pub(crate) fn death(&self) -> Option<String> {
        let error = self.answers(ALIVE_LIMIT).err()?;
        Some(format!("{error:#}"))
    }

    fn agent(&self) -> Result<AgentAddress> {
        let port = self
            .state
            .host_port(AGENT_PORT)
            .context("This lab has no agent port: stop it")?;
        Ok(AgentAddress {
            port,
            token: self.state.token.clone(),
        })
    }

    /// A lab that counts is not asked whether it is there: that would be counted.
    fn watch(&self) -> Result<LabWatch> {
        let agent = self.agent()?;
        let agent = (!self.state.icount).then_some(agent);
        Ok(LabWatch::new(&self.place, self.process, agent))
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
        let awake = self.awake()?;
        LabCommand::start(&self.agent()?, request, self.watch()?, awake)
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
        let guard = self.place.lock()?;
        self.state = self.place.load()?; // another process may have added one
        let same = |forward: &PortForward| (forward.host, forward.lab) == (host, lab);
        if self.state.forwards.iter().any(same) {
            return Ok(());
        }
        if self.state.intel.is_some() {
            bail!(
                "Bochs forwards ports from its start only: stop the lab {:?}, and start it with \
                 --forward {host}:{lab}",
                self.place.name
            );
        }
        let via = match self.state.via(lab) {
            Some(via) => via,
            None => self.emulator_port(lab)?,
        };
        keeper::forward(&self.place, self.process, host, via)
            .with_context(|| format!("Forwarding port {host} to port {lab} of the lab"))?;
        let via = Some(via);
        self.state.forwards.push(PortForward { host, lab, via });
        self.place.save(&self.state)?;
        drop(guard);
        Ok(())
    }

    /// A port of loopback that the emulator forwards to a port of the lab.
    fn emulator_port(&self, lab: u16) -> Result<u16> {
        let mut qmp = QmpClient::connect(&self.place.qmp())?;
        for _ in 0..PORTS_TRIED {
            let port = free_port()?;
            if qmp.forward(port, lab)? {
                return Ok(port);
            }
        }
        bail!("The emulator takes no port of 127.0.0.1 for port {lab} of the lab")
    }
}
