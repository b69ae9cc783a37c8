//! `GET /sandboxes/{id}` and its logs.

use crate::Body;
use crate::control::view::DetailView;
use crate::error::{ApiError, json_response};
use crate::route::ApiVersion;
use crate::state::AppState;
use engine::owner::Caller;
use hyper::{Response, StatusCode};
use serde_json::json;
use std::sync::Arc;

/// Everything about one sandbox.
///
/// # Errors
/// [`engine::error::EngineError::SandboxNotFound`].
pub fn handle(app: &Arc<AppState>, who: &Caller, id: &str) -> Result<Response<Body>, ApiError> {
    let seen = app.look(who, id)?;
    let view = DetailView::new(&seen, app.options.domain.as_deref());
    Ok(json_response(StatusCode::OK, &view))
}

/// Logs of the sandbox's envd, of which this one keeps none: the list is truly empty.
///
/// # Errors
/// [`engine::error::EngineError::SandboxNotFound`].
pub fn logs(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    version: ApiVersion,
) -> Result<Response<Body>, ApiError> {
    app.look(who, id)?;
    let none = match version {
        ApiVersion::V1 => json!({ "logs": [], "logEntries": [] }),
        ApiVersion::V2 => json!({ "logs": [] }),
    };
    Ok(json_response(StatusCode::OK, &none))
}
