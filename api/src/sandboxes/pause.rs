//! `POST /sandboxes/{id}/pause` (api/PROTOCOL.md §4.7).

use crate::Body;
use crate::app::{App, no_content};
use crate::error::ApiError;
use crate::linger::Lingering;
use crate::sandbox::Kept;
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
/// Those of [`crate::registry::Registry::pause`].
pub async fn handle(
    app: &Arc<App>,
    id: &str,
    request: Request<Lingering>,
) -> Result<Response<Body>, ApiError> {
    let wanted: Pause = app.json(request.into_body()).await?;
    let kept = match wanted.memory {
        Some(false) => Kept::Files,
        _ => Kept::Memory,
    };
    app.registry.pause(id, kept).await?;
    Ok(no_content())
}
