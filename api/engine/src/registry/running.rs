//! From a machine that has taken its identity to a sandbox in the table.

use crate::error::EngineError;
use crate::facts::SandboxFacts;
use crate::image::machine_image::MachineShape;
use crate::launch::plan::LaunchedMachine;
use crate::machine::handle::VmProcess;
use crate::machine::handover::MachineHandover;
use crate::network::NetworkService;
use crate::process::{GuestContext, ProcessTable};
use crate::registry::entry::TableEntry;
use crate::registry::lifecycle::follow;
use crate::registry::sandboxes::SandboxRegistry;
use crate::registry::transitions::{SandboxRequest, Transition};
use crate::restore_point::RestorePoint;
use crate::sandbox::{Sandbox, SandboxDeadline, SandboxMachine};
use crate::sandbox_log::SandboxLog;
use crate::store::checkpoint_tree::CheckpointTree;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// Where a sandbox has been.
pub(super) struct SandboxHistory {
    /// Where it went on first.
    pub(super) restore_point: Option<Arc<RestorePoint>>,
    /// Its checkpoints.
    pub(super) tree: Arc<CheckpointTree>,
}

impl SandboxHistory {
    /// Of a new sandbox.
    pub(super) fn of(restore_point: Option<Arc<RestorePoint>>) -> Self {
        let tree = Arc::default();
        Self {
            restore_point,
            tree,
        }
    }
}

/// A sandbox out of its facts and a machine that has taken its identity.
pub(super) fn running_sandbox(
    facts: Arc<SandboxFacts>,
    launched: LaunchedMachine,
    deadline: SandboxDeadline,
    history: SandboxHistory,
    network: &Arc<NetworkService>,
) -> (Arc<Sandbox>, VmProcess) {
    let LaunchedMachine {
        machine,
        link,
        frames,
        disk_size,
        base_memory,
    } = launched;
    let shape = MachineShape {
        vcpus: facts.origin.cpu_count,
        memory_mib: facts.origin.memory_mb,
        disk_size,
    };
    let gone = watch::Sender::new(false);
    let processes = ProcessTable::new(GuestContext {
        sandbox_id: facts.id.clone(),
        link: link.clone(),
        gone: gone.subscribe(),
    });
    let egress = watch::Sender::new(facts.egress.clone());
    let log = SandboxLog::default();
    network.serve(&facts.id, frames, egress.subscribe(), log.clone());
    let sandbox = Sandbox {
        facts,
        log,
        egress,
        trust_turn: tokio::sync::Mutex::default(),
        link,
        processes,
        deadline: watch::Sender::new(deadline),
        gone,
        ended: OnceLock::new(),
        machine: SandboxMachine {
            handle: machine.handle(),
            shape,
            base_memory,
            restore_point: history.restore_point,
            tree: history.tree,
            turn: Arc::default(),
            handover: MachineHandover::default(),
        },
    };
    (Arc::new(sandbox), machine)
}

impl SandboxRegistry {
    /// Creating → Running, unless the server closes or its template has been removed meanwhile.
    pub(super) fn publish(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        machine: VmProcess,
    ) -> Result<(), EngineError> {
        {
            let mut table = self.table();
            let entry = table.get(&sandbox.id);
            match self.transition(entry, SandboxRequest::Publish) {
                Transition::Become(_) => {}
                Transition::ShuttingDown => return Err(EngineError::ShuttingDown),
                _ => return Err(EngineError::no_sandbox(&sandbox.id)),
            }
            if self.templates.get(&sandbox.origin.base).is_none() {
                return Err(EngineError::no_template(&sandbox.origin.base));
            }
            table.insert(sandbox.id.clone(), TableEntry::Running(Arc::clone(sandbox)));
        }
        self.follow(sandbox, machine);
        Ok(())
    }

    /// Has a machine followed to its end by a life-cycle task.
    pub(super) fn follow(self: &Arc<Self>, sandbox: &Arc<Sandbox>, machine: VmProcess) {
        tokio::spawn(follow(Arc::clone(self), Arc::clone(sandbox), machine));
    }
}
