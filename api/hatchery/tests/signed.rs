//! Signed file URLs that name no sandbox, in every state that the sandbox may be in: from its
//! signature on such a request is met as any traffic to the sandbox.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use support::told::{pause, post, state};
use support::{Answer, Server, until};

const CONTENT: &str = "what was signed for";

/// A sandbox with a file.
struct SignedFile<'a> {
    server: &'a Server,
    id: String,
    token: String,
    path: String,
    _dir: tempfile::TempDir,
}

impl<'a> SignedFile<'a> {
    async fn new(server: &'a Server, how: Value) -> Self {
        let made = server.create(how).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, CONTENT).unwrap();
        Self {
            server,
            id: made.id(),
            token: made.json()["envdAccessToken"].as_str().unwrap().to_owned(),
            path: path.to_str().unwrap().to_owned(),
            _dir: dir,
        }
    }

    /// The query of a URL, as the SDKs make it.
    fn query(&self, operation: &str, expiration: Option<i64>) -> String {
        let mut text = format!("{}:{operation}:root:{}", self.path, self.token);
        let mut more = String::new();
        if let Some(seconds) = expiration {
            text.push_str(&format!(":{seconds}"));
            more = format!("&signature_expiration={seconds}");
        }
        let signature = STANDARD_NO_PAD.encode(Sha256::digest(text));
        let signature = signature.replace('+', "%2B").replace('/', "%2F");
        format!(
            "path={}&username=root&signature=v1_{signature}{more}",
            self.path
        )
    }

    /// Downloads it by its URL alone.
    async fn read(&self, expiration: Option<i64>) -> Answer {
        let path = format!("/files?{}", self.query("read", expiration));
        self.server.send("GET", &path, &[], "").await
    }

    /// Uploads it by its URL alone.
    async fn write(&self, body: &'static str) -> Answer {
        let path = format!("/files?{}", self.query("write", None));
        let headers = [("content-type", "application/octet-stream")];
        self.server.send("POST", &path, &headers, body).await
    }
}

fn resumed_by_traffic() -> Value {
    json!({ "autoPause": true, "autoResume": { "enabled": true } })
}

#[tokio::test]
async fn a_signed_url_wakes_a_paused_sandbox_as_any_traffic_does() {
    let server = Server::start().await;
    let file = SignedFile::new(&server, resumed_by_traffic()).await;
    assert_eq!(file.read(None).await.body, CONTENT);
    for n in 0..2 {
        assert_eq!(pause(&server, &file.id).await.status, 204);
        let found = match n {
            0 => file.read(None).await,
            _ => file.write("written").await,
        };
        assert_eq!(found.status, 200, "{found:?}");
        assert_eq!(state(&server, &file.id).await, "running");
    }
    assert_eq!(file.read(None).await.body, "written");

    // One that is over, or that its token has not signed, does not.
    assert_eq!(pause(&server, &file.id).await.status, 204);
    let over = file.read(Some(1)).await;
    assert_eq!(
        (over.status, &over.json()["message"]),
        (401, &json!("signature is already expired"))
    );
    let other = file
        .server
        .send("GET", "/files?path=a&signature=v1_x", &[], "");
    let other = other.await;
    assert_eq!(
        (other.status, &other.json()["message"]),
        (401, &json!("invalid signature"))
    );
    assert_eq!(state(&server, &file.id).await, "paused");
    assert!(server.stop().await);
}

#[tokio::test]
async fn without_auto_resume_it_is_told_what_all_traffic_is_told() {
    let server = Server::start().await;
    let file = SignedFile::new(&server, json!({})).await;
    assert_eq!(pause(&server, &file.id).await.status, 204);
    let closed = file.read(None).await;
    let said = json!({ "sandboxId": file.id, "message": "The sandbox was not found", "code": 502 });
    assert_eq!((closed.status, closed.json()), (502, said));
    let resumed = post(&server, &file.id, "connect", json!({ "timeout": 60 })).await;
    assert_eq!(resumed.status, 201);
    assert_eq!(file.read(None).await.body, CONTENT);
    let over = file.read(Some(1)).await;
    assert_eq!(
        (over.status, &over.json()["message"]),
        (401, &json!("signature is already expired"))
    );
    assert!(server.stop().await);
}

/// While it is saved it waits; while it is paused it is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_while_its_sandbox_is_saved() {
    let server = Server::start_with("slowsave", LimitsFile::default()).await;
    let file = SignedFile::new(&server, json!({})).await;
    // A sandbox that somebody works at is not among those that run.
    let busy = || async {
        let runs = || {
            let running = server.registry.running();
            running.into_iter().find(|one| one.id == file.id)
        };
        let left = until(Duration::from_secs(10), || runs().map(drop)).await;
        assert_eq!(left, None, "nobody works at it");
    };
    let (taken, read) = tokio::join!(
        post(&server, &file.id, "snapshots", json!({ "name": "shot" })),
        async {
            busy().await;
            file.read(None).await
        }
    );
    assert_eq!(taken.status, 201, "{taken:?}");
    assert_eq!((read.status, &read.body[..]), (200, CONTENT.as_bytes()));

    let (paused, read) = tokio::join!(pause(&server, &file.id), async {
        busy().await;
        file.read(None).await
    });
    assert_eq!(paused.status, 204, "{paused:?}");
    let said = "The sandbox is being paused";
    assert_eq!((read.status, &read.json()["message"]), (409, &json!(said)));
    assert!(server.stop().await);
}
