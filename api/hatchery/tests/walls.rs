//! What the server does on hosts where walls around VM processes are missing.

mod support;

use control::JailMode;
use serde_json::{Value, json};
use support::Server;

async fn create(server: &Server) -> (u16, Value) {
    let answer = server
        .api("POST", "/sandboxes", json!({"templateID": "base"}))
        .await;
    (answer.status, answer.json())
}

async fn jail(server: &Server) -> Value {
    server.send("GET", "/health", &[], "").await.json()["jail"].clone()
}

#[tokio::test]
async fn no_sandbox_starts_behind_fewer_walls_than_required() {
    let server = Server::start_jailed("open", JailMode::Required).await;
    for _ in 0..2 {
        let (status, body) = create(&server).await;
        let words = body["message"].as_str().unwrap();
        assert_eq!(status, 500, "{body}");
        for word in [
            "jail = \"required\"",
            "landlock: this is a stand-in",
            "use the real one",
        ] {
            assert!(words.contains(word), "{word}: {words}");
        }
    }
    let told = jail(&server).await;
    assert_eq!(told["mode"], "required");
    assert_eq!(told["missing"], json!(["landlock"]));
    assert_eq!(
        told["standing"],
        json!(["user", "namespaces", "seccomp", "ring"])
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn an_operator_may_do_with_fewer_walls_and_everybody_hears_it() {
    let server = Server::start_jailed("open", JailMode::Degraded).await;
    let (status, body) = create(&server).await;
    assert_eq!(status, 201, "{body}");
    let told = jail(&server).await;
    assert_eq!(
        (&told["mode"], &told["missing"]),
        (&json!("degraded"), &json!(["landlock"]))
    );
    assert!(server.stop().await);
}

#[tokio::test]
async fn without_a_zygote_none_starts_and_nothing_is_said_to_stand() {
    let server = Server::start_jailed("single", JailMode::Required).await;
    let (status, body) = create(&server).await;
    assert_eq!(status, 500, "{body}");
    assert!(
        body["message"].as_str().unwrap().contains("zygote"),
        "{body}"
    );
    assert_eq!(jail(&server).await["standing"], json!([]));
    assert!(server.stop().await);

    let server = Server::start_jailed("single", JailMode::Degraded).await;
    assert_eq!(create(&server).await.0, 201);
    assert_eq!(jail(&server).await["missing"], json!(["namespaces"]));
    assert!(server.stop().await);
}

#[tokio::test]
async fn where_all_walls_stand_health_names_them() {
    let server = Server::start_jailed("", JailMode::Required).await;
    assert_eq!(create(&server).await.0, 201);
    let told = jail(&server).await;
    assert_eq!(told["standing"].as_array().unwrap().len(), 5, "{told}");
    assert!(server.stop().await);
}
