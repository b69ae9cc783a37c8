//! Claim: a warm VM becomes a sandbox's machine.

use crate::error::EngineError;
use crate::image::machine_image::{AgentLink, MachineImage};
use crate::launch::plan::{BuiltMachine, LaunchedMachine};
use crate::pool::warm_pool::{WarmPool, WarmVm};
use crate::registry::reserve::Preallocated;
use crate::registry::sandboxes::SandboxRegistry;
use crate::timings::StepTimings;
use link::Link;
use std::collections::BTreeMap;
use std::sync::Arc;

impl SandboxRegistry {
    /// One attempt at a clone, ahead or on the spot; `None`, and a word in the log, if it failed.
    pub(super) async fn claim(
        &self,
        id: &str,
        (pool, template_vm): (&WarmPool, &Arc<MachineImage>),
        env: &BTreeMap<String, String>,
        preallocated: Option<Preallocated>,
        timings: &mut StepTimings,
    ) -> Result<Option<LaunchedMachine>, EngineError> {
        let source = match preallocated {
            Some(preallocated) => preallocated,
            None => match pool.take() {
                Some(warm_vm) => Preallocated::WarmVm(Box::new(warm_vm)),
                None => Preallocated::Slot(self.slot().await?),
            },
        };
        let ahead = matches!(source, Preallocated::WarmVm(_));
        let claimed = async {
            let warm_vm = match source {
                Preallocated::WarmVm(warm_vm) => *warm_vm,
                Preallocated::Slot(slot) => {
                    let built = pool.build(Arc::clone(template_vm), slot, timings).await;
                    built.map_err(|error| error.to_string())?
                }
            };
            self.assign(id, warm_vm, env, timings).await
        };
        match claimed.await {
            Ok(launched) => {
                pool.claimed();
                self.metrics.claimed(ahead, true);
                Ok(Some(launched))
            }
            Err(error) => {
                let template = pool.template_name();
                tracing::warn!(sandbox_id = id, template, error, "clone failed");
                pool.failed();
                self.metrics.claimed(ahead, false);
                Ok(None)
            }
        }
    }

    /// Lets a warm VM go as this sandbox.
    async fn assign(
        &self,
        id: &str,
        warm_vm: WarmVm,
        env: &BTreeMap<String, String>,
        timings: &mut StepTimings,
    ) -> Result<LaunchedMachine, String> {
        let BuiltMachine {
            mut machine,
            stream,
            frames,
            disk_size,
        } = warm_vm.built;
        machine.name().assign(id);
        machine.start().await;
        // The identity is on its way before the first instruction has run.
        let rest = match warm_vm.template_vm.link {
            AgentLink::Kept { rest } => rest,
            AgentLink::Broken => return Err("A template VM's link is not kept".into()),
        };
        let link = Link::resume(stream, rest);
        timings.step("claim");
        self.take_identity(id, &mut machine, &link, env).await?;
        timings.step("identity");
        Ok(LaunchedMachine {
            machine,
            link,
            frames,
            disk_size,
            base_memory: Some(Arc::clone(&warm_vm.template_vm.base_memory)),
        })
    }
}
