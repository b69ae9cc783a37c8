//! Templates that come and go while the server runs.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use engine::error::EngineError;
use engine::template::{CatalogError, Template};
use hatchery::config::LimitsFile;
use serde_json::{Value, json};
use std::time::Duration;
use support::{Server, until};

#[tokio::test]
async fn a_template_is_added_used_and_taken_out_while_the_server_runs() {
    let server = Server::start_clones("", LimitsFile::default(), Some(1)).await;
    let base = server.registry.templates().get("base").unwrap();
    let late = Template {
        name: "late".into(),
        aliases: vec!["newest".into()],
        ..(*base).clone()
    };
    let of_late = json!({ "templateID": "newest" });
    assert_eq!(server.create(of_late.clone()).await.status, 404, "not yet");
    server.registry.add_template(late.clone()).unwrap();
    let again = server.registry.add_template(late).unwrap_err();
    assert_eq!(again, CatalogError::NameTaken("late".into()));

    let made = server.create(of_late.clone()).await;
    let id = made.id();
    assert_eq!(made.json()["templateID"], "late");
    let listed = server.api("GET", "/templates/late", Value::Null).await;
    assert_eq!(listed.status, 200);
    let in_use = server.registry.remove_template("late").unwrap_err();
    assert!(
        matches!(&in_use, EngineError::Conflict(why) if why.contains(&id)),
        "{in_use}"
    );

    let path = format!("/sandboxes/{id}");
    assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
    server.registry.remove_template("late").unwrap();
    assert_eq!(server.create(of_late).await.status, 404, "not any more");
    let gone = server.registry.remove_template("late").unwrap_err();
    assert!(matches!(gone, EngineError::TemplateNotFound(_)));
    // Its warm VMs have given back what they held; those of the other template are there.
    let metrics = || server.registry.metrics_text().unwrap();
    let left = until(Duration::from_secs(10), || {
        Some(metrics()).filter(|text| !text.contains("hatchery_warm_vms 1\n"))
    });
    assert_eq!(left.await, None);
    assert!(server.stop().await);
}

/// A template that is removed while sandboxes are made of it: no sandbox is left without its
/// template.
#[tokio::test]
async fn a_removal_that_meets_creations_leaves_no_sandbox_without_its_template() {
    let server = Server::start().await;
    let base = server.registry.templates().get("base").unwrap();
    let of_late = || server.create(json!({ "templateID": "late" }));
    for round in 0..20 {
        let late = Template {
            name: "late".into(),
            aliases: Vec::new(),
            ..(*base).clone()
        };
        server.registry.add_template(late).unwrap();
        let removal = async {
            tokio::time::sleep(Duration::from_millis(round * 2)).await;
            server.registry.remove_template("late")
        };
        let (first, second, removed) = tokio::join!(of_late(), of_late(), removal);
        for made in [&first, &second] {
            assert!([201, 404].contains(&made.status), "{}", made.status);
        }
        let left = server.registry.all();
        assert!(removed.is_err() || left.is_empty(), "{left:?}");
        for view in left {
            assert!(server.registry.kill_any(&view.facts.id).await.unwrap());
        }
        if removed.is_err() {
            server.registry.remove_template("late").unwrap();
        }
    }
    assert!(server.stop().await);
}

#[tokio::test]
async fn what_happens_is_counted() {
    let server = Server::start_clones("", LimitsFile::default(), Some(1)).await;
    let id = server.create(json!({})).await.id();
    for (what, status) in [
        ("pause", 204),
        ("connect", 201),
        ("reset", 204),
        ("snapshots", 201),
    ] {
        let path = format!("/sandboxes/{id}/{what}");
        let done = server.api("POST", &path, json!({ "timeout": 60 })).await;
        assert_eq!(done.status, status, "{what}: {done:?}");
    }
    let fork = format!("/sandboxes/{id}/fork");
    assert_eq!(
        server
            .api("POST", &fork, json!({ "count": 2, "timeout": 60 }))
            .await
            .status,
        201
    );
    let text = server.registry.metrics_text().unwrap();
    for line in [
        "hatchery_creations_total{way=\"clone\",outcome=\"ok\"} 1\n",
        "hatchery_creations_total{way=\"image\",outcome=\"ok\"} 2\n",
        "hatchery_actions_total{way=\"pause\",outcome=\"ok\"} 1\n",
        "hatchery_actions_total{way=\"resume\",outcome=\"ok\"} 1\n",
        "hatchery_actions_total{way=\"snapshot\",outcome=\"ok\"} 1\n",
        "hatchery_fork_children_total 2\n",
        "hatchery_action_seconds_count{way=\"reset\"} 1\n",
        "hatchery_sandboxes{state=\"running\"} 3\n",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(!text.contains("hatchery_stored_bytes_total{way=\"snapshot\"} 0\n"));
    assert!(server.stop().await);
}
