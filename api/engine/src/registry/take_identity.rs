//! A machine becomes a sandbox's: its identity is taken, or it ends.

use crate::launch::identity::identify;
use crate::machine::end::MachineEnd;
use crate::machine::handle::{LAST_WORD, VmProcess};
use crate::registry::sandboxes::SandboxRegistry;
use futures_util::FutureExt as _;
use link::Link;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::timeout;

impl SandboxRegistry {
    /// Makes the machine this sandbox, or ends it.
    pub(super) async fn take_identity(
        &self,
        id: &str,
        machine: &mut VmProcess,
        link: &Link,
        env: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let generation = self.generation.fetch_add(1, Relaxed);
        let bound = self.launcher.boot_timeout;
        let taken = tokio::select! {
            biased;
            end = machine.ended() => Err(end_words(id, end.as_deref())),
            taken = identify(link, id, generation, env, bound) => taken,
        };
        let taken = match taken {
            // Most often the machine is ending: its own word is better.
            Err(why) if link.closed().now_or_never().is_some() => {
                let end = timeout(LAST_WORD, machine.ended()).await;
                Err(end.map_or(why, |end| end_words(id, end.as_deref())))
            }
            other => other,
        };
        if taken.is_err() {
            machine.give_up(id).await;
        }
        taken
    }
}

/// How a machine ended, after its console is in the log.
pub(super) fn end_words(id: &str, end: Option<&MachineEnd>) -> String {
    let Some(end) = end else {
        return "its task was lost".to_owned();
    };
    end.log_console(id);
    end.to_string()
}
