//! `DELETE /sandboxes/{id}`.

use crate::Body;
use crate::app::{App, no_content};
use crate::error::ApiError;
use hyper::Response;
use std::sync::Arc;

/// Kills a sandbox. It is gone for every client when this answers; its process ends in the
/// background.
///
/// # Errors
/// [`ApiError::SandboxNotFound`], [`ApiError::KillFailed`].
pub async fn handle(app: &Arc<App>, id: &str) -> Result<Response<Body>, ApiError> {
    if app.registry.kill(id).await? || app.registry.kill_unreadable(id).await? {
        return Ok(no_content());
    }
    Err(ApiError::SandboxNotFound(id.chars().take(64).collect()))
}
