//! Templates, read only (api/PROTOCOL.md §5.1).

use crate::Body;
use crate::control::view::{ENVD_VERSION, time};
use crate::error::{ApiError, json_response};
use crate::state::AppState;
use engine::error::EngineError;
use engine::template::Template;
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// `GET /templates`, `GET /v2/templates`.
#[must_use]
pub fn list(app: &Arc<AppState>) -> Response<Body> {
    let all = app.registry.templates().all();
    let all: Vec<_> = all.iter().map(|template| view(template)).collect();
    json_response(StatusCode::OK, &all)
}

/// `GET /templates/{name}`.
///
/// # Errors
/// [`EngineError::TemplateNotFound`].
pub fn get(app: &Arc<AppState>, name: &str) -> Result<Response<Body>, ApiError> {
    let mut view = view(&*find(app, name)?);
    view["builds"] = json!([]);
    Ok(json_response(StatusCode::OK, &view))
}

/// `GET /templates/aliases/{name}`: whether there is such a template.
///
/// # Errors
/// [`EngineError::TemplateNotFound`].
pub fn alias(app: &Arc<AppState>, name: &str) -> Result<Response<Body>, ApiError> {
    let template = find(app, name)?;
    let view = json!({ "templateID": template.name, "public": false });
    Ok(json_response(StatusCode::OK, &view))
}

fn find(app: &Arc<AppState>, name: &str) -> Result<Arc<Template>, ApiError> {
    let found = app.template(name);
    found.ok_or_else(|| EngineError::no_template(name).into())
}

/// Times are those of the image file; the build id is made from its name, size and time, so that it
/// changes when the image does.
fn view(t: &Template) -> Value {
    let metadata = std::fs::metadata(&t.image).ok();
    let size = metadata.as_ref().map_or(0, std::fs::Metadata::len);
    let modified = metadata.as_ref().and_then(|m| m.modified().ok());
    let modified = modified
        .and_then(|m| Timestamp::try_from(m).ok())
        .unwrap_or_default();
    let mut names = vec![t.name.clone()];
    names.extend(t.aliases.iter().cloned());
    json!({
        "templateID": t.name,
        "buildID": build_id(t, size, modified),
        "cpuCount": t.cpu_count,
        "memoryMB": t.memory_mb,
        "diskSizeMB": t.disk_size_mb.unwrap_or(size >> 20),
        "public": false,
        "aliases": names,
        "names": names,
        "createdAt": time(modified),
        "updatedAt": time(modified),
        "createdBy": null,
        "lastSpawnedAt": null,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": ENVD_VERSION,
        "buildStatus": if metadata.is_some() { "ready" } else { "error" },
    })
}

/// In the shape of a UUID, which clients expect.
fn build_id(t: &Template, size: u64, modified: Timestamp) -> String {
    let hash = Sha256::digest(format!("{}\0{size}\0{modified}", t.name));
    let hex = hex::encode(&hash[..16]);
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
