//! Has machines made: a process, its configuration, its start, its agent's first word.

use crate::image::pager::PagerClient;
use crate::launch::error::LaunchError;
use crate::launch::plan::{BuiltMachine, LaunchPlan, LaunchedMachine, PreparedMachine};
use crate::machine::group_tree::GroupTree;
use crate::machine::handle::{LAST_WORD, VmProcess};
use crate::machine::phase::MachinePhase;
use crate::machine::spawner::VmSpawner;
use crate::restore_point::BootSource;
use crate::timings::StepTimings;
use link::Link;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a VM process may take to build a machine, and again to start it.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20);

/// What every launch needs.
#[derive(Clone, Debug)]
pub struct MachineLauncher {
    /// The VM program.
    pub vmm: PathBuf,
    /// What makes its processes.
    pub spawner: VmSpawner,
    /// What its processes may take.
    pub groups: Arc<GroupTree>,
    /// The guest agent.
    pub agent: PathBuf,
    /// Where private disk layers are made.
    pub layer_dir: PathBuf,
    /// Where VM processes are noted while they run.
    pub record_dir: PathBuf,
    /// Longest wait for the agent.
    pub boot_timeout: Duration,
    /// What brings memory that is not resident; `None`: it is made so first.
    pub pagers: Option<Arc<PagerClient>>,
}

impl MachineLauncher {
    /// Builds a machine that has not run. Cancel-safe: dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// The first step that failed; nothing is left of the attempt.
    pub async fn build(
        &self,
        plan: LaunchPlan,
        timings: &mut StepTimings,
    ) -> Result<BuiltMachine, LaunchError> {
        let (launcher, name) = (self.clone(), plan.name.clone());
        let prepare = tokio::task::spawn_blocking(move || launcher.prepare(plan));
        let PreparedMachine {
            mut machine,
            link,
            frames,
            disk_size,
        } = prepare.await.map_err(|_| LaunchError::GivenUp)??;
        timings.step("spawn");

        let ready = async {
            let configured =
                |p: &MachinePhase| matches!(p, MachinePhase::Configured(_) | MachinePhase::Started);
            reach(&mut machine, configured, "building the machine").await?;
            tokio::net::UnixStream::from_std(link).map_err(LaunchError::Socket)
        };
        match ready.await {
            Ok(stream) => {
                timings.step("configure");
                Ok(BuiltMachine {
                    machine,
                    stream,
                    frames,
                    disk_size,
                })
            }
            Err(error) => {
                machine.give_up(&name.to_string()).await;
                Err(error)
            }
        }
    }

    /// Runs a machine until its agent has said Hello. Cancel-safe as [`MachineLauncher::build`] is.
    ///
    /// # Errors
    /// The first step that failed; nothing is left of the attempt.
    pub async fn launch(
        &self,
        plan: LaunchPlan,
        timings: &mut StepTimings,
    ) -> Result<LaunchedMachine, LaunchError> {
        let name = plan.name.clone();
        let base_memory = match &plan.source {
            BootSource::Image(image) => Some(Arc::clone(&image.base_memory)),
            BootSource::Boot | BootSource::Files(_) => None,
        };
        let built = self.build(plan, timings).await?;
        let BuiltMachine {
            mut machine,
            stream,
            frames,
            disk_size,
        } = built;
        match self.greet(&mut machine, stream, timings).await {
            Ok(link) => Ok(LaunchedMachine {
                machine,
                link,
                frames,
                disk_size,
                base_memory,
            }),
            Err(error) => {
                machine.give_up(&name.to_string()).await;
                Err(error)
            }
        }
    }

    async fn greet(
        &self,
        machine: &mut VmProcess,
        stream: tokio::net::UnixStream,
        timings: &mut StepTimings,
    ) -> Result<Link, LaunchError> {
        machine.start().await;
        let link = self.hello(machine, stream).await?;
        timings.step("hello");
        Ok(link)
    }

    /// Waits for the agent, for the machine's end, and no longer than allowed.
    pub(crate) async fn hello(
        &self,
        machine: &mut VmProcess,
        stream: tokio::net::UnixStream,
    ) -> Result<Link, LaunchError> {
        let doing = "waiting for its agent";
        let failed = |source| LaunchError::Link { doing, source };
        let ready = tokio::time::timeout(self.boot_timeout, async {
            tokio::select! {
                // The machine's end explains more than the link's.
                biased;
                end = machine.ended() => Err(end),
                link = Link::connect(stream) => Ok(link),
            }
        });
        match ready.await {
            Ok(Ok(Ok((link, hello)))) => {
                tracing::debug!(?hello, "agent ready");
                Ok(link)
            }
            Ok(Ok(Err(error))) => {
                // A link that breaks is most often a machine that ends: give it time to say so.
                match tokio::time::timeout(LAST_WORD, machine.ended()).await {
                    Ok(Some(end)) => Err(LaunchError::Ended { doing, end }),
                    _ => Err(failed(error)),
                }
            }
            Ok(Err(Some(end))) => Err(LaunchError::Ended { doing, end }),
            Ok(Err(None)) => Err(LaunchError::GivenUp),
            Err(_) => Err(LaunchError::Timeout {
                doing,
                seconds: self.boot_timeout.as_secs(),
            }),
        }
    }
}

async fn reach(
    machine: &mut VmProcess,
    reached: fn(&MachinePhase) -> bool,
    doing: &'static str,
) -> Result<(), LaunchError> {
    match tokio::time::timeout(BUILD_TIMEOUT, machine.wait(reached)).await {
        Ok(MachinePhase::Ended(end)) => Err(LaunchError::Ended { doing, end }),
        Ok(_) => Ok(()),
        Err(_) => Err(LaunchError::Timeout {
            doing,
            seconds: BUILD_TIMEOUT.as_secs(),
        }),
    }
}
