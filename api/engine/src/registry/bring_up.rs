//! A machine for a sandbox: cloned, restored or booted, with its identity taken.

use crate::error::EngineError;
use crate::launch::plan::{LaunchPlan, LaunchedMachine};
use crate::machine::name::MachineName;
use crate::registry::reserve::Preallocated;
use crate::registry::sandboxes::SandboxRegistry;
use crate::restore_point::{BootSource, RestorePoint};
use crate::template::Template;
use crate::timings::StepTimings;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often a clone is tried before the sandbox boots.
const CLONE_TRIES: usize = 2;

/// A machine with its identity.
pub(super) struct IdentifiedMachine {
    pub(super) launched: LaunchedMachine,
    /// How it came about, for the log and the metrics.
    pub(super) way: &'static str,
}

/// What a sandbox is to begin with.
#[derive(Clone, Copy)]
pub(super) struct LaunchSource<'a> {
    /// Its kernel and image, and the pool of its clones.
    pub(super) template: &'a Arc<Template>,
    /// Where it goes on; `None`: at the template's beginning.
    pub(super) restore_point: Option<&'a RestorePoint>,
}

impl SandboxRegistry {
    /// A machine that has taken its identity: a clone if the template can be cloned, else one that
    /// boots. A clone that fails costs time, not the creation: another one is tried, then a boot.
    pub(super) async fn bring_up(
        &self,
        id: &str,
        source: LaunchSource<'_>,
        env: &BTreeMap<String, String>,
        mut preallocated: Option<Preallocated>,
        timings: &mut StepTimings,
    ) -> Result<IdentifiedMachine, EngineError> {
        let template = source.template;
        if let Some(point) = source.restore_point {
            let launched = self.launch(id, (template, &point.source), env, preallocated, timings);
            let (launched, way) = (launched.await?, "image");
            return Ok(IdentifiedMachine { launched, way });
        }
        if let Some(pool) = self.pools.of(template) {
            let template_vm = pool.template_vm(self.launcher.boot_timeout).await;
            timings.step("wait");
            let tries = template_vm.iter().cycle().take(CLONE_TRIES);
            for template_vm in tries {
                let preallocated = preallocated.take();
                let claimed = self.claim(id, (&pool, template_vm), env, preallocated, timings);
                match claimed.await? {
                    Some(launched) => {
                        let way = "clone";
                        return Ok(IdentifiedMachine { launched, way });
                    }
                    None => timings.step("failed"),
                }
            }
        } else {
            timings.step("wait");
        }
        if template.start_cmd.is_some() {
            let why = "Its template has a start_cmd, which only clones have running, and there is \
                       no template VM to clone: the log says why";
            return Err(EngineError::StartFailed(why.into()));
        }
        let boot = (template, &BootSource::Boot);
        let launched = self.launch(id, boot, env, preallocated, timings);
        let (launched, way) = (launched.await?, "boot");
        Ok(IdentifiedMachine { launched, way })
    }

    /// A machine whose agent says Hello: it boots, or goes on with a broken link.
    async fn launch(
        &self,
        id: &str,
        (template, source): (&Arc<Template>, &BootSource),
        env: &BTreeMap<String, String>,
        preallocated: Option<Preallocated>,
        timings: &mut StepTimings,
    ) -> Result<LaunchedMachine, EngineError> {
        let slot = match preallocated {
            Some(Preallocated::Slot(slot)) => slot,
            // Of no use for this one: its own slot is given back.
            Some(Preallocated::WarmVm(_)) | None => self.slot().await?,
        };
        let plan = LaunchPlan {
            name: MachineName::new(id),
            template: Arc::clone(template),
            source: source.clone(),
            trial: false,
            slot,
        };
        let launched = async {
            let launched = self.launcher.launch(plan, timings).await;
            let mut launched = launched.map_err(|error| error.to_string())?;
            let LaunchedMachine { machine, link, .. } = &mut launched;
            self.take_identity(id, machine, link, env).await?;
            Ok(launched)
        };
        let launched = launched.await.map_err(|error: String| {
            let template = &template.name;
            tracing::error!(sandbox_id = id, template, error, "not started");
            EngineError::StartFailed(error)
        })?;
        timings.step("identity");
        Ok(launched)
    }
}
