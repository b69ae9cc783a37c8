//! What a sandbox has from the one that it goes on from (`api/PROTOCOL.md` §10.6), a test a row.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use support::told::{pause, post};
use support::{Answer, Server};

/// What its variables are, as its processes have them.
async fn variables(server: &Server, made: &Value) -> Value {
    let headers = [
        ("e2b-sandbox-id", made["sandboxID"].as_str().unwrap()),
        ("e2b-sandbox-port", "49983"),
        (
            "x-access-token",
            made["envdAccessToken"].as_str().unwrap_or_default(),
        ),
    ];
    let said = server.send("GET", "/envs", &headers, "").await;
    assert_eq!(said.status, 200, "{said:?}");
    said.json()
}

/// A creation with something to inherit.
fn parent() -> Value {
    json!({
        "envVars": { "A": "parent", "B": "parent" },
        "metadata": { "of": "parent" },
        "timeout": 1000,
        "autoPause": true,
        "autoResume": { "enabled": true },
    })
}

/// The variables of such a sandbox, with these for who and where it is.
fn expected(made: &Value, a: &str, b: &str) -> Value {
    json!({
        "A": a, "B": b,
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": made["sandboxID"],
        "E2B_TEMPLATE_ID": made["templateID"],
    })
}

/// Its processes have these variables.
async fn has(server: &Server, made: &Value, a: &str, b: &str) {
    assert_eq!(variables(server, made).await, expected(made, a, b));
}

async fn detail(server: &Server, made: &Value) -> Value {
    server.get(made["sandboxID"].as_str().unwrap()).await.json()
}

/// From now to its end.
async fn seconds_left(server: &Server, made: &Value) -> i64 {
    let end = detail(server, made).await["endAt"]
        .as_str()
        .unwrap()
        .to_owned();
    let end: jiff::Timestamp = end.parse().unwrap();
    end.as_second() - jiff::Timestamp::now().as_second()
}

fn first_child(forked: &Answer) -> Value {
    assert_eq!(forked.status, 201, "{forked:?}");
    forked.json()[0]["sandbox"].clone()
}

const PAUSES: &str = "pause";
const KILLS: &str = "kill";

fn policy(auto_resume: bool, on_timeout: &str) -> Value {
    json!({ "autoResume": auto_resume, "onTimeout": on_timeout })
}

#[tokio::test]
async fn a_fork_has_everything_but_the_time_to_live() {
    let server = Server::start().await;
    let made = server.create(parent()).await;
    let (id, made) = (made.id(), made.json());
    let taken = post(&server, &id, "checkpoints", json!({ "name": "c" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    for body in [
        json!({ "timeout": 60 }),
        json!({ "timeout": 60, "checkpoint": "c" }),
    ] {
        let child = first_child(&post(&server, &id, "fork", body).await);
        has(&server, &child, "parent", "parent").await;
        let seen = detail(&server, &child).await;
        assert_eq!(seen["metadata"], json!({ "of": "parent" }));
        assert_eq!(seen["lifecycle"], policy(true, PAUSES));
        assert!((50..=60).contains(&seconds_left(&server, &child).await));
        assert_ne!(child["envdAccessToken"], made["envdAccessToken"]);
    }
    // One that asks for no token has children that ask for none.
    let open = json!({ "templateID": "base", "secure": false, "timeout": 60 });
    let open = server.api("POST", "/sandboxes", open).await.id();
    let child = first_child(&post(&server, &open, "fork", json!({})).await);
    assert_eq!(child["envdAccessToken"], Value::Null);
    variables(&server, &child).await;
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_snapshot_gives_its_variables_and_nothing_else() {
    let server = Server::start().await;
    let made = server.create(parent()).await;
    for (name, memory) in [("full", true), ("files", false)] {
        let body = json!({ "name": name, "memory": memory });
        let taken = post(&server, &made.id(), "snapshots", body).await;
        assert_eq!(taken.status, 201, "{taken:?}");
    }
    let server = server.again("", LimitsFile::default()).await;
    for name in ["full", "files"] {
        let plain = server.create(json!({ "templateID": name })).await.json();
        has(&server, &plain, "parent", "parent").await;
        let seen = detail(&server, &plain).await;
        assert_eq!(seen["metadata"], json!({}), "they are the request's");
        assert_eq!(seen["lifecycle"], policy(false, KILLS));
        assert!((290..=300).contains(&seconds_left(&server, &plain).await));

        let own = json!({
            "templateID": name, "timeout": 60, "autoPause": true,
            "envVars": { "B": "own" }, "metadata": { "of": "own" },
        });
        let made = server.create(own).await;
        let (id, made) = (made.id(), made.json());
        has(&server, &made, "parent", "own").await;
        let seen = detail(&server, &made).await;
        assert_eq!(seen["metadata"], json!({ "of": "own" }));
        assert_eq!(seen["lifecycle"], policy(false, PAUSES));
        // A snapshot of it has both.
        let taken = post(&server, &id, "snapshots", json!({ "name": "next" })).await;
        assert_eq!(taken.status, 201, "{taken:?}");
        let next = server.create(json!({ "templateID": "next" })).await.json();
        has(&server, &next, "parent", "own").await;
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_resumed_one_is_what_it_was_with_a_new_time_to_live() {
    let mut server = Server::start().await;
    let made = server.create(parent()).await;
    let (id, made) = (made.id(), made.json());
    for (restart, memory) in [(false, true), (true, false)] {
        let before = detail(&server, &made).await;
        let done = post(&server, &id, "pause", json!({ "memory": memory })).await;
        assert_eq!(done.status, 204, "{done:?}");
        if restart {
            server = server.again("", LimitsFile::default()).await;
        }
        let resumed = post(&server, &id, "connect", json!({ "timeout": 60 })).await;
        assert_eq!((resumed.status, resumed.json()), (201, made.clone()));
        has(&server, &made, "parent", "parent").await;
        let mut after = detail(&server, &made).await;
        assert!((50..=60).contains(&seconds_left(&server, &made).await));
        after["endAt"] = before["endAt"].clone();
        assert_eq!(after, before);
    }
    // One that runs is only ever given more time.
    for (timeout, left) in [(30, 50..=60), (90, 80..=90)] {
        let again = post(&server, &id, "connect", json!({ "timeout": timeout })).await;
        assert_eq!(again.status, 200);
        assert!(left.contains(&seconds_left(&server, &made).await));
    }
    // Resumed by traffic, it has the time that it was created with.
    assert_eq!(pause(&server, &id).await.status, 204);
    variables(&server, &made).await;
    assert!((990..=1000).contains(&seconds_left(&server, &made).await));
    assert!(server.stop().await);
}

#[tokio::test]
async fn a_reset_or_saved_one_stays_what_it_is() {
    for clones in [None, Some(0)] {
        let server = Server::start_clones("", LimitsFile::default(), clones).await;
        let made = server.create(parent()).await;
        let (id, made) = (made.id(), made.json());
        let before = detail(&server, &made).await;
        for (what, body, status) in [
            ("checkpoints", json!({ "name": "c" }), 201),
            ("snapshots", json!({ "name": "shot" }), 201),
            ("fork", json!({}), 201),
            ("reset", json!({}), 204),
            ("reset", json!({ "checkpoint": "c" }), 204),
        ] {
            let done = post(&server, &id, what, body).await;
            assert_eq!(done.status, status, "{what}: {done:?}");
            assert_eq!(detail(&server, &made).await, before, "{what}");
            has(&server, &made, "parent", "parent").await;
        }
        assert!(server.stop().await);
    }
}

/// Also those that come from a snapshot; a refusal names the limit.
#[tokio::test]
async fn variables_have_a_limit_together() {
    let server = Server::start().await;
    let many = |prefix: &str, count: usize| {
        let all = (0..count).map(|n| (format!("{prefix}{n}"), json!("v")));
        Value::Object(all.collect())
    };
    let made = server.create(json!({ "envVars": many("P", 512) })).await;
    let taken = post(&server, &made.id(), "snapshots", json!({ "name": "full" })).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    let own = |env: Value| json!({ "templateID": "full", "envVars": env });
    let fits = server.create(own(many("P", 512))).await;
    assert_eq!(fits.status, 201, "{fits:?}");
    let large = json!({ "envVars": { "A": "v".repeat(16 << 10) } });
    for body in [
        own(many("Q", 1)),
        json!({ "envVars": many("P", 513) }),
        large,
    ] {
        let refused = server.create(body).await;
        assert_eq!(refused.status, 400);
        let words = refused.json()["message"].as_str().unwrap().to_owned();
        assert!(words.contains("over 512 or 15360 bytes"), "{words}");
    }
    assert!(server.stop().await);
}
