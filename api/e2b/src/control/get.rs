//! `GET /sandboxes/{id}`.

use crate::Body;
use crate::control::view::DetailView;
use crate::error::{ApiError, json_response};
use crate::state::AppState;
use engine::owner::Caller;
use hyper::{Response, StatusCode};
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
