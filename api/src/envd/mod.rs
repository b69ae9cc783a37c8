//! The envd facade: port 49983 of a sandbox.

use crate::{Body, body, sandbox::Sandbox};
use hyper::{Request, Response, body::Incoming};
use std::sync::Arc;

/// Answers one request to port 49983 of `sandbox`. The caller has resolved the sandbox; the access
/// token is checked here (e2b.md §3.1). Never fails: errors are responses. A body that cannot be
/// finished because the sandbox ended yields an error, so that the connection is dropped.
pub async fn serve(sandbox: &Arc<Sandbox>, request: Request<Incoming>) -> Response<Body> {
    let _ = (sandbox, request);
    let mut response = Response::new(body::full("not built yet"));
    *response.status_mut() = hyper::StatusCode::NOT_IMPLEMENTED;
    response
}

/// Whether `query` of `GET|POST /files` carries a signature made with `token` (e2b.md §3.6).
/// Used to find the sandbox of a signed URL that does not name it (§1.6, rule 4). Only compares the
/// hash; expiry is checked when the request is served. `write` is true for `POST`.
#[must_use]
pub fn signature_matches(token: &str, query: &str, write: bool) -> bool {
    let _ = (token, query, write);
    false
}
