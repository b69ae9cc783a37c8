//! Serves the frame sockets of sandboxes: waits for the first frame of each, and has a network
//! process take it from there, for as long as the machine lives.

use crate::error::chain;
use crate::machine::group_tree::GroupTree;
use crate::metrics::EngineMetrics;
use crate::network::egress::EgressPolicy;
use crate::network::frames::FrameSocket;
use crate::network::network_process::{NetworkError, NetworkProcess};
use crate::network::{host, roots};
use crate::sandbox_log::{LogLevel, SandboxLog};
use control::{DeniedFlow, JailMode, NetCounters, NetEvent, NetLimits, NetPolicy, NetSpec};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// The wait after a network process that ended by itself; it doubles up to 25 s.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_DOUBLINGS: u32 = 8;
/// How long a process may outlive its sandbox, whose machine ends meanwhile.
const LAST: Duration = Duration::from_secs(30);
/// One that has served for longer did not end by what it was given first.
const LIVED: Duration = Duration::from_secs(60);

/// What an operator and the host decide about sandboxes' networks.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// The program.
    pub program: PathBuf,
    /// What is done where it cannot be confined.
    pub jail: JailMode,
    /// Addresses and ports that every sandbox may reach though they are private, or the host's.
    pub openings: Vec<SocketAddr>,
    /// A file of certificates, PEM, that hosts are verified with beside the host's own.
    pub extra_roots: Option<PathBuf>,
    /// How much of the network one sandbox may have.
    pub limits: NetLimits,
}

impl NetworkSettings {
    /// Refuses what would keep every network process from being started.
    ///
    /// # Errors
    /// Which setting, and why.
    pub fn check(&self) -> Result<(), String> {
        self.extra_roots.as_deref().map_or(Ok(()), roots::check)
    }
}

/// What gives sandboxes their network.
#[derive(Debug)]
pub struct NetworkService {
    settings: NetworkSettings,
    groups: Arc<GroupTree>,
    metrics: Arc<EngineMetrics>,
}

impl NetworkService {
    /// As the settings say; each network process has a control group if machines have them.
    #[must_use]
    pub fn new(
        settings: NetworkSettings,
        groups: Arc<GroupTree>,
        metrics: Arc<EngineMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            groups,
            metrics,
        })
    }

    /// Has a sandbox's frames served until its machine is gone. Must be called on the runtime.
    pub(crate) fn serve(
        self: &Arc<Self>,
        id: &str,
        frames: FrameSocket,
        policy: watch::Receiver<EgressPolicy>,
        log: SandboxLog,
    ) {
        let served = ServedSandbox {
            service: Arc::clone(self),
            id: id.to_owned(),
            policy,
            log,
        };
        tokio::spawn(served.run(frames));
    }

    fn spec(&self, id: &str, policy: NetPolicy) -> Result<NetSpec, NetworkError> {
        Ok(NetSpec {
            ipv6: None,
            policy: self.opened(policy),
            name_servers: host::name_servers(),
            host_addresses: host::addresses().map_err(NetworkError::Host)?,
            limits: self.settings.limits,
            ..NetSpec::standard(id)
        })
    }

    /// Says which headers hold with the policy that is said next, if it has any.
    fn set_rules(
        &self,
        process: &NetworkProcess,
        policy: &EgressPolicy,
    ) -> Result<(), NetworkError> {
        let Some(rules) = policy.rules() else {
            return Ok(());
        };
        let extra = self.settings.extra_roots.as_deref();
        let roots = roots::certificates(extra).map_err(|source| NetworkError::Roots {
            extra: self.settings.extra_roots.clone(),
            source,
        })?;
        Ok(process.set_rules(rules, &roots)?)
    }

    /// With what the operator has opened for all.
    fn opened(&self, policy: NetPolicy) -> NetPolicy {
        NetPolicy {
            openings: self.settings.openings.clone(),
            ..policy
        }
    }
}

/// One sandbox's frames.
struct ServedSandbox {
    service: Arc<NetworkService>,
    id: String,
    policy: watch::Receiver<EgressPolicy>,
    log: SandboxLog,
}

impl ServedSandbox {
    /// Until the machine is gone.
    async fn run(mut self, mut frames: FrameSocket) {
        let mut setbacks = 0;
        loop {
            frames = match frames.wanted().await {
                Ok(Some(frames)) => frames,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(sandbox_id = self.id, %error, "its frame socket is lost");
                    return;
                }
            };
            let begun = Instant::now();
            let Err(error) = self.serve(&frames).await else {
                return;
            };
            // One that only just came up and fell is no success, however often.
            if begun.elapsed() > LIVED {
                setbacks = 0;
            }
            let (sandbox_id, error) = (&self.id, chain(&error));
            tracing::warn!(
                sandbox_id,
                error,
                "network process lost, its flows are reset"
            );
            sleep(FIRST_WAIT * 2_u32.pow(setbacks.min(MAX_DOUBLINGS))).await;
            setbacks = setbacks.saturating_add(1);
        }
    }

    /// Has a network process serve the frames; returns when the machine is gone.
    async fn serve(&mut self, frames: &FrameSocket) -> Result<(), NetworkError> {
        let settings = &self.service.settings;
        let group = self.service.groups.for_network(settings.limits.flows)?;
        let program = (&*settings.program, settings.jail);
        let process = NetworkProcess::start(program, group, frames, &self.id)?;
        let policy = self.policy.borrow_and_update().clone();
        self.service.set_rules(&process, &policy)?;
        process.configure(self.service.spec(&self.id, policy.reach)?)?;
        self.service.metrics.network_process("started");
        let ended = self.follow(process).await;
        if ended.is_err() {
            self.service.metrics.network_process("lost");
        }
        ended
    }

    /// Hears and tells a process until its end. Once the sandbox is gone, that comes soon, by
    /// itself or not.
    async fn follow(&mut self, process: NetworkProcess) -> Result<(), NetworkError> {
        let mut counted = NetCounters::default();
        let mut gone = None;
        loop {
            tokio::select! {
                event = process.event() => match event {
                    Ok(event) => self.take(event, &mut counted),
                    Err(NetworkError::Ended(_)) => return process.finish().await,
                    Err(error) => return Err(error),
                },
                () = sleep_until(gone.unwrap_or_else(Instant::now)), if gone.is_some() => {
                    return process.finish().await;
                }
                changed = self.policy.changed(), if gone.is_none() => match changed {
                    Ok(()) => {
                        let policy = self.policy.borrow_and_update().clone();
                        self.service.set_rules(&process, &policy)?;
                        process.set_policy(self.service.opened(policy.reach))?;
                    }
                    // The sandbox is gone, and soon its machine: its frame socket tells.
                    Err(_) => gone = Some(Instant::now() + LAST),
                },
            }
        }
    }

    /// Tells the sandbox's user what was refused.
    fn note(&self, denied: &DeniedFlow) {
        let mut fields = vec![
            ("protocol", format!("{:?}", denied.protocol).to_lowercase()),
            ("to", denied.to.to_string()),
            ("reason", format!("{:?}", denied.reason).to_lowercase()),
        ];
        fields.extend(denied.name.clone().map(|name| ("name", name)));
        if denied.left_out > 0 {
            fields.push(("left_out", denied.left_out.to_string()));
        }
        self.log
            .push(LogLevel::Warn, "denied by the network policy", fields);
    }

    fn take(&self, event: NetEvent, counted: &mut NetCounters) {
        let sandbox_id = &self.id;
        match event {
            NetEvent::Ready => tracing::debug!(sandbox_id, "network ready"),
            NetEvent::Denied(denied) => {
                self.note(&denied);
                tracing::info!(
                    sandbox_id,
                    protocol = ?denied.protocol,
                    to = %denied.to,
                    name = denied.name,
                    reason = ?denied.reason,
                    left_out = denied.left_out,
                    "denied by the sandbox's network policy"
                );
            }
            NetEvent::Counters(counters) => {
                tracing::debug!(sandbox_id, ?counters, "network counters");
                self.service.metrics.network_counted(counted, &counters);
                *counted = counters;
            }
        }
    }
}
