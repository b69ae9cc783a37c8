//! `DELETE /sandboxes/{id}`.

use crate::Body;
use crate::error::ApiError;
use crate::state::{AppState, no_content};
use engine::error::EngineError;
use engine::owner::Caller;
use hyper::Response;
use std::sync::Arc;

/// Kills a sandbox. It is gone for every client when this answers; its process ends in the
/// background.
///
/// # Errors
/// [`EngineError::SandboxNotFound`], [`EngineError::KillFailed`].
pub async fn handle(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    if app.registry.kill(who, id).await? {
        return Ok(no_content());
    }
    Err(EngineError::no_sandbox(id).into())
}
