//! Where a request goes: the single-port rules (api/PROTOCOL.md §2.1) and the whole control-plane
//! API, on one page each.

use crate::error::{ApiError, ProxyError};
use crate::ports::ENVD_PORT;
use crate::query::percent_decode;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{HeaderMap, Method, Uri};

/// Which half of the server a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestTarget {
    /// The control plane.
    Control,
    /// A port of a sandbox.
    Data {
        /// The sandbox.
        id: String,
        /// The port.
        port: u16,
    },
    /// `/files` with a signature and no sandbox named.
    Signed,
}

/// Applies the rules, in order.
///
/// # Errors
/// A request that names a sandbox, but not well.
pub fn target(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<RequestTarget, ProxyError> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = uri.host().or(host).and_then(sandbox_host);
    // Whoever names a program's port this way means the program, which may have keys of its own.
    if let Some(Ok((id, port))) = &host
        && *port != ENVD_PORT
    {
        let (id, port) = (id.clone(), *port);
        return Ok(RequestTarget::Data { id, port });
    }
    if is_control(uri.path(), headers) {
        return Ok(RequestTarget::Control);
    }
    match (
        headers.get("e2b-sandbox-id"),
        headers.get("e2b-sandbox-port"),
    ) {
        (Some(id), Some(port)) => {
            let id = sandbox_id(id.to_str().unwrap_or_default()).ok_or(ProxyError::Id)?;
            let port = port_number(port.to_str().unwrap_or_default()).ok_or(ProxyError::Port)?;
            return Ok(RequestTarget::Data { id, port });
        }
        (Some(_), None) => return Err(ProxyError::MissingHeader("E2b-Sandbox-Port")),
        (None, Some(_)) => return Err(ProxyError::MissingHeader("E2b-Sandbox-Id")),
        (None, None) => {}
    }
    if let Some(found) = host {
        return found.map(|(id, port)| RequestTarget::Data { id, port });
    }
    let files = uri.path() == "/files" && matches!(*method, Method::GET | Method::POST);
    if files
        && uri
            .query()
            .is_some_and(|q| q.split('&').any(|p| p.starts_with("signature=")))
    {
        return Ok(RequestTarget::Signed);
    }
    Ok(RequestTarget::Control)
}

/// Rule 1: an API key, or a bearer token on the paths that take one.
fn is_control(path: &str, headers: &HeaderMap) -> bool {
    if headers.contains_key("x-api-key") {
        return true;
    }
    let bearer = headers
        .get(AUTHORIZATION)
        .is_some_and(|v| v.as_bytes().starts_with(b"Bearer "));
    bearer
        && ["/volumecontent", "/teams", "/templates"]
            .iter()
            .any(|p| path.starts_with(p))
}

/// Rule 3: a host whose leftmost label is `{port}-{id}` or `{port}-{id}-{client}`. `None`: the host
/// names no sandbox; an error: it tries to.
#[must_use]
pub fn sandbox_host(host: &str) -> Option<Result<(String, u16), ProxyError>> {
    let label = host.split(['.', ':']).next().unwrap_or_default();
    let (port, id) = label.split_once('-')?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let Some(port) = port_number(port) else {
        return Some(Err(ProxyError::Port));
    };
    // Host names have no case.
    Some(
        sandbox_id(&id.to_ascii_lowercase())
            .map(|id| (id, port))
            .ok_or(ProxyError::Host),
    )
}

/// A sandbox id without the `-{client}` that old clients append; `None` if it is not `[a-z0-9]+`.
#[must_use]
pub fn sandbox_id(text: &str) -> Option<String> {
    let id = text.split_once('-').map_or(text, |(id, _client)| id);
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (!id.is_empty() && id.len() <= 64 && id.bytes().all(good)).then(|| id.to_owned())
}

fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// Which shape of a request: `/…` or `/v2/…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiVersion {
    /// Without a prefix.
    V1,
    /// `/v2`.
    V2,
}

/// Every endpoint of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `GET /health`
    Health,
    /// `POST /sandboxes`, `POST /v2/sandboxes`
    Create(ApiVersion),
    /// `POST /sandboxes:batch`
    Batch,
    /// `GET /sandboxes`, `GET /v2/sandboxes`
    List(ApiVersion),
    /// `GET /sandboxes/metrics`
    MetricsOfMany,
    /// `GET /sandboxes/{id}`
    Get(String),
    /// `DELETE /sandboxes/{id}`
    Kill(String),
    /// `POST /sandboxes/{id}/timeout`
    Timeout(String),
    /// Replaces what a sandbox may reach.
    Network(String),
    /// `POST /sandboxes/{id}/refreshes`
    Refresh(String),
    /// `POST /sandboxes/{id}/connect`, `POST /v2/…`
    Connect(String, ApiVersion),
    /// `GET /sandboxes/{id}/metrics`
    Metrics(String),
    /// `GET /sandboxes/{id}/logs`, `GET /v2/…`
    Logs(String, ApiVersion),
    /// `GET /templates`, `GET /v2/templates`
    Templates,
    /// `GET /templates/{name}`
    Template(String),
    /// `GET /templates/aliases/{name}`
    TemplateAlias(String),
    /// `POST /sandboxes/{id}/pause`
    Pause(String),
    /// `POST /sandboxes/{id}/resume`
    Resume(String),
    /// `POST /sandboxes/{id}/fork`
    Fork(String),
    /// `POST /sandboxes/{id}/reset`
    Reset(String),
    /// `POST /sandboxes/{id}/checkpoints`
    Checkpoint(String),
    /// `GET /sandboxes/{id}/checkpoints`
    Checkpoints(String),
    /// `DELETE /sandboxes/{id}/checkpoints/{checkpoint}`
    DeleteCheckpoint(String, String),
    /// `POST /sandboxes/{id}/snapshots`
    Snapshot(String),
    /// `GET /snapshots`
    Snapshots,
    /// `DELETE /templates/{name}`
    DeleteTemplate(String),
    /// Part of E2B's API, not of this version: what it is.
    NotYet(&'static str),
}

/// Finds the endpoint. Path segments are decoded after splitting, so that an encoded `/` stays
/// inside its segment.
///
/// # Errors
/// [`ApiError::NoRoute`], [`ApiError::Method`], or [`ApiError::Invalid`] for a broken escape.
pub fn route(method: &Method, path: &str) -> Result<Route, ApiError> {
    let broken = || ApiError::Invalid(format!("The path {} does not decode", shorten(path)));
    let segments: Vec<String> = path
        .trim_start_matches('/')
        .split('/')
        .take(8)
        .map(|segment| percent_decode(segment, false).ok_or_else(broken))
        .collect::<Result<_, _>>()?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let names = || (method.to_string(), shorten(path));
    find(method, &segments).ok_or_else(|| {
        let (method, path) = names();
        let methods = [
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ];
        if methods.iter().any(|other| find(other, &segments).is_some()) {
            ApiError::Method { method, path }
        } else {
            ApiError::NoRoute { method, path }
        }
    })
}

/// The API on one page.
fn find(method: &Method, segments: &[&str]) -> Option<Route> {
    use ApiVersion::{V1, V2};
    use Route::{
        Batch, Checkpoint, Checkpoints, Connect, Create, DeleteCheckpoint, DeleteTemplate, Fork,
        Get, Health, Kill, List, Logs, Metrics, MetricsOfMany, Network, NotYet, Pause, Refresh,
        Reset, Resume, Snapshot, Snapshots, Template, TemplateAlias, Templates, Timeout,
    };
    let id = |id: &str| sandbox_id(id).unwrap_or_else(|| id.to_owned());
    Some(match (method.as_str(), segments) {
        ("GET", ["health"]) => Health,

        ("POST", ["sandboxes"]) => Create(V1),
        ("POST", ["v2", "sandboxes"]) => Create(V2),
        ("POST", ["sandboxes:batch"]) => Batch,
        ("GET", ["sandboxes"]) => List(V1),
        ("GET", ["v2", "sandboxes"]) => List(V2),
        ("GET", ["sandboxes", "metrics"]) => MetricsOfMany,
        ("GET", ["sandboxes", s]) => Get(id(s)),
        ("DELETE", ["sandboxes", s]) => Kill(id(s)),
        ("POST", ["sandboxes", s, "timeout"]) => Timeout(id(s)),
        ("POST", ["sandboxes", s, "refreshes"]) => Refresh(id(s)),
        ("POST", ["sandboxes", s, "connect"]) => Connect(id(s), V1),
        ("POST", ["v2", "sandboxes", s, "connect"]) => Connect(id(s), V2),
        ("GET", ["sandboxes", s, "metrics"]) => Metrics(id(s)),
        ("GET", ["sandboxes", s, "logs"]) => Logs(id(s), V1),
        ("GET", ["v2", "sandboxes", s, "logs"]) => Logs(id(s), V2),
        ("POST", ["sandboxes", s, "pause"]) => Pause(id(s)),
        ("POST", ["sandboxes", s, "resume"]) => Resume(id(s)),
        ("POST", ["sandboxes", s, "snapshots"]) => Snapshot(id(s)),
        ("POST", ["sandboxes", s, "fork"]) => Fork(id(s)),
        ("POST", ["sandboxes", s, "reset"]) => Reset(id(s)),
        ("POST", ["sandboxes", s, "checkpoints"]) => Checkpoint(id(s)),
        ("GET", ["sandboxes", s, "checkpoints"]) => Checkpoints(id(s)),
        ("DELETE", ["sandboxes", s, "checkpoints", c]) => DeleteCheckpoint(id(s), (*c).to_owned()),
        ("PUT", ["sandboxes", s, "network"]) => Network(id(s)),
        ("GET", ["snapshots"]) => Snapshots,

        ("GET", ["templates"] | ["v2", "templates"]) => Templates,
        ("GET", ["templates", "aliases", name]) => TemplateAlias((*name).to_owned()),
        ("GET", ["templates", name]) => Template((*name).to_owned()),
        ("POST", ["templates"] | ["v2" | "v3", "templates"]) => NotYet("Building a template"),
        ("POST" | "DELETE", ["templates", "tags"]) => NotYet("Tagging a template"),
        ("DELETE", ["templates", name]) => DeleteTemplate((*name).to_owned()),
        ("POST", ["templates", _]) => NotYet("Changing a template"),
        ("PATCH", ["templates", _] | ["v2", "templates", _]) => NotYet("Changing a template"),
        ("GET", ["templates", _, "tags"]) => NotYet("Tagging a template"),
        ("GET" | "POST", ["templates", _, "files" | "builds", ..])
        | ("POST", ["v2", "templates", _, "builds", _]) => NotYet("Building a template"),

        ("GET" | "POST", ["volumes"]) | ("GET" | "DELETE", ["volumes", _]) => NotYet("A volume"),
        (_, ["volumecontent", ..]) => NotYet("A volume"),
        ("GET" | "POST", ["secrets"]) | ("GET" | "POST" | "DELETE", ["secrets", _]) => {
            NotYet("A secret")
        }
        ("GET", ["teams"]) => NotYet("Listing teams"),
        _ => return None,
    })
}

/// The paths of envd that only its own control plane uses; from outside they do not exist.
#[must_use]
pub fn reserved(path: &str) -> Option<&'static str> {
    const RESERVED: [&str; 7] = [
        "/init",
        "/freeze",
        "/unfreeze",
        "/fsfreeze",
        "/fsthaw",
        "/collapse",
        "/upgrade",
    ];
    RESERVED
        .into_iter()
        .find(|reserved| *reserved == path.trim_end_matches('/'))
}

/// A path as far as it is worth repeating to the one who sent it.
fn shorten(path: &str) -> String {
    path.chars().take(128).collect()
}

/// Fuzz entry point for what decides about a request before anything else does.
pub fn fuzz_route(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(Ok((id, port))) = sandbox_host(text) {
        assert!(
            port != 0 && sandbox_id(&id).as_deref() == Some(&id),
            "{text}"
        );
    }
    for method in [Method::GET, Method::POST, Method::DELETE] {
        let _ = route(&method, text);
    }
    let _ = reserved(text);
}

#[cfg(test)]
mod test;
