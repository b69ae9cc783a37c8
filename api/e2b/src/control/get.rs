//! `GET /sandboxes/{id}` and its logs.

use crate::Body;
use crate::control::view::Detail;
use crate::dispatch::App;
use crate::error::{ApiError, json_response};
use crate::route::Version;
use engine::error::EngineError;
use hyper::{Response, StatusCode};
use serde_json::json;
use std::sync::Arc;

/// Everything about one sandbox.
///
/// # Errors
/// [`EngineError::SandboxNotFound`].
pub fn handle(app: &Arc<App>, id: &str) -> Result<Response<Body>, ApiError> {
    let missing = || EngineError::no_sandbox(id);
    let seen = app.registry.look(id).ok_or_else(missing)?;
    let view = Detail::new(&seen, app.options.domain.as_deref());
    Ok(json_response(StatusCode::OK, &view))
}

/// Logs of the sandbox's envd, of which this one keeps none: the list is truly empty.
///
/// # Errors
/// [`EngineError::SandboxNotFound`].
pub fn logs(app: &Arc<App>, id: &str, version: Version) -> Result<Response<Body>, ApiError> {
    app.sandbox(id)?;
    let none = match version {
        Version::V1 => json!({ "logs": [], "logEntries": [] }),
        Version::V2 => json!({ "logs": [] }),
    };
    Ok(json_response(StatusCode::OK, &none))
}
