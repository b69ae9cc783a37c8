//! `POST /sandboxes/{id}/pause` (api/PROTOCOL.md §4.7).

use crate::Body;
use crate::error::ApiError;
use crate::linger::LingeringBody;
use crate::state::{AppState, no_content};
use engine::facts::KeptState;
use engine::owner::Caller;
use hyper::{Request, Response};
use serde::Deserialize;
use std::sync::Arc;

/// `requireHealthyGuest` needs no field: a guest that does not answer cannot lose more by being
/// saved.
#[derive(Deserialize)]
struct PauseRequest {
    memory: Option<bool>,
}

/// Pauses a sandbox. It can be resumed when this answers.
///
/// # Errors
/// Those of [`engine::registry::SandboxRegistry::pause`].
pub async fn handle(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: PauseRequest = app.json(request.into_body()).await?;
    app.registry.pause((who, id), kept(wanted.memory)).await?;
    Ok(no_content())
}

/// What the field `memory` of a request asks for: everything, unless it is false.
pub(super) const fn kept(memory: Option<bool>) -> KeptState {
    match memory {
        Some(false) => KeptState::Files,
        Some(true) | None => KeptState::Memory,
    }
}
