//! `GET /sandboxes/{id}/metrics` and `GET /sandboxes/metrics` (e2b.md §2.5).

use crate::Body;
use crate::app::App;
use crate::error::{ApiError, json_response};
use hyper::{Response, StatusCode};
use serde_json::json;
use std::sync::Arc;

/// Measurements of one sandbox: none are taken yet, and an empty list is a legal answer.
///
/// # Errors
/// [`ApiError::SandboxNotFound`].
pub async fn of_one(app: &Arc<App>, id: &str) -> Result<Response<Body>, ApiError> {
    app.sandbox(id)?;
    Ok(json_response(StatusCode::OK, &json!([])))
}

/// Measurements of many sandboxes: none are taken yet.
///
/// # Errors
/// None.
pub async fn of_many(_app: &Arc<App>, _query: Option<&str>) -> Result<Response<Body>, ApiError> {
    Ok(json_response(StatusCode::OK, &json!({ "sandboxes": {} })))
}
