//! `POST /sandboxes/{id}/pause` (api/PROTOCOL.md §4.7).

use crate::Body;
use crate::dispatch::{App, no_content};
use crate::error::ApiError;
use crate::linger::Lingering;
use engine::facts::KeptState;
use hyper::{Request, Response};
use serde::Deserialize;
use std::sync::Arc;

/// `requireHealthyGuest` needs no field: a guest that does not answer cannot lose more by being saved.
#[derive(Deserialize)]
struct Pause {
    memory: Option<bool>,
}

/// Pauses a sandbox. It can be resumed when this answers.
///
/// # Errors
/// Those of [`engine::registry::SandboxRegistry::pause`].
pub async fn handle(
    app: &Arc<App>,
    id: &str,
    request: Request<Lingering>,
) -> Result<Response<Body>, ApiError> {
    let wanted: Pause = app.json(request.into_body()).await?;
    let kept = match wanted.memory {
        Some(false) => KeptState::Files,
        _ => KeptState::Memory,
    };
    app.registry.pause(id, kept).await?;
    Ok(no_content())
}
