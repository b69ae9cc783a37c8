//! Fork: more sandboxes that go on where one is now, or was at a checkpoint.

use crate::error::{EngineError, chain};
use crate::facts::{SandboxFacts, SandboxOrigin};
use crate::owner::Caller;
use crate::registry::new_sandbox::{CreationSource, NewSandbox};
use crate::registry::sandboxes::SandboxRegistry;
use crate::restore_point::{BootSource, RestorePoint};
use crate::sandbox::Sandbox;
use crate::timings::StepTimings;
use control::Saved;
use futures_util::{StreamExt as _, stream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many children are made at one time.
const AT_ONCE: usize = 8;
/// From so many machines on it is worth to merge their memory's layers once for all.
const MERGE: usize = 3;
/// Bytes of a page of memory.
const PAGE: u64 = 4096;

/// How a running sandbox was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureTimings {
    /// For so long it was copied while it ran.
    pub ahead: Duration,
    /// For so long it was quiesced.
    pub quiesced: Duration,
    /// Pages that were copied while it was.
    pub quiesced_pages: u64,
}

impl From<Saved> for CaptureTimings {
    fn from(saved: Saved) -> Self {
        Self {
            ahead: Duration::from_nanos(saved.ahead_ns),
            quiesced: Duration::from_nanos(saved.park_ns + saved.write_ns),
            quiesced_pages: saved.quiesced_pages,
        }
    }
}

/// What each child of a fork has been made into.
pub(super) type ForkedChildren = Vec<Result<Arc<Sandbox>, EngineError>>;

impl SandboxRegistry {
    /// Makes `count` sandboxes that go on where a running one is now, or where one in
    /// any state was at a checkpoint, each with its own id, token, clock and randomness, and with
    /// its parent's owner. A result for each; and how the running one was saved.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`], [`EngineError::CheckpointNotFound`],
    /// [`EngineError::TooManySandboxes`], [`EngineError::LimitReached`], [`EngineError::Conflict`],
    /// [`EngineError::NoMemory`], [`EngineError::PauseFailed`]: there are no children.
    pub async fn fork(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        checkpoint: Option<&str>,
        count: usize,
        timeout: Duration,
    ) -> Result<(ForkedChildren, Option<CaptureTimings>), EngineError> {
        let begin = Instant::now();
        let owner = who.heir(self.own(who, id)?.as_ref());
        self.admit_machine(&owner)?;
        let (facts, point, pages, saved) = match checkpoint {
            None => {
                self.admission.check()?;
                self.accounts.ask(&owner, count)?;
                let (facts, point, saved) = self.present(id).await?;
                (facts, point, saved.memory_pages, Some(saved.into()))
            }
            Some(word) => {
                let (facts, tree) = self.tree_of(who, id)?;
                let (node, point) = self.checkpoint_point(&facts, &tree, word).await?;
                self.accounts.ask(&owner, count)?;
                (facts, point, node.pages, None)
            }
        };
        self.admission.check_for(weight(&point, pages, count))?;
        let template = self.template_of(&facts.origin)?;
        let source = CreationSource::Loaded(template, for_many(point, count).await?);
        let env = self.variables.asked(&facts.env);
        let child = NewSandbox::child((owner, &facts), env, source, timeout);
        // A task of its own: a client that leaves finds all of them.
        let registry = Arc::clone(self);
        let work = tokio::spawn(async move {
            let children = (0..count).map(|_| {
                let (registry, child) = (Arc::clone(&registry), child.clone());
                async move {
                    registry
                        .create_asked(child, &mut StepTimings::default())
                        .await
                }
            });
            let children: ForkedChildren = stream::iter(children).buffered(AT_ONCE).collect().await;
            let made = children.iter().filter(|child| child.is_ok()).count();
            registry.metrics.forked(count, made, begin.elapsed());
            children
        });
        let lost = |_| EngineError::StartFailed("The work was given up".into());
        Ok((work.await.map_err(lost)?, saved))
    }

    /// A restore point of a running sandbox, as it is now.
    async fn present(
        self: &Arc<Self>,
        id: &str,
    ) -> Result<(Arc<SandboxFacts>, Arc<RestorePoint>, Saved), EngineError> {
        let captured = self.capture(id).await?;
        let facts = captured.busy.sandbox.present_facts();
        let point = RestorePoint {
            source: BootSource::Image(captured.image),
            processes: captured.processes,
            origin: SandboxOrigin {
                forked: true,
                ..facts.origin.clone()
            },
        };
        Ok((facts, Arc::new(point), captured.saved))
    }
}

/// Bytes that are taken at once when so many machines begin at a restore point whose delta layer
/// has so many pages.
fn weight(point: &RestorePoint, pages: u64, count: usize) -> u64 {
    match &point.source {
        BootSource::Image(image) if image.delta.is_some() => {
            weight_of(pages, count, || image.base_memory.resident_bytes())
        }
        _ => 0,
    }
}

/// Each has the layer as its own, or all of them share one merged memory.
fn weight_of(pages: u64, count: usize, base_memory: impl FnOnce() -> u64) -> u64 {
    let delta = pages.saturating_mul(PAGE);
    match count {
        0..MERGE => delta.saturating_mul(count as u64),
        _ => delta.saturating_add(base_memory()),
    }
}

/// The same restore point, for so many machines to begin at.
async fn for_many(
    point: Arc<RestorePoint>,
    count: usize,
) -> Result<Arc<RestorePoint>, EngineError> {
    let BootSource::Image(image) = &point.source else {
        return Ok(point);
    };
    if count < MERGE {
        return Ok(point);
    }
    let merged = Arc::clone(image).merged().await;
    let merged = merged.map_err(|error| EngineError::PauseFailed(chain(&error)))?;
    Ok(Arc::new(RestorePoint {
        source: BootSource::Image(merged),
        processes: point.processes.clone(),
        origin: point.origin.clone(),
    }))
}

#[cfg(test)]
mod test {
    use super::weight_of;

    #[test]
    fn children_are_weighed_one_by_one_until_they_share() {
        let weighed = [1, 2, 3, 100].map(|count| weight_of(10, count, || 1_000_000));
        assert_eq!(weighed, [40_960, 81_920, 1_040_960, 1_040_960]);
    }
}
