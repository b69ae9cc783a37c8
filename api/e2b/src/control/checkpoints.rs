//! `/sandboxes/{id}/checkpoints`, which E2B does not have.

use crate::Body;
use crate::control::view::time;
use crate::error::{ApiError, json_response};
use crate::linger::LingeringBody;
use crate::state::{AppState, no_content};
use engine::owner::Caller;
use engine::store::checkpoint_tree::CheckpointView;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Deserialize)]
struct CheckpointRequest {
    name: Option<String>,
}

/// Stores a checkpoint of a sandbox in its tree.
///
/// # Errors
/// As [`engine::registry::SandboxRegistry::checkpoint`].
pub async fn take(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: CheckpointRequest = app.json(request.into_body()).await?;
    let taken = app
        .registry
        .checkpoint((who, id), wanted.name.as_deref())
        .await?;
    Ok(json_response(StatusCode::CREATED, &view(&taken)))
}

/// Lists a sandbox's checkpoints, and where it descends from.
///
/// # Errors
/// [`engine::error::EngineError::SandboxNotFound`].
pub fn list(app: &Arc<AppState>, who: &Caller, id: &str) -> Result<Response<Body>, ApiError> {
    let listing = app.registry.checkpoints(who, id)?;
    let views: Vec<Value> = listing.checkpoints.iter().map(view).collect();
    let list = json!({
        "checkpoints": views,
        "current": listing.current,
        "bytes": listing.bytes,
        "limit": app.registry.max_checkpoints(),
    });
    Ok(json_response(StatusCode::OK, &list))
}

/// Removes a checkpoint.
///
/// # Errors
/// As [`engine::registry::SandboxRegistry::delete_checkpoint`].
pub async fn delete(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    word: &str,
) -> Result<Response<Body>, ApiError> {
    app.registry.delete_checkpoint((who, id), word).await?;
    Ok(no_content())
}

fn view(seen: &CheckpointView) -> Value {
    json!({
        "checkpointID": seen.id,
        "name": seen.name,
        "parentID": seen.parent,
        "createdAt": time(seen.created_at),
        "pages": seen.pages,
        "blocks": seen.blocks,
        "bytes": seen.bytes,
    })
}
