//! Two keys see nothing of each other, in any endpoint of `openapi.json`: each is asked by a key
//! for what is another's, and has to answer as it answers for what is nobody's.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::ConfigFile;
use serde_json::{Value, json};
use support::{Answer, KEY, Server};

/// The key of somebody else.
const OTHER: &str = "e2b_fedcba9876543210fedcba9876543210fedcba98";
/// A sandbox that nobody has.
const NOBODYS: &str = "inosuchsandbox000000";

/// A server with two keys.
async fn server() -> Server {
    server_in(tempfile::tempdir().unwrap()).await
}

async fn server_in(dir: tempfile::TempDir) -> Server {
    let file = ConfigFile {
        api_keys: vec![KEY.into(), OTHER.into()],
        ..ConfigFile::default()
    };
    Server::start_file(dir, "", file).await
}

/// What the first key has.
struct Things {
    sandbox: String,
    paused: String,
    snapshot: String,
}

async fn post(server: &Server, id: &str, what: &str, body: Value) -> Answer {
    let path = format!("/sandboxes/{id}/{what}");
    server.api("POST", &path, body).await
}

async fn things(server: &Server, snapshot: &str) -> Things {
    let metadata = json!({ "metadata": { "of": "the-first" } });
    let sandbox = server.create(metadata.clone()).await.id();
    let paused = server.create(metadata).await.id();
    assert_eq!(post(server, &paused, "pause", json!({})).await.status, 204);
    let named = |name: &str| json!({ "name": name });
    let taken = post(server, &sandbox, "checkpoints", named("c")).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    let taken = post(server, &sandbox, "snapshots", named(snapshot)).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    Things {
        sandbox,
        paused,
        snapshot: snapshot.to_owned(),
    }
}

/// All endpoints that are described, but for the one that asks for no key.
fn endpoints() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys();
        let methods = methods.filter(|m| *m != "parameters" && path != "/health");
        all.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
    }
    assert!(all.len() > 50, "the document is read: {all:?}");
    all
}

/// A path with what is meant by its parameters.
fn path(of: &str, sandbox: &str, snapshot: &str) -> String {
    let segment = |segment: &str| match segment {
        "{sandboxID}" => sandbox.to_owned(),
        "{checkpoint}" => "c".to_owned(),
        "{templateID}" | "{alias}" => snapshot.to_owned(),
        "{buildID}" | "{hash}" | "{volumeID}" | "{secretID}" => "x".to_owned(),
        text => {
            assert!(!text.starts_with('{'), "{of}: say whose {text} it is");
            text.to_owned()
        }
    };
    let path: Vec<_> = of.split('/').map(segment).collect();
    match of {
        "/sandboxes/metrics" => format!("{}?sandbox_ids={sandbox}", path.join("/")),
        _ => path.join("/"),
    }
}

/// What each endpoint finds a part for it in.
fn body(method: &str, snapshot: &str) -> Value {
    match method {
        "GET" | "DELETE" => Value::Null,
        _ => json!({
            "templateID": snapshot, "timeout": 60, "duration": 60, "count": 1, "checkpoint": "c",
        }),
    }
}

/// Status and body, with what was asked for taken out.
fn said(answer: &Answer, sandbox: &str, snapshot: &str) -> (u16, String) {
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let text = text.replace(sandbox, "SANDBOX");
    (answer.status, text.replace(snapshot, "SNAPSHOT"))
}

/// Has what is looked for only with templates, which are everybody's, and never with snapshots.
fn is_of_templates(method: &str, path: &str) -> bool {
    method == "GET" && path.starts_with("/templates/")
}

#[tokio::test]
async fn what_is_another_keys_answers_as_what_is_nobodys() {
    let server = server().await;
    let own = things(&server, "shot").await;
    let secret = server.get(&own.sandbox).await.json()["envdAccessToken"].clone();
    for (method, template) in endpoints() {
        for sandbox in [&own.sandbox, &own.paused] {
            let ask = async |sandbox: &str, snapshot: &str| {
                let path = path(&template, sandbox, snapshot);
                let body = body(&method, snapshot);
                let answer = server.api_as(OTHER, &method, &path, body).await;
                said(&answer, sandbox, snapshot)
            };
            let (status, text) = ask(sandbox, &own.snapshot).await;
            let nothing = ask(NOBODYS, "nosuch").await;
            assert_eq!((status, text.clone()), nothing, "{method} {template}");
            for tells in ["SANDBOX", "SNAPSHOT", "the-first", secret.as_str().unwrap()] {
                let named = status >= 400 && !tells.contains('-');
                assert!(
                    named || !text.contains(tells),
                    "{method} {template}: {text}"
                );
            }
            if template.contains("{sandboxID}") {
                assert_eq!(status, 404, "{method} {template}: {text}");
            }
        }
    }
    // Nothing of it has ended, moved or gone.
    for (id, state) in [(&own.sandbox, "running"), (&own.paused, "paused")] {
        assert_eq!(server.get(id).await.json()["state"], state);
    }
    let path = format!("/sandboxes/{}/checkpoints", own.sandbox);
    let tree = server.api("GET", &path, Value::Null).await.json();
    assert_eq!(tree["checkpoints"][0]["name"], "c");
    let snapshots = server.api("GET", "/snapshots", Value::Null).await.json();
    assert_eq!(snapshots[0]["snapshotID"], "shot:default");
    assert_eq!(server.registry.in_use(), 1, "nothing was made");
    assert!(server.stop().await);
}

/// Else the test above would hold for a server that finds nothing.
#[tokio::test]
async fn what_is_ones_own_is_there_in_each_of_these() {
    let server = server().await;
    for (n, (method, template)) in endpoints().into_iter().enumerate() {
        let own = things(&server, &format!("shot{n}")).await;
        let path = path(&template, &own.sandbox, &own.snapshot);
        let body = body(&method, &own.snapshot);
        let answer = server.api_as(KEY, &method, &path, body).await;
        let missing = is_of_templates(&method, &template) && !template.contains("/tags");
        let not_yet = answer.status == 501;
        if !not_yet {
            let found = answer.status != 404;
            assert_ne!(found, missing, "{method} {template}: {answer:?}");
        }
        for view in server.registry.all() {
            server.registry.kill_any(&view.facts.id).await.unwrap();
        }
        server.idle().await;
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn lists_and_totals_are_of_ones_own() {
    let server = server().await;
    let own = things(&server, "shot").await;
    let list = async |key: &str, path: &str| {
        let answer = server.api_as(key, "GET", path, Value::Null).await;
        let total = answer.header("x-total-running").map(str::to_owned);
        (total, answer.json().as_array().unwrap().len())
    };
    let total = |n: &str| Some(n.to_owned());
    assert_eq!(list(KEY, "/v2/sandboxes").await, (total("1"), 2));
    assert_eq!(list(OTHER, "/v2/sandboxes").await, (total("0"), 0));
    assert_eq!(list(KEY, "/sandboxes").await, (None, 1));
    assert_eq!(list(OTHER, "/sandboxes").await, (None, 0));
    assert_eq!(list(KEY, "/snapshots").await, (None, 1));
    assert_eq!(list(OTHER, "/snapshots").await, (None, 0));
    let path = format!("/snapshots?sandboxID={}", own.sandbox);
    assert_eq!(list(OTHER, &path).await, (None, 0));
    assert!(server.stop().await);
}

/// The same name twice, and neither is the other's: not made from, not replaced, not deleted.
#[tokio::test]
async fn each_key_has_names_of_its_own() {
    let server = server().await;
    let make = async |key: &str, label: &str| {
        let body = json!({ "templateID": "base", "timeout": 60, "envVars": { "WHOSE": label } });
        let made = server.api_as(key, "POST", "/v2/sandboxes", body).await;
        let path = format!("/sandboxes/{}/snapshots", made.id());
        let taken = server
            .api_as(key, "POST", &path, json!({ "name": "same" }))
            .await;
        assert_eq!(taken.status, 201, "{taken:?}");
    };
    let whose = async |key: &str| {
        let body = json!({ "templateID": "same", "timeout": 60 });
        let made = server.api_as(key, "POST", "/v2/sandboxes", body).await;
        let (id, made) = (made.id(), made.json());
        let headers = [
            ("e2b-sandbox-id", id.as_str()),
            ("e2b-sandbox-port", "49983"),
            ("x-access-token", made["envdAccessToken"].as_str().unwrap()),
        ];
        server.send("GET", "/envs", &headers, "").await.json()["WHOSE"].clone()
    };
    make(KEY, "first").await;
    make(OTHER, "second").await;
    assert_eq!(
        (whose(KEY).await, whose(OTHER).await),
        (json!("first"), json!("second"))
    );
    let delete = "/templates/same";
    let deleted = server.api_as(OTHER, "DELETE", delete, Value::Null).await;
    assert_eq!(deleted.status, 204);
    let deleted = server.api_as(OTHER, "DELETE", delete, Value::Null).await;
    assert_eq!(deleted.status, 404);
    assert_eq!(whose(KEY).await, json!("first"));
    assert!(server.stop().await);
}

#[tokio::test]
async fn an_idempotency_key_is_its_owners() {
    let server = server().await;
    for (path, body) in [
        (
            "/v2/sandboxes",
            json!({ "templateID": "base", "timeout": 60 }),
        ),
        (
            "/sandboxes:batch",
            json!({ "templateID": "base", "timeout": 60, "count": 1 }),
        ),
    ] {
        let ask = async |key: &str| {
            let headers = [("x-api-key", key), ("idempotency-key", "k-1")];
            let headers = match path {
                "/sandboxes:batch" => [headers[0], ("idempotency-key", "k-2")],
                _ => headers,
            };
            let answer = server.send("POST", path, &headers, body.to_string()).await;
            let text = String::from_utf8(answer.body.to_vec()).unwrap();
            let at = text.find("\"sandboxID\":\"").unwrap() + 13;
            text[at..at + 20].to_owned()
        };
        let first = ask(KEY).await;
        assert_eq!(ask(KEY).await, first);
        let others = ask(OTHER).await;
        assert_ne!(others, first, "{path}");
        assert_eq!(ask(OTHER).await, others);
    }
    assert!(server.stop().await);
}

/// Children, sandboxes of a snapshot and what is paused stay whose they were, and over a restart.
#[tokio::test]
async fn an_owner_is_inherited_and_outlives_the_server() {
    let server = server().await;
    let own = things(&server, "shot").await;
    let forked = post(&server, &own.sandbox, "fork", json!({ "timeout": 60 }))
        .await
        .json();
    let child = forked[0]["sandbox"]["sandboxID"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(post(&server, &child, "pause", json!({})).await.status, 204);
    let (dir, clean) = server.close().await;
    assert!(clean);
    let server = server_in(dir).await;
    let made = json!({ "templateID": "shot", "timeout": 60 });
    let refused = server
        .api_as(OTHER, "POST", "/v2/sandboxes", made.clone())
        .await;
    assert_eq!(refused.status, 404, "{refused:?}");
    let of_snapshot = server.api("POST", "/v2/sandboxes", made).await.id();
    for id in [&own.paused, &child, &of_snapshot] {
        let path = format!("/sandboxes/{id}/connect");
        let body = || json!({ "timeout": 60 });
        let others = server.api_as(OTHER, "POST", &path, body()).await;
        assert_eq!(others.status, 404, "{others:?}");
        assert!([200, 201].contains(&server.api("POST", &path, body()).await.status));
        let path = format!("/sandboxes/{id}");
        assert_eq!(
            server
                .api_as(OTHER, "DELETE", &path, Value::Null)
                .await
                .status,
            404
        );
    }
    assert!(server.stop().await);
}
