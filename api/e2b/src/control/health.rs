//! `GET /health`: that the server answers, which walls stand around sandboxes on its host, and what
//! they are limited in.

use crate::body::Body;
use crate::error::json_response;
use crate::state::AppState;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

/// Answers anybody: it names walls, and tells nothing else of the host.
pub fn handle(app: &AppState) -> Response<Body> {
    let walls = app.registry.walls();
    let resources = app.registry.resources();
    let body = json!({
        "status": "ok",
        "jail": {
            "mode": walls.mode,
            "standing": walls.standing,
            "missing": walls.missing,
        },
        "resources": {
            "mode": resources.mode,
            "standing": resources.standing,
            "missing": resources.missing,
        },
    });
    let mut response = json_response(StatusCode::OK, &body);
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
